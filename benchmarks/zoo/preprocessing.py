"""Models that start from what people have: words, ids, numbers to be scaled or put into buckets.

In: nothing. Out: builders in the zoo. The invariant: what a layer has adapted to is inside the
model; no file is read when it is called.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from .kinds import floats, integers, kind, texts

_TOWNS = ["paris", "oslo", "rome"]
_SENTENCES = ["the cat sat", "the dog sat on the cat", "a bird"]


def _words() -> tuple[Any, ...]:
    return (texts(["oslo"], ["nowhere"], ["paris"]),)


def _numbers() -> tuple[Any, ...]:
    return (np.array([[20], [10], [99]], "int64"),)


def _texts() -> tuple[Any, ...]:
    return (texts(["the bird sat"], ["A cat, on a dog!"]),)


def _of_words(layer: Any) -> Any:
    word = keras.Input((1,), dtype="string", name="word")
    return keras.Model(word, layer(word))


def _of_texts(layer: Any) -> Any:
    layer.adapt(_SENTENCES)
    text = keras.Input((1,), dtype="string", name="text")
    return keras.Model(text, layer(text))


@kind("word: string[?, 1] -> index: int64[?, 1]", _words)
def string_lookup() -> Any:
    return _of_words(layers.StringLookup(vocabulary=_TOWNS, name="index"))


@kind("word: string[?, 1] -> index: int64[?, 1]", _words)
def string_lookup_adapted() -> Any:
    layer = layers.StringLookup(name="index", num_oov_indices=2, mask_token="")
    layer.adapt([*_TOWNS, "oslo", "rome", "rome"])
    return _of_words(layer)


@kind("word: string[?, 1] -> hot: int64[?, 4]", _words)
def string_lookup_one_hot() -> Any:
    return _of_words(layers.StringLookup(vocabulary=_TOWNS, output_mode="one_hot", name="hot"))


@kind("word: string[?, 1] -> weights: float32[?, 4]", _words)
def string_lookup_tf_idf() -> Any:
    return _of_words(
        layers.StringLookup(
            vocabulary=_TOWNS, idf_weights=[0.1, 0.2, 0.4], output_mode="tf_idf", name="weights"
        )
    )


@kind("index: int64[?, 1] -> word: string[?, 1]", lambda: (np.array([[0], [1], [3]], "int64"),))
def string_lookup_inverted() -> Any:
    index = keras.Input((1,), dtype="int64", name="index")
    lookup = layers.StringLookup(vocabulary=_TOWNS, invert=True, name="word")
    return keras.Model(index, lookup(index))


@kind("number: int64[?, 1] -> index: int64[?, 1]", _numbers)
def integer_lookup() -> Any:
    number = keras.Input((1,), dtype="int64", name="number")
    return keras.Model(number, layers.IntegerLookup(vocabulary=[10, 20, 30], name="index")(number))


@kind("number: int64[?, 1] -> hot: int64[?, 4]", _numbers)
def integer_lookup_multi_hot() -> Any:
    number = keras.Input((1,), dtype="int64", name="number")
    layer = layers.IntegerLookup(output_mode="multi_hot", name="hot")
    layer.adapt(np.array([[10], [20], [30], [20]]))
    return keras.Model(number, layer(number))


@kind("text: string[?, 1] -> tokens: int64[?, 5]", _texts, since="3.5")
def text_vectorization() -> Any:
    return _of_texts(layers.TextVectorization(output_sequence_length=5, name="tokens"))


@kind("text: string[?, 1] -> tokens: int64[?, ?]", _texts)
def text_vectorization_free_length() -> Any:
    return _of_texts(layers.TextVectorization(max_tokens=6, ngrams=2, name="tokens"))


@kind("text: string[?, 1] -> counts: float32[?, 10]", _texts)
def text_vectorization_tf_idf() -> Any:
    return _of_texts(
        layers.TextVectorization(
            max_tokens=10, output_mode="tf_idf", pad_to_max_tokens=True, name="counts"
        )
    )


@kind("text: string[?, 1] -> letters: int64[?, 8]", _texts, since="3.5")
def text_vectorization_of_letters() -> Any:
    layer = layers.TextVectorization(
        standardize=None, split="character", output_sequence_length=8, name="letters"
    )
    return _of_texts(layer)


@kind("text: string[?, 1] -> sentiment: float32[?, 1]", _texts)
def text_classifier() -> Any:
    tokens = layers.TextVectorization(output_sequence_length=6)
    tokens.adapt(_SENTENCES)
    return keras.Sequential(
        [
            keras.Input((1,), dtype="string", name="text"),
            tokens,
            layers.Embedding(tokens.vocabulary_size(), 4, mask_zero=True),
            layers.LSTM(3),
            layers.Dense(1, "sigmoid", name="sentiment"),
        ]
    )


@kind("word: string[?, 1] -> bin: int64[?, 1]", _words)
def hashing() -> Any:
    return _of_words(layers.Hashing(11, salt=[3, 5], name="bin"))


@kind(
    "a: string[?, 1], b: string[?, 1] -> crossed: int64[?, 1]",
    lambda: ([texts(["x"], ["y"]), texts(["v"], ["w"])],),
)
def hashed_crossing() -> Any:
    a, b = (keras.Input((1,), dtype="string", name=name) for name in "ab")
    return keras.Model([a, b], layers.HashedCrossing(7, name="crossed")((a, b)))


@kind("label: int32[?, 2] -> hot: float32[?, 4]", lambda: (integers(4, 3, 2),))
def category_encoding() -> Any:
    label = keras.Input((2,), dtype="int32", name="label")
    return keras.Model(label, layers.CategoryEncoding(4, "multi_hot", name="hot")(label))


@kind("x: float32[?, 2] -> bin: int32[?, 2]", lambda: (floats(4, 2),), since="3.5")
def discretization() -> Any:
    x = keras.Input((2,), name="x")
    layer = layers.Discretization(num_bins=4, epsilon=0.01, name="bin")
    layer.adapt(np.linspace(-1, 1, 50))
    return keras.Model(x, layer(x))


@kind("x: float32[?, 3] -> y: float32[?, 3]", lambda: (floats(4, 3),))
def normalization() -> Any:
    x = keras.Input((3,), name="x")
    layer = layers.Normalization(name="y")
    layer.adapt(floats(20, 3) * 5 + 2)
    return keras.Model(x, layer(x))


@kind("wave: float32[?, 400] -> mel: float32[?, 8, 26]", lambda: (floats(2, 400),))
def mel_spectrogram() -> Any:
    wave = keras.Input((400,), name="wave")
    layer = layers.MelSpectrogram(
        fft_length=64, sequence_stride=16, num_mel_bins=8, sampling_rate=800, max_freq=400,
        name="mel",
    )  # fmt: skip
    return keras.Model(wave, layer(wave))


@kind(
    "age: float32[?, 1], job: string[?, 1], town: string[?, 1] -> score: float32[?, 1]",
    lambda: (
        {
            "age": np.array([[30.0], [50.0]], "float32"),
            "job": texts(["cook"], ["spy"]),
            "town": texts(["oslo"], ["rome"]),
        },
    ),
)
def feature_space() -> Any:
    import tensorflow as tf

    space = keras.utils.FeatureSpace(
        features={
            "age": keras.utils.FeatureSpace.float_normalized(),
            "job": keras.utils.FeatureSpace.string_categorical(num_oov_indices=1),
            "town": keras.utils.FeatureSpace.string_hashed(num_bins=5),
        },
        crosses=[("job", "town")],
        output_mode="concat",
    )
    rows = {
        "age": np.array([20.0, 40.0, 60.0], "float32"),
        "job": texts("cook", "smith", "cook"),
        "town": texts("oslo", "rome", "oslo"),
    }
    space.adapt(tf.data.Dataset.from_tensor_slices(rows))
    encoded = space.get_encoded_features()
    return keras.Model(dict(space.get_inputs()), layers.Dense(1, name="score")(encoded))
