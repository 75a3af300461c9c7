"""Promises of `staleness`: an exporter notices what would make its artifact wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke

F = np.float32


class Tuned(keras.layers.Layer):
    """A layer that holds a constant and a table."""

    def __init__(self) -> None:
        super().__init__(name="y")
        self.factor = tf.constant(2.0)
        self.table = table({1: 10})

    def call(self, x: Any) -> Any:
        found = self.table.lookup(keras.ops.cast(x, "int64"))
        return x * self.factor + keras.ops.cast(found, "float32")


def table(pairs: dict[int, int]) -> Any:
    keys, values = list(pairs), list(pairs.values())
    initializer = tf.lookup.KeyValueTensorInitializer(keys, values, tf.int64, tf.int64)
    return tf.lookup.StaticHashTable(initializer, 0)


class Held(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.heads = [keras.layers.Dense(3, name="head")]

    def call(self, x: Any) -> Any:
        return {"y": self.heads[0](x)}


def single(layer: Any, *shape: int, dtype: str = "float32") -> keras.Model:
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, layer(x))


def dense() -> tuple[Any, Any]:
    return single(keras.layers.Dense(3, name="y"), 2), F([[1, 2]])


def held() -> tuple[Any, Any]:
    model, x = ke.with_export(Held()), F([[1, 2]])
    model(x)
    return model, x


def stack() -> tuple[Any, Any]:
    layers = [keras.Input((2,), name="x"), keras.layers.Dense(3, name="y")]
    return keras.Sequential(layers), F([[1, 2]])


def replace_last(model: Any) -> None:
    model.pop()
    model.add(keras.layers.Dense(3, name="y"))


def replace_head(model: Any) -> None:
    # Keras refuses a new attribute of a built layer; a list may be changed.
    model.heads[0] = keras.layers.Dense(3, name="other")
    model(tf.ones([1, 2]))


def adapted(new: Callable[[], Any], data: Any) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        layer = new()
        layer.adapt(data)
        return single(layer, *np.shape(data)[1:], dtype="float32"), np.asarray(data, "float32")

    return make


def words() -> tuple[Any, Any]:
    layer = keras.layers.TextVectorization(output_mode="multi_hot", max_tokens=4, name="y")
    layer.adapt(["a b", "b"])
    return single(layer, dtype="string"), np.array(["a", "b c"], object)


def numbers() -> np.ndarray:
    return np.arange(40, dtype="float32").reshape(-1, 1)


def assign_lora(model: Any) -> None:
    model.layers[-1].enable_lora(1)
    model.layers[-1].lora_kernel_b.assign(np.ones([1, 3]))


def set_policy(model: Any) -> None:
    model.layers[-1].dtype_policy = "mixed_bfloat16"


CHANGES: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[Any], Any]]] = {
    "a layer is replaced": (stack, replace_last),
    "a layer in a list is replaced": (held, replace_head),
    "LoRA is enabled": (dense, assign_lora),
    "a layer is quantized": (dense, lambda model: model.layers[-1].quantize("int8")),
    "a dtype policy changes": (dense, set_policy),
    "a normalization adapts again": (
        adapted(lambda: keras.layers.Normalization(name="y"), numbers()),
        lambda model: model.layers[-1].adapt(numbers() ** 2),
    ),
    "buckets adapt again": (
        adapted(lambda: keras.layers.Discretization(num_bins=4, name="y"), numbers()),
        lambda model: model.layers[-1].adapt(numbers() ** 3 / 1600),
    ),
    "a vocabulary adapts again": (words, lambda model: model.layers[-1].adapt(["c d", "c"])),
    "a table is replaced": (
        lambda: (single(Tuned(), 1), F([[1]])),
        lambda model: setattr(model.layers[-1], "table", table({1: 30})),
    ),
    "a captured constant is replaced": (
        lambda: (single(Tuned(), 1), F([[1]])),
        lambda model: setattr(model.layers[-1], "factor", tf.constant(7.0)),
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_is_noticed(name: str, tmp_path: Path, consumers: Consumers) -> None:
    make, change = CHANGES[name]
    model, x = make()
    before = served(model, x)
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "1")
    change(model)
    expected = served(model, x)
    assert not np.array_equal(before, expected)
    report = exporter.write(tmp_path / "2")
    assert report.seconds["trace"] > 0
    assert exporter.write(tmp_path / "3").seconds["trace"] == 0
    ((key, _),) = report.signatures["serve"].inputs.items()
    (found,) = consumers.cpp(tmp_path / "2").signature("serve", **{key: x}).values()
    assert_same(np.asarray(found, "float32"), expected, rtol=1e-4, atol=1e-4)


def served(model: Any, x: Any) -> np.ndarray:
    (result,) = tf.nest.flatten(model(tf.constant(x), training=False))
    return tf.cast(result, tf.float32).numpy()


def freeze(model: Any) -> None:
    model.layers[-1].trainable = False


def fit(model: Any) -> None:
    model.compile("adam", "mse")
    model.fit(np.ones([4, 2]), np.ones([4, 3]), verbose=0)
    model.evaluate(np.ones([4, 2]), np.ones([4, 3]), verbose=0)
    model.predict(np.ones([4, 2]), verbose=0)


@pytest.mark.parametrize("change", [freeze, fit, lambda model: model(tf.ones([3, 2]))])
@pytest.mark.parametrize("make", [dense, held])
def test_freezing_training_and_calls_are_no_change(make: Any, change: Any, tmp_path: Path) -> None:
    model, _ = make()
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "1")
    change(model)
    assert exporter.write(tmp_path / "2").seconds["trace"] == 0


def test_a_step_of_training_is_no_change_for_an_exporter_with_the_optimizer(
    tmp_path: Path,
) -> None:
    model, _ = dense()
    fit(model)
    exporter = ke.Exporter(model, include_optimizer=True)
    exporter.write(tmp_path / "1")
    model.fit(np.ones([4, 2]), np.ones([4, 3]), verbose=0)
    assert exporter.write(tmp_path / "2").seconds["trace"] == 0


def test_layers_in_a_module_are_watched_too(tmp_path: Path) -> None:
    class Holder(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = keras.layers.Normalization()
            self.norm.adapt(numbers())
            self.scale = tf.function(
                lambda x: {"y": self.norm(x)}, input_signature=[tf.TensorSpec([None, 1], name="x")]
            )

    module = Holder()
    exporter = ke.Exporter(module)
    exporter.write(tmp_path / "1")
    assert exporter.write(tmp_path / "2").seconds["trace"] == 0
    module.norm.dtype_policy = "float64"
    assert exporter.write(tmp_path / "3").seconds["trace"] > 0


def test_an_object_that_cannot_be_hashed_or_compared_is_no_obstacle(tmp_path: Path) -> None:
    class Odd(tf.Module):
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable([1.0])

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

    module = Odd()
    exporter = ke.Exporter(module)
    exporter.write(tmp_path / "1")
    assert exporter.write(tmp_path / "2").seconds["trace"] == 0
