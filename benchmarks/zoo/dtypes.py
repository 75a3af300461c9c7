"""Models whose inputs are no dense float32: ragged, sparse, strings, integers, halves, scalars.

In: nothing. Out: builders in the zoo. The invariant: an input keeps the dtype and the encoding
that its `Input` declares.
"""

from __future__ import annotations

from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from keras import layers

from .kinds import floats, integers, kind, texts


def _rows() -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_lengths(tf.constant(floats(6, 2)), [2, 0, 4])


def _cells() -> tf.SparseTensor:
    return tf.SparseTensor([[0, 1], [1, 2], [1, 3]], tf.constant([0.5, 2.0, -1.0]), [2, 4])


class MeanOfRows(keras.Model):
    """Takes rows of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, rows: Any) -> Any:
        return self.dense(tf.reduce_sum(rows, axis=1))


@kind(
    "rows: float32[?, 2], rows_1: int64[?] -> output_0: float32[?, 3]",
    lambda: (_rows(),),
    input_signature=[tf.RaggedTensorSpec([None, None, 2], tf.float32, ragged_rank=1)],
)
def ragged() -> Any:
    return MeanOfRows()


@kind(
    "cells: int64[?, 2], cells_1: float32[?], cells_2: int64[2] -> y: float32[?, 3]",
    lambda: (_cells(),),
)
def sparse() -> Any:
    cells = keras.Input((4,), sparse=True, name="cells")
    return keras.Model(cells, layers.Dense(3, name="y")(cells))


class Lengths(layers.Layer):
    """Computes with strings."""

    def call(self, words: Any) -> Any:
        upper = tf.strings.upper(words)
        return upper, tf.strings.length(words)

    def compute_output_spec(self, words: Any) -> Any:
        return (
            keras.KerasTensor(words.shape, "string"),
            keras.KerasTensor(words.shape, "int32"),
        )


@kind(
    "words: string[?, 2] -> lengths: string[?, 2], lengths_1: int32[?, 2]",
    lambda: (texts(["a", "bc"], ["déjà", ""]),),
)
def strings() -> Any:
    words = keras.Input((2,), dtype="string", name="words")
    return keras.Model(words, Lengths(name="lengths")(words))


@kind(
    "ids: int64[?, 3], small: uint8[?, 2] -> sum: float32[?, 2]",
    lambda: ([integers(9, 4, 3, dtype="int64"), integers(255, 4, 2, dtype="uint8")],),
)
def whole_numbers() -> Any:
    ids = keras.Input((3,), dtype="int64", name="ids")
    small = keras.Input((2,), dtype="uint8", name="small")
    table = layers.GlobalAveragePooling1D()(layers.Embedding(9, 2)(ids))
    return keras.Model([ids, small], layers.Add(name="sum")([table, layers.Rescaling(0.1)(small)]))


@kind(
    "flags: bool[?, 3], x: float32[?, 3] -> y: float32[?, 3]",
    lambda: ({"flags": floats(2, 3) > 0, "x": floats(2, 3)},),
)
def booleans() -> Any:
    flags, x = keras.Input((3,), dtype="bool", name="flags"), keras.Input((3,), name="x")
    chosen = keras.ops.where(keras.ops.logical_not(flags), x, 0.0)
    return keras.Model({"flags": flags, "x": x}, layers.Dense(3, name="y")(chosen))


@kind("x: float16[?, 4] -> y: float16[?, 3]", lambda: (floats(3, 4).astype("float16"),))
def half() -> Any:
    x = keras.Input((4,), dtype="float16", name="x")
    return keras.Model(x, layers.Dense(3, dtype="float16", name="y")(x))


@kind("x: bfloat16[?, 4] -> y: bfloat16[?, 3]", lambda: (floats(3, 4).astype(ml_dtypes.bfloat16),))
def bfloat16() -> Any:
    x = keras.Input((4,), dtype="bfloat16", name="x")
    return keras.Model(x, layers.Dense(3, dtype="bfloat16", name="y")(x))


@kind("x: float64[?, 4] -> y: float64[?, 3]", lambda: (floats(3, 4).astype("float64"),))
def double() -> Any:
    x = keras.Input((4,), dtype="float64", name="x")
    return keras.Model(x, layers.Dense(3, dtype="float64", name="y")(x))


@kind("level: float32[] -> y: float32[]", lambda: (np.float32(3.5),))
def zero_dimensional() -> Any:
    level = keras.Input(batch_shape=(), name="level")
    return keras.Model(level, layers.Rescaling(2.0, 1.0, name="y")(level))


@kind("level: float32[?] -> y: float32[?]", lambda: (floats(3),))
def batch_of_scalars() -> Any:
    level = keras.Input((), name="level")
    return keras.Model(level, layers.Activation("sigmoid", name="y")(level))


@kind(
    "image: uint8[?, 9, 9, 3] -> y: float32[?, 2]",
    lambda: (integers(256, 2, 9, 9, 3, dtype="uint8"),),
)
def image_bytes() -> Any:
    image = keras.Input((9, 9, 3), dtype="uint8", name="image")
    x = layers.Resizing(6, 6)(layers.CenterCrop(8, 8)(layers.Rescaling(1 / 255)(image)))
    x = layers.Conv2D(3, 3)(layers.RandomFlip()(layers.RandomRotation(0.2)(x)))
    return keras.Model(image, layers.Dense(2, name="y")(layers.Flatten()(x)))
