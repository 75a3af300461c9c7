"""Models with a memory: recurrent ones, and those that count, draw random numbers or average.

In: nothing. Out: builders in the zoo. The invariant: two calls in a row give the same in every
reader, each starting from the state at the export.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from .kinds import floats, integers, kind

_ONE = "x: float32[?, 6, 3] -> y: float32[?, 4]"


def _series() -> tuple[Any, ...]:
    return (floats(2, 6, 3),)


def _recurrent(layer: Any, batch: int | None = None) -> Any:
    x = keras.Input(batch_shape=(batch, 6, 3), name="x")
    return keras.Model(x, layer(x))


@kind(_ONE, _series)
def lstm() -> Any:
    return _recurrent(layers.LSTM(4, name="y"))


@kind("x: float32[?, 6, 3] -> y: float32[?, 6, 4]", _series)
def gru_of_every_step() -> Any:
    return _recurrent(layers.GRU(4, return_sequences=True, reset_after=False, name="y"))


@kind(_ONE, _series)
def simple_rnn_backwards() -> Any:
    return _recurrent(layers.SimpleRNN(4, go_backwards=True, unroll=True, name="y"))


@kind("x: float32[?, 6, 3] -> y: float32[?, 8]", _series)
def bidirectional_lstm() -> Any:
    return _recurrent(layers.Bidirectional(layers.LSTM(4), name="y"))


@kind("x: float32[?, 6, 3] -> y: float32[?, 6, 4], y_1: float32[?, 6, 4]", _series)
def bidirectional_gru_unmerged() -> Any:
    inner = layers.GRU(4, return_sequences=True)
    return _recurrent(layers.Bidirectional(inner, merge_mode=None, name="y"))


@kind("x: float32[?, 6, 3] -> y: float32[?, 2]", _series)
def stacked_cells() -> Any:
    return _recurrent(layers.RNN([layers.LSTMCell(4), layers.GRUCell(2)], name="y"))


class MinimalCell(layers.Layer):
    """A recurrent cell of our own, with two states."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.state_size, self.output_size = units, [units, units], units

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, self.units), name="recurrent")

    def call(self, inputs: Any, states: Any) -> Any:
        first, second = states
        h = keras.ops.tanh(
            keras.ops.matmul(inputs, self.kernel) + keras.ops.matmul(first, self.recurrent)
        )
        return h + second, [h, second + 1.0]


@kind("x: float32[?, 6, 3] -> y: float32[?, 4], y_1: float32[?, 4], y_2: float32[?, 4]", _series)
def custom_cell() -> Any:
    return _recurrent(layers.RNN(MinimalCell(4), return_state=True, name="y"))


@kind("x: float32[2, 6, 3] -> y: float32[2, 4]", _series, calls=2)
def stateful_lstm() -> Any:
    return _recurrent(layers.LSTM(4, stateful=True, name="y"), batch=2)


@kind("x: float32[2, 6, 3] -> y: float32[2, 8]", _series, calls=2)
def stateful_bidirectional_gru() -> Any:
    return _recurrent(layers.Bidirectional(layers.GRU(4, stateful=True), name="y"), batch=2)


@kind(
    "x: float32[?, 6, 3], h: float32[?, 4] -> y: float32[?, 6, 4], y_1: float32[?, 4]",
    lambda: ([floats(2, 6, 3), floats(2, 4)],),
)
def state_from_outside() -> Any:
    x, h = keras.Input((6, 3), name="x"), keras.Input((4,), name="h")
    layer = layers.GRU(4, return_sequences=True, return_state=True, name="y")
    return keras.Model([x, h], layer(x, initial_state=h))


@kind("film: float32[?, 3, 5, 5, 2] -> y: float32[?, 3, 3, 2]", lambda: (floats(2, 3, 5, 5, 2),))
def convolutional_lstm() -> Any:
    film = keras.Input((3, 5, 5, 2), name="film")
    return keras.Model(film, layers.ConvLSTM2D(2, 3, name="y")(film))


@kind("ids: int32[?, 6] -> y: float32[?, 4]", lambda: (integers(4, 3, 6),))
def masked_embedding() -> Any:
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(4, 3, mask_zero=True)(ids)
    return keras.Model(ids, layers.LSTM(4, name="y")(layers.Dense(3)(x)))


@kind("x: float32[?, 6, 3] -> y: float32[?, 6, 4]", _series)
def time_distributed() -> Any:
    return _recurrent(layers.TimeDistributed(layers.Dense(4), name="y"))


@kind("frames: float32[?, 4, 6, 6, 1] -> y: float32[?, 3]", lambda: (floats(2, 4, 6, 6, 1),))
def time_distributed_sequential() -> Any:
    frames = keras.Input((4, 6, 6, 1), name="frames")
    steps = [layers.Conv2D(2, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten()]
    x = layers.TimeDistributed(keras.Sequential(steps))(frames)
    return keras.Model(frames, layers.LSTM(3, name="y")(x))


@kind(
    "x: float32[?, 6, 3] -> y: float32[?, 4]",
    lambda: (floats(2, 6, 3) * np.float32([[1], [0]] * 3),),
)
def masking() -> Any:
    x = keras.Input((6, 3), name="x")
    return keras.Model(x, layers.GRU(4, name="y")(layers.Masking(0.0)(x)))


class Noise(layers.Layer):
    """Draws random numbers in inference too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


@kind("x: float32[?, 3] -> y: float32[?, 3]", lambda: (floats(4, 3),), calls=2)
def random_numbers() -> Any:
    x = keras.Input((3,), name="x")
    return keras.Model(x, Noise(name="y")(x))


class Counter(layers.Layer):
    """Counts its calls."""

    def build(self, input_shape: Any) -> None:
        self.count = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="count"
        )

    def call(self, x: Any) -> Any:
        self.count.assign_add(1)
        return x * keras.ops.cast(self.count, x.dtype)


@kind("x: float32[?, 3] -> y: float32[?, 3]", lambda: (floats(4, 3),), calls=2)
def counter() -> Any:
    x = keras.Input((3,), name="x")
    return keras.Model(x, Counter(name="y")(x))


@kind("x: float32[?, 4] -> y: float32[?, 4]", lambda: (floats(3, 4),), calls=2)
def trained_batch_statistics() -> Any:
    x = keras.Input((4,), name="x")
    h = layers.Dropout(0.5)(layers.GaussianNoise(0.5)(layers.Dense(4)(x)))
    model = keras.Model(x, layers.BatchNormalization(name="y")(h))
    model.compile("adam", "mse")
    model.fit(floats(32, 4) * 3 + 1, floats(32, 4), verbose=0)
    return model


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(3, 4),), calls=2)
def spectral_normalization() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.SpectralNormalization(layers.Dense(3), name="y")(x))
