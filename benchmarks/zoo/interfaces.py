"""Ways to declare what a model takes and gives: symbolic, sequential, subclassed, from files.

In: nothing. Out: builders in the zoo. The invariant: every input and output has a name that its
author chose, or the note of its kind says which rule names it.
"""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from .kinds import floats, integers, kind

Scores = collections.namedtuple("Scores", ["low", "high"])
_PACKAGE = "zoo"


def _pair() -> tuple[Any, ...]:
    return ([floats(3, 4), floats(3, 2)],)


# -- symbolic -------------------------------------------------------------------------------------


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(3, 4),))
def functional_single() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(3, name="y")(layers.Dense(5, "relu")(x)))


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(3, 4),))
def functional_list_of_one() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model([x], [layers.Dense(3, name="y")(x)])


@kind(
    "zebra: float32[?, 4], ant: float32[?, 2] -> right: float32[?, 2], left: float32[?, 1]", _pair
)
def functional_list() -> Any:
    zebra, ant = keras.Input((4,), name="zebra"), keras.Input((2,), name="ant")
    both = layers.Concatenate()([zebra, ant])
    outputs = [layers.Dense(2, name="right")(both), layers.Dense(1, name="left")(ant)]
    return keras.Model([zebra, ant], outputs)


@kind(
    "age: int32[?, 1], pixels: float32[?, 4] -> logits: float32[?, 2], scores: float32[?, 2]",
    lambda: ({"pixels": floats(3, 4), "age": integers(90, 3, 1)},),
)
def functional_dict() -> Any:
    pixels = keras.Input((4,), name="pixels")
    age = keras.Input((1,), dtype="int32", name="age")
    both = layers.Concatenate()([pixels, keras.ops.cast(age, "float32")])
    logits = layers.Dense(2)(both)
    outputs = {"scores": layers.Softmax()(logits), "logits": logits}
    return keras.Model({"pixels": pixels, "age": age}, outputs)


@kind(
    "weight: float32[?, 1], left: float32[?, 4], right: float32[?, 4] "
    "-> mean: float32[?, 4], gap: float32[?, 4]",
    lambda: ({"pair": [floats(3, 4), floats(3, 4) + 2], "meta": {"weight": floats(3, 1)}},),
)
def functional_nested() -> Any:
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    weight = keras.Input((1,), name="weight")
    mean = layers.Average(name="mean")([left, right])
    gap = layers.Multiply(name="gap")([layers.Subtract()([left, right]), weight])
    return keras.Model({"pair": [left, right], "meta": {"weight": weight}}, (mean, gap))


@keras.saving.register_keras_serializable(package=_PACKAGE)
class AddIfThere(layers.Layer):
    """Adds a second tensor where there is one."""

    def call(self, x: Any, extra: Any = None) -> Any:
        return x if extra is None else x + extra


def _optional() -> Any:
    x, extra = keras.Input((4,), name="x"), keras.Input((4,), name="extra", optional=True)
    return keras.Model({"x": x, "extra": extra}, AddIfThere(name="y")(x, extra))


@kind(
    "extra: float32[?, 4], x: float32[?, 4] -> y: float32[?, 4]",
    lambda: ({"x": floats(3, 4), "extra": floats(3, 4) + 1},),
)
def functional_optional_given() -> Any:
    return _optional()


@kind("x: float32[?, 4] -> y: float32[?, 4]", lambda: (floats(3, 4),))
def functional_shared_input() -> Any:
    x = keras.Input((4,), name="x")
    shared = layers.Dense(4, "tanh")
    return keras.Model(x, layers.Add(name="y")([shared(x), shared(shared(x)), x]))


@kind(
    "used: float32[?, 4], unused: float32[?, 2] -> y: float32[?, 2]",
    _pair,
)
def functional_unused_input() -> Any:
    used, unused = keras.Input((4,), name="used"), keras.Input((2,), name="unused")
    return keras.Model([used, unused], layers.Dense(2, name="y")(used))


@kind(
    "x: float32[?, 5, 2] -> lstm: float32[?, 3], lstm_1: float32[?, 3], lstm_2: float32[?, 3]",
    lambda: (floats(3, 5, 2),),
)
def functional_several_outputs_of_one_layer() -> Any:
    x = keras.Input((5, 2), name="x")
    return keras.Model(x, layers.LSTM(3, return_state=True, name="lstm")(x))


@kind("x: float32[?, 4] -> x: float32[?, 4], y: float32[?, 2]", lambda: (floats(3, 4),))
def functional_output_that_is_an_input() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, [x, layers.Dense(2, name="y")(x)])


@kind("x: float32[?, 4] -> y: float32[?, 2], y_1: float32[?, 2]", lambda: (floats(3, 4),))
def functional_output_twice() -> Any:
    x = keras.Input((4,), name="x")
    y = layers.Dense(2, name="y")(x)
    return keras.Model(x, [y, y])


@kind("x: float32[?, 4] -> head: float32[?, 2]", lambda: (floats(3, 4),))
def functional_models_in_models() -> Any:
    inner_input = keras.Input((4,), name="inner_input")
    inner = keras.Model(inner_input, layers.Dense(4, "tanh")(inner_input), name="inner")
    middle = keras.Sequential([keras.Input((4,)), inner, layers.Dense(4)], name="middle")
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(2, name="head")(inner(middle(inner(x)))))


@kind(
    "a_b: float32[?, 4], my_input_1: float32[?, 2] -> class_: float32[?, 2], top_k: float32[?, 1]",
    lambda: ({"my-input.1": floats(3, 2), "a b": floats(3, 4)},),
)
def functional_invalid_identifiers() -> Any:
    first, second = keras.Input((2,), name="my-input.1"), keras.Input((4,), name="a b")
    both = layers.Concatenate(name="con-cat")([first, second])
    outputs = {"class ": layers.Dense(2)(both), "top-k": layers.Dense(1)(both)}
    return keras.Model({"my-input.1": first, "a b": second}, outputs)


@kind("lambda_: float32[?, 4] -> class: float32[?, 2]", lambda: (floats(3, 4),))
def functional_keyword_of_python() -> Any:
    wavelength = keras.Input((4,), name="lambda")
    return keras.Model(wavelength, layers.Dense(2, name="class")(wavelength))


class Scaled(keras.Model):
    """Functional, with a step of training, methods and state of its own."""

    def __init__(self) -> None:
        x = keras.Input((4,), name="x")
        h = layers.Dense(3, "relu", name="h")(x)
        super().__init__(x, {"features": h, "score": layers.Dense(1)(h)})
        self.seen = tf.Variable(0)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x, training=True)["score"] - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.seen.assign_add(1)
        return {"loss": loss}

    def features(self, x: Any) -> Any:
        return self(x)["features"]


@kind(
    "x: float32[?, 4] -> features: float32[?, 3], score: float32[?, 1]",
    lambda: (floats(3, 4),),
)
def functional_with_its_own_training() -> Any:
    model = Scaled()
    model.compile("sgd")
    model.fit(floats(4, 4), floats(4, 1), verbose=0)
    return model


@kind("x: float32[?, 4] -> y: float32[?, 2]", lambda: (floats(3, 4),))
def functional_around_an_artifact() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(_Doubling(), folder)
        artifact = layers.TFSMLayer(folder, call_endpoint="serving_default")
    x = keras.Input((4,), name="x")
    doubled = artifact(x)["doubled"]
    return keras.Model(x, layers.Dense(2, name="y")(doubled))


class _Doubling(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"doubled": self.factor * x}


@kind(
    "image: float32[?, ?, ?, 3] -> pooled: float32[?, 4]",
    lambda: (floats(2, 9, 7, 3),),
)
def functional_free_dimensions() -> Any:
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu")(image)
    return keras.Model(image, layers.GlobalMaxPooling2D(name="pooled")(x))


@kind("x: float32[2, 4] -> y: float32[2, 3]", lambda: (floats(2, 4),))
def functional_fixed_batch() -> Any:
    x = keras.Input(batch_shape=(2, 4), name="x")
    return keras.Model(x, layers.Dense(3, name="y")(x))


@kind("x: float32[?, 6] -> y: float32[?, 3]", lambda: (floats(3, 6),))
def functional_operations() -> Any:
    x = keras.Input((6,), name="x")
    rows = keras.ops.reshape(x, (-1, 2, 3))
    mixed = keras.ops.einsum("bij,bik->bjk", rows, rows) / 3.0 + keras.ops.sin(rows[:, :1])
    return keras.Model(x, layers.Identity(name="y")(keras.ops.logsumexp(mixed, axis=(1,))))


# -- sequential -----------------------------------------------------------------------------------


@kind("x: float32[?, 4] -> y: float32[?, 2]", lambda: (floats(3, 4),))
def sequential() -> Any:
    return keras.Sequential(
        [keras.Input((4,), name="x"), layers.Dense(3, "gelu"), layers.Dense(2, name="y")]
    )


@kind("input_layer: float32[?, 4] -> y: float32[?, 2]", lambda: (floats(3, 4),))
def sequential_built_by_a_shape() -> Any:
    model = keras.Sequential([layers.Dense(3), layers.Dense(2, name="y")])
    model.build((None, 4))
    return model


@kind("x: float32[?, 4] -> tail: float32[?, 2]", lambda: (floats(3, 4),))
def sequential_in_sequential() -> Any:
    head = keras.Sequential([layers.Dense(3, "relu"), layers.Dropout(0.5)], name="head")
    tail = keras.Sequential([layers.Dense(3, "relu"), layers.Dense(2)], name="tail")
    return keras.Sequential([keras.Input((4,), name="x"), head, tail])


# -- subclassed -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Classifier(keras.Model):
    """One argument, one result."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden, self.dropout = layers.Dense(5, "relu"), layers.Dropout(0.9)
        self.head = layers.Dense(2)

    def call(self, features: Any, training: bool = False) -> Any:
        return self.head(self.dropout(self.hidden(features), training=training))


@kind("features: float32[?, 4] -> output_0: float32[?, 2]", lambda: (floats(3, 4),), called=True)
def subclassed() -> Any:
    return Classifier()


class Halves(keras.Model):
    """Computes with integers."""

    def call(self, counts: Any) -> Any:
        return {"half": counts // 2, "odd": keras.ops.equal(counts % 2, 1)}


@kind(
    "counts: int32[?, 2] -> half: int32[?, 2], odd: bool[?, 2]",
    lambda: (integers(100, 3, 2),),
    called=True,
)
def subclassed_integers() -> Any:
    return Halves()


@kind(
    "counts: int32[?, 2] -> half: int32[?, 2], odd: bool[?, 2]",
    lambda: (integers(100, 3, 2),),
)
def subclassed_known_by_predict() -> Any:
    model = Halves()
    model.predict(integers(100, 3, 2), verbose=0)
    return model


class Interaction(keras.Model):
    """Takes several arguments of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dense = layers.Embedding(7, 4), layers.Dense(2)

    def call(self, ids: Any, values: Any, mask: Any = None, training: bool = False) -> Any:
        x = self.table(ids) * values
        x = x if mask is None else keras.ops.where(mask[:, None], x, 0.0)
        return self.dense(x)


@kind(
    "ids: int64[?], values: float32[?, 4] -> output_0: float32[?, 2]",
    lambda: (integers(7, 3, dtype="int64"), floats(3, 4)),
    called=True,
)
def subclassed_several_arguments() -> Any:
    return Interaction()


@kind(
    "ids: int64[?], values: float32[?, 4], mask: bool[?] -> output_0: float32[?, 2]",
    lambda: (integers(7, 3, dtype="int64"), floats(3, 4), np.array([True, False, True])),
    called=True,
)
def subclassed_optional_argument() -> Any:
    return Interaction()


class Sum(keras.Model):
    """Takes as many tensors as it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)
        self.dense.build((None, 4))  # Keras cannot build what takes any number of tensors

    def call(self, *parts: Any) -> Any:
        return self.dense(sum(parts))


@kind(
    "parts_0: float32[?, 4], parts_1: float32[?, 4] -> output_0: float32[?, 2]",
    lambda: (floats(3, 4), floats(3, 4)),
    called=True,
)
def subclassed_any_number_of_arguments() -> Any:
    return Sum()


class Prices(keras.Model):
    """Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.towns, self.head = layers.Embedding(9, 3), layers.Dense(1)

    def call(self, features: Any) -> Any:
        parts = [self.towns(features["town"]), features["rooms"]]
        return {"price": self.head(keras.ops.concatenate(parts, axis=-1))}


@kind(
    "rooms: float32[?, 2], town: int32[?] -> price: float32[?, 1]",
    lambda: ({"town": integers(9, 3), "rooms": floats(3, 2)},),
    called=True,
)
def subclassed_dict() -> Any:
    return Prices()


@kind(
    "rooms: float32[?, 2], town: int32[?] -> price: float32[?, 1]",
    lambda: ({"town": integers(9, 4), "rooms": floats(4, 2)},),
)
def subclassed_known_by_fit() -> Any:
    model = Prices()
    model.compile("sgd", {"price": "mse"})
    data = {"town": integers(9, 4), "rooms": floats(4, 2)}
    model.fit(data, {"price": floats(4, 1)}, batch_size=2, verbose=0)
    return model


class Difference(keras.Model):
    """Takes a list."""

    def call(self, pair: Any) -> Any:
        return [pair[0] - pair[1], pair[1]]


@kind(
    "pair_0: float32[?, 4], pair_1: float32[?, 4] "
    "-> output_0: float32[?, 4], output_1: float32[?, 4]",
    lambda: ([floats(3, 4), floats(3, 4) * 2],),
    called=True,
)
def subclassed_list() -> Any:
    return Difference()


class Ranking(keras.Model):
    """Takes nested arguments and gives a namedtuple."""

    def call(self, features: Any) -> Any:
        first, second = features["bounds"]
        centre = features["centre"]["value"]
        return Scores(keras.ops.minimum(first, second) - centre, keras.ops.maximum(first, second))


@kind(
    "bounds_0: float32[?, 4], bounds_1: float32[?, 4], centre_value: float32[?, 4] "
    "-> low: float32[?, 4], high: float32[?, 4]",
    lambda: ({"bounds": (floats(3, 4), -floats(3, 4)), "centre": {"value": floats(3, 4)}},),
    called=True,
)
def subclassed_nested() -> Any:
    return Ranking()


class ByShapes(keras.Model):
    """Is built from a dict of shapes and never called."""

    def build(self, input_shape: Any) -> None:
        self.left = self.add_weight(shape=(input_shape["left"][-1], 2), name="left")
        self.right = self.add_weight(shape=(input_shape["right"][-1], 2), name="right")

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs["left"], self.left) + keras.ops.matmul(
            inputs["right"], self.right
        )


@kind(
    "left: float32[?, 3], right: float32[?, 4] -> output_0: float32[?, 2]",
    lambda: ({"left": floats(3, 3), "right": floats(3, 4)},),
)
def subclassed_built_by_a_dict_of_shapes() -> Any:
    model = ByShapes()
    model.build({"left": (None, 3), "right": (None, 4)})
    return model


class Autoencoder(keras.Model):
    """A symbolic model in a class of its own."""

    def __init__(self) -> None:
        x = keras.Input((4,), name="x")
        code = layers.Dense(2, name="code")(x)
        super().__init__(x, [layers.Dense(4, name="decoded")(code), code])


@kind("x: float32[?, 4] -> decoded: float32[?, 4], code: float32[?, 2]", lambda: (floats(3, 4),))
def subclassed_functional() -> Any:
    return Autoencoder()


class Towers(keras.Model):
    """Holds models and layers in lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = {
            name: keras.Sequential([layers.Dense(3, "relu"), layers.Dense(2)])
            for name in ("first", "second")
        }
        self.heads = [layers.Dense(1), layers.Dense(1)]

    def call(self, x: Any) -> Any:
        parts = [self.towers[name](x) for name in sorted(self.towers)]
        return tuple(head(part) for head, part in zip(self.heads, parts, strict=True))


@kind(
    "x: float32[?, 4] -> output_0: float32[?, 1], output_1: float32[?, 1]",
    lambda: (floats(3, 4),),
    called=True,
)
def subclassed_with_containers() -> Any:
    return Towers()


# -- layers alone ---------------------------------------------------------------------------------


@kind("inputs: float32[?, 4] -> output_0: float32[?, 2]", lambda: (floats(3, 4),), called=True)
def layer() -> Any:
    return layers.Dense(2)


@kind(
    "query: float32[?, 3, 4], value: float32[?, 5, 4] -> output_0: float32[?, 3, 4]",
    lambda: (floats(2, 3, 4), floats(2, 5, 4)),
    called=True,
)
def layer_with_several_arguments() -> Any:
    return layers.MultiHeadAttention(2, 3)


class Residual(layers.Layer):
    """A layer made of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(4)])
        self.norm = layers.BatchNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(x + self.inner(x), training=training)


@kind(
    "x: float32[?, 4] -> output_0: float32[?, 4]",
    lambda: (floats(3, 4),),
    input_signature=[tf.TensorSpec([None, 4], tf.float32)],
)
def layer_never_called() -> Any:
    return Residual()


# -- from files -----------------------------------------------------------------------------------


def _through_a_file(model: Any, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        model.save(path)
        return keras.models.load_model(path)


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(3, 4),))
def loaded_from_keras() -> Any:
    return _through_a_file(functional_single(), "model.keras")


@kind(
    "age: int32[?, 1], pixels: float32[?, 4] -> logits: float32[?, 2], scores: float32[?, 2]",
    lambda: ({"pixels": floats(3, 4), "age": integers(90, 3, 1)},),
)
def loaded_from_keras_with_dicts() -> Any:
    return _through_a_file(functional_dict(), "model.keras")


@kind("features: float32[?, 4] -> output_0: float32[?, 2]", lambda: (floats(3, 4),))
def loaded_subclassed() -> Any:
    model = Classifier()
    model(floats(3, 4))
    return _through_a_file(model, "model.keras")


@kind("x: float32[?, 4] -> y: float32[?, 2]", lambda: (floats(3, 4),))
def loaded_from_h5() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _through_a_file(sequential(), "model.h5")


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(3, 4),))
def cloned() -> Any:
    return keras.models.clone_model(functional_single())
