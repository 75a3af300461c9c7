"""The models that are measured, with random weights.

In: a name from `MODELS`, or `zoo/KIND`. Out: a new Keras model, and data to train it on. The
invariant: a model is made by Keras layers alone and is the same in structure each time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from zoo import KINDS, Kind

# Those of BERT-base (uncased), with a shorter text.
_LAYERS, _WIDTH, _HEADS, _HIDDEN = 12, 768, 12, 3072
_VOCABULARY, _TEXT_LENGTH = 30522, 128

# A learning rate at which random weights change, but not to NaN.
_LEARNING_RATE = 1e-9


class Positions(keras.layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, x: Any) -> Any:
        return x + self.table


def encoder() -> keras.Model:
    """A transformer encoder of BERT's size."""
    tokens = keras.Input((_TEXT_LENGTH,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(_VOCABULARY, _WIDTH, name="embedding")(tokens)
    x = Positions(name="positions")(x)
    x = keras.layers.LayerNormalization(epsilon=1e-12, name="norm")(x)
    for index in range(_LAYERS):
        x = _block(x, f"block{index}")
    pooled = keras.layers.Dense(_WIDTH, "tanh", name="pooled")(x[:, 0])
    return keras.Model(tokens, pooled, name="encoder")


def _block(x: Any, name: str) -> Any:
    layers = keras.layers
    attention = layers.MultiHeadAttention(_HEADS, _WIDTH // _HEADS, name=f"{name}_attention")
    x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm1")(x + attention(x, x))
    hidden = layers.Dense(_HIDDEN, "gelu", name=f"{name}_hidden")(x)
    out = layers.Dense(_WIDTH, name=f"{name}_out")(hidden)
    return layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm2")(x + out)


def _application(name: str) -> Callable[[], keras.Model]:
    return lambda: getattr(keras.applications, name)(weights=None)


MODELS: dict[str, Callable[[], keras.Model]] = {
    "MobileNetV2": _application("MobileNetV2"),
    "ResNet50": _application("ResNet50"),
    "EfficientNetB0": _application("EfficientNetB0"),
    "EfficientNetB7": _application("EfficientNetB7"),
    "Encoder12": encoder,
}


# Before the name of a kind of the zoo.
ZOO = "zoo/"

_KIND_OF: weakref.WeakKeyDictionary[keras.Model, Kind] = weakref.WeakKeyDictionary()


def build(name: str) -> keras.Model:
    """A new model; layer names count from one again."""
    if name.startswith(ZOO):
        kinds = _measurable()
        kind = kinds.get(name.removeprefix(ZOO))
        if kind is None:
            raise SystemExit(f"{name!r} is none of {', '.join(ZOO + other for other in kinds)}")
        model = kind.make()
        _KIND_OF[model] = kind
        return model
    keras.utils.clear_session(free_memory=False)
    return MODELS[name]()


def _measurable() -> dict[str, Kind]:
    """The architectures that every contender can export and train."""
    return {
        name: kind
        for name, kind in KINDS.items()
        if kind.family == "architectures"
        and kind.available
        and not kind.called
        and kind.input_signature is None
        and kind.calls == 1
        and all(text.startswith("float32[?") for text in kind.outputs.values())
        and all(text.startswith(("float32[?", "int32[?")) for text in kind.inputs.values())
    }


def compile_model(model: keras.Model) -> None:
    """Readies a model for `fit`.

    Without XLA: to compile a deep model would take minutes, and callbacks don't run inside it.
    """
    model.compile(keras.optimizers.SGD(_LEARNING_RATE), "mse", jit_compile=False)


def batch(model: keras.Model) -> tuple[Any, Any]:
    """One example and its target; of the zoo, the examples of the kind."""
    kind = _KIND_OF.get(model)
    if kind is not None:
        (examples,) = kind.data()
        return examples, tf.nest.map_structure(np.zeros_like, model(examples))
    (x,), (y,) = model.inputs, model.outputs
    dtype = np.dtype(x.dtype)
    inputs = np.random.default_rng(0).integers(0, 255, (1, *x.shape[1:])).astype(dtype)
    return inputs, np.zeros((1, *y.shape[1:]), "float32")
