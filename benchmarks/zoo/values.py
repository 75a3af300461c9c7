"""Models whose weights are not plain float32 matrices of their own: shared, small, elsewhere.

In: nothing. Out: builders in the zoo. The invariant: what is computed with is what the live model
computes with, in its precision.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from .kinds import floats, integers, kind

_ONE = "x: float32[?, 4] -> y: float32[?, 3]"


def _rows() -> tuple[Any, ...]:
    return (floats(3, 4),)


def _ids() -> tuple[Any, ...]:
    return (integers(7, 2, 5),)


@kind(_ONE, _rows)
def mixed_float16() -> Any:
    x = keras.Input((4,), name="x")
    h = layers.BatchNormalization(dtype="mixed_float16")(layers.Dense(5, dtype="mixed_float16")(x))
    return keras.Model(x, layers.Dense(3, name="y", dtype="float32")(h))


@kind("x: float32[?, 4] -> y: bfloat16[?, 3]", _rows)
def mixed_bfloat16() -> Any:
    x = keras.Input((4,), name="x")
    h = layers.LayerNormalization(dtype="mixed_bfloat16")(x)
    return keras.Model(x, layers.Dense(3, name="y", dtype="mixed_bfloat16")(h))


@kind(_ONE, _rows)
def low_rank_dense() -> Any:
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name="y")])
    model.layers[-1].enable_lora(2)
    return model


@kind("ids: int32[?, 5] -> y: float32[?, 5, 3]", _ids)
def low_rank_embedding() -> Any:
    ids = keras.Input((5,), dtype="int32", name="ids")
    table = layers.Embedding(7, 4)
    model = keras.Model(ids, layers.EinsumDense("bte,ef->btf", (None, 3), name="y")(table(ids)))
    table.enable_lora(2)
    model.layers[-1].enable_lora(2)
    return model


def _quantized(model: Any, mode: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of every layer that has nothing to quantize
        model.quantize(mode)
    return model


@kind("x: float32[?, 8] -> y: float32[?, 3]", lambda: (floats(3, 8),))
def quantized_dense() -> Any:
    model = keras.Sequential(
        [keras.Input((8,), name="x"), layers.Dense(16, "relu"), layers.Dense(3, name="y")]
    )
    return _quantized(model, "int8")


@kind("ids: int32[?, 5] -> y: float32[?, 5, 3]", _ids)
def quantized_embedding() -> Any:
    ids = keras.Input((5,), dtype="int32", name="ids")
    h = layers.Embedding(7, 4)(ids)
    model = keras.Model(ids, layers.EinsumDense("bte,ef->btf", (None, 3), name="y")(h))
    return _quantized(model, "int8")


@kind("x: float32[?, 8] -> y: float32[?, 3]", lambda: (floats(3, 8),))
def quantized_with_low_rank() -> Any:
    model = keras.Sequential([keras.Input((8,), name="x"), layers.Dense(3, name="y")])
    model.layers[-1].enable_lora(2)
    return _quantized(model, "int8")


@kind("x: float32[?, 8] -> y: float32[?, 3]", lambda: (floats(3, 8),), since="3.11")
def quantized_to_four_bits() -> Any:
    model = keras.Sequential(
        [keras.Input((8,), name="x"), layers.Dense(16, "relu"), layers.Dense(3, name="y")]
    )
    return _quantized(model, "int4")


class TiedLogits(layers.Layer):
    """Projects by the table of an embedding that stands elsewhere."""

    def __init__(self, table: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.table.embeddings))


@kind("ids: int32[?, 5] -> logits: float32[?, 5, 7]", _ids)
def tied_weights() -> Any:
    ids = keras.Input((5,), dtype="int32", name="ids")
    table = layers.Embedding(7, 4)
    return keras.Model(ids, TiedLogits(table, name="logits")(layers.Dense(4)(table(ids))))


class Affine(tf.Module):
    """A plain module around variables of Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = keras.Variable(floats(4, 3), name="scale")
        self.shifts = [keras.Variable(floats(3) + 1, name="shift", trainable=False)]
        self.dense = layers.Dense(3)
        self.dense.build((None, 3))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def forward(self, x: Any) -> Any:
        return {"y": self.dense(tf.matmul(x, self.scale.value) + self.shifts[0].value)}


@kind("x: float32[?, 4] -> y: float32[?, 3]", _rows, live=lambda made, x: made.forward(x))
def variables_in_a_module() -> Any:
    return Affine()


@kind("x: float32[?, 4] -> y: float32[?, 4]", _rows)
def lambda_layer() -> Any:
    x = keras.Input((4,), name="x")
    h = layers.Lambda(lambda t: tf.nn.relu6(t) * 2)(x)
    return keras.Model(
        x, layers.Lambda(lambda t, power: t**power, arguments={"power": 2}, name="y")(h)
    )


@kind("x: float32[?, 4] -> y: float32[?, 4]", _rows)
def custom_gradient() -> Any:
    @tf.custom_gradient
    def rounded(t: Any) -> Any:
        return tf.round(t * 4) / 4, lambda upstream: upstream

    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Lambda(rounded, name="y")(layers.Dense(4, "silu")(x)))


@kind(
    "x: float32[?, 3, 4], mask: bool[?, 3] -> y: float32[?, 3, 4], y_1: float32[?, 2, 3, 3]",
    lambda: ([floats(2, 3, 4), floats(2, 3) > -0.5],),
)
def multi_head_attention() -> Any:
    x, mask = keras.Input((3, 4), name="x"), keras.Input((3,), dtype="bool", name="mask")
    attention = layers.MultiHeadAttention(2, 3, name="y")
    together = attention(
        x, x, attention_mask=mask[:, None, :], return_attention_scores=True, use_causal_mask=True
    )
    return keras.Model([x, mask], list(together))


@kind("x: float32[?, 6, 4] -> y: float32[?, 6, 4]", lambda: (floats(2, 6, 4),))
def grouped_query_attention() -> Any:
    x = keras.Input((6, 4), name="x")
    return keras.Model(x, layers.GroupQueryAttention(3, 4, 2, name="y")(x, x))


@kind("x: float32[?, 8, 8, 4] -> y: float32[?, 3]", lambda: (floats(2, 8, 8, 4),))
def many_layers() -> Any:
    x = keras.Input((8, 8, 4), name="x")
    h = layers.SeparableConv2D(6, 3, padding="same", activation="swish")(x)
    h = layers.DepthwiseConv2D(3, activation="hard_swish")(layers.PReLU()(h))
    h = layers.GroupNormalization(2)(layers.Conv2DTranspose(4, 3, strides=2)(h))
    h = layers.UnitNormalization()(layers.SpatialDropout2D(0.5)(layers.LeakyReLU()(h)))
    h = layers.AveragePooling2D(2)(layers.ZeroPadding2D()(layers.Cropping2D(1)(h)))
    return keras.Model(x, layers.Dense(3, "softmax", name="y")(layers.GlobalAveragePooling2D()(h)))


class Loop(layers.Layer):
    """Control flow that depends on the data."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], input_shape[-1]), name="kernel")

    def call(self, x: Any) -> Any:
        def step(count: Any, h: Any) -> Any:
            return count + 1, keras.ops.tanh(keras.ops.matmul(h, self.kernel))

        _, h = keras.ops.while_loop(
            lambda count, h: keras.ops.logical_and(count < 5, keras.ops.sum(h) < 100.0),
            step,
            (0, x),
        )
        return keras.ops.cond(keras.ops.sum(x) > 0, lambda: h, lambda: -h)


@kind("x: float32[?, 4] -> y: float32[?, 4]", _rows)
def control_flow() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, Loop(name="y")(x))
