"""What a kind of model in the zoo is, and how one is made ready.

In: builders, each with the signature that its author means and data to call it on. Out: models
with random weights, of which no two are equal. The invariant: a kind is built the same each time,
so that what one process exports another can compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_export as ke

_SEED = 5
_ENTRY = re.compile(r"(\w+): (\w+\[[^]]*\])")

Builder = Callable[[], Any]
Data = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        name: of the kind.
        family: what it is an example of: the name of the module that builds it.
        build: makes the object that is exported; layers that nobody named count from one.
        declared: `x: float32[?, 2] -> y: float32[?, 3]`: the tensors of the arguments and of the
            results with their names, shapes and dtypes, in the order of `tf.nest.flatten`.
        data: makes the arguments of a call.
        called: whether its author calls the model on `data` before the export.
        calls: how many calls in a row must give the same; more than one where a state changes.
        input_signature: what is passed under that name to the export; None for nothing.
        live: calls the object in inference mode.
        since: a Keras that gives what is declared; those before are known not to.
    """

    name: str
    family: str
    build: Builder
    declared: str
    data: Data
    called: bool
    calls: int
    input_signature: Any
    live: Callable[..., Any]
    since: str

    @property
    def inputs(self) -> dict[str, str]:
        """`{"x": "float32[?, 2]"}`, in the order of the arguments."""
        return dict(_ENTRY.findall(self.declared.partition(" -> ")[0]))

    @property
    def outputs(self) -> dict[str, str]:
        """The same of the results."""
        return dict(_ENTRY.findall(self.declared.partition(" -> ")[2]))

    @property
    def available(self) -> bool:
        """Whether this Keras has it."""
        return _version(keras.__version__) >= _version(self.since)

    def make(self, recorded: bool = True) -> Any:
        """A new object, ready for an export.

        Args:
            recorded: let `keras_export` see the author's call.
        """
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(_SEED)
        made = self.build()
        if self.called:
            made = ke.with_export(made) if recorded else made
            made(*self.arguments())
        _shake(made)
        return made

    def arguments(self) -> tuple[Any, ...]:
        """The arguments of a call, as tensors."""
        return tf.nest.map_structure(_tensor, self.data())

    def function(self, made: Any) -> Callable[..., Any]:
        """The live call in a graph, where TensorFlow chooses kernels as it does for artifacts."""
        return tf.function(lambda *args: self.live(made, *args), autograph=False)


KINDS: dict[str, Kind] = {}


def inference(made: Any, *args: Any) -> Any:
    """Calls a Keras object as a server does."""
    return made(*args, training=False)


def kind(
    declared: str,
    data: Data,
    *,
    called: bool = False,
    calls: int = 1,
    input_signature: Any = None,
    live: Callable[..., Any] = inference,
    since: str = "3.4",
) -> Callable[[Builder], Builder]:
    """Puts a builder into the zoo under its own name; see `Kind`."""

    def put(build: Builder) -> Builder:
        name, family = build.__name__, build.__module__.rpartition(".")[2]
        assert name not in KINDS
        KINDS[name] = Kind(
            name, family, build, declared, data, called, calls, input_signature, live, since
        )
        return build

    return put


def floats(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """The same random numbers each time."""
    return np.random.default_rng(_SEED).uniform(low, high, shape).astype("float32")


def integers(high: int, *shape: int, dtype: str = "int32") -> np.ndarray:
    """The same random numbers each time, from 0 on."""
    return np.random.default_rng(_SEED).integers(0, high, shape).astype(dtype)


def texts(*values: Any) -> np.ndarray:
    """An array of strings."""
    return np.array(values, dtype=object)


def _shake(made: Any) -> None:
    """Makes weights that start equal different, so that no two could be exchanged unnoticed."""
    random = np.random.default_rng(_SEED)
    for weight in getattr(made, "weights", ()):
        value = np.asarray(weight.numpy())
        if keras.backend.is_float_dtype(weight.dtype) and value.size and np.ptp(value) == 0:
            weight.assign(value + random.uniform(-0.1, 0.1, value.shape))


def _tensor(value: Any) -> Any:
    return tf.convert_to_tensor(value) if isinstance(value, (np.ndarray, np.generic)) else value


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
