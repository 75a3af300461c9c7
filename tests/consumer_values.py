"""Values as they travel between a test and the process that reads artifacts.

In: what a test or a loaded artifact holds (arrays, tensors, composite tensors, containers). Out:
the same with numpy arrays, plain containers and the frozen dataclasses below, which pickle without
TensorFlow and mean the same on both sides.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A ragged tensor: the values, which may be ragged themselves, and where the rows split."""

    values: Any
    row_splits: np.ndarray

    def to_list(self) -> list[Any]:
        """The rows as nested lists."""
        rows = self.values.to_list() if isinstance(self.values, Ragged) else self.values.tolist()
        return [rows[start:end] for start, end in itertools.pairwise(self.row_splits)]


@dataclasses.dataclass(frozen=True)
class Sparse:
    """A sparse tensor."""

    indices: np.ndarray
    values: np.ndarray
    dense_shape: np.ndarray


@dataclasses.dataclass(frozen=True)
class Named:
    """A namedtuple; its class stays where it came from."""

    type_name: str
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor; an unknown shape is `None`."""

    shape: tuple[int | None, ...] | None
    dtype: str


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of a loaded artifact; `path` is how to reach it from the loaded object."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Something that does not travel: its class and its repr."""

    type_name: str
    text: str


_AS_THEY_ARE = (bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic)
_OURS = (Ragged, Sparse, Named, Spec, Variable, Opaque)


def to_wire(value: Any) -> Any:
    """Turns a value into one that pickles without TensorFlow."""
    if isinstance(value, _AS_THEY_ARE + _OURS):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Named(type(value).__name__, _mapped(value._asdict(), to_wire))
    if isinstance(value, Mapping):
        return _mapped(value, to_wire)
    if isinstance(value, list | tuple):
        return tuple(map(to_wire, value)) if isinstance(value, tuple) else list(map(to_wire, value))
    return _tensor_to_wire(value)


def _tensor_to_wire(value: Any) -> Any:
    import tensorflow as tf

    if isinstance(value, tf.RaggedTensor):
        return Ragged(to_wire(value.values), value.row_splits.numpy())
    if isinstance(value, tf.SparseTensor):
        return Sparse(value.indices.numpy(), value.values.numpy(), value.dense_shape.numpy())
    if isinstance(value, tf.IndexedSlices):
        return tf.convert_to_tensor(value).numpy()
    if isinstance(value, tf.Variable):
        return variable("", value)
    if isinstance(value, tf.TensorSpec):
        return spec(value)
    if hasattr(value, "numpy"):
        return _numpy(value)
    return Opaque(type(value).__name__, repr(value))


def _numpy(value: Any) -> Any:
    content = value.numpy()
    # A scalar string comes as bytes: as an array it compares like every other tensor.
    return np.array(content, dtype=object) if isinstance(content, bytes) else np.asarray(content)


def variable(path: str, value: Any) -> Variable:
    """Describes a `tf.Variable`."""
    content = np.asarray(value.numpy())
    return Variable(
        path, value.name, tuple(value.shape), value.dtype.name, value.trainable, content
    )


def spec(value: Any) -> Spec:
    """Describes a `tf.TensorSpec`, a tensor or any other thing with a shape and a dtype."""
    shape = None if value.shape.rank is None else tuple(value.shape)
    return Spec(shape, value.dtype.name)


def from_wire(value: Any) -> Any:
    """Turns what a test sent into what a user would pass: arrays become tensors."""
    import tensorflow as tf

    if isinstance(value, np.ndarray | np.generic):
        return tf.constant(value)
    if isinstance(value, Ragged):
        return tf.RaggedTensor.from_row_splits(from_wire(value.values), value.row_splits)
    if isinstance(value, Sparse):
        return tf.SparseTensor(value.indices, value.values, value.dense_shape)
    if isinstance(value, Named):
        made = collections.namedtuple(value.type_name, list(value.fields))
        return made(**_mapped(value.fields, from_wire))
    if isinstance(value, dict):
        return _mapped(value, from_wire)
    if isinstance(value, list | tuple):
        return type(value)(map(from_wire, value))
    return value


def _mapped(value: Mapping[Any, Any], change: Callable[[Any], Any]) -> dict[Any, Any]:
    return {key: change(item) for key, item in value.items()}
