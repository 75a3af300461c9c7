"""Promises of `halves`: variables in half the bytes, signatures as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export.errors import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4)).astype("float32")


def rounded(model: Any, dtype: str) -> None:
    """Gives a model weights that the half dtype can hold."""
    for variable in model.variables:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(tf.cast(tf.cast(variable.value, dtype), variable.dtype))


def embedding() -> tuple[Any, Any]:
    x = keras.Input((3,), dtype="int32", name="x")
    h = keras.layers.Embedding(9, 4, name="embed")(x)
    h = keras.layers.LSTM(4)(h)
    h = keras.layers.BatchNormalization()(keras.layers.Dense(3, "silu")(h))
    model = keras.Model(x, keras.layers.Dense(2, name="y")(h))
    return model, np.int32([[1, 2, 3], [8, 0, 4]])


class Looping(keras.layers.Layer):
    """Reads its weights in branches in loops in functions, and counts its calls."""

    def build(self, shape: Any) -> None:
        size = shape[-1]
        self.kernel = self.add_weight(shape=(size, size), initializer="random_normal", name="k")
        self.table = self.add_weight(shape=(5, size), initializer="random_normal", name="t")
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False, name="total")

    @tf.function
    def step(self, x: Any, i: Any) -> Any:
        kernel, table = self.kernel.value, self.table.value

        def even() -> Any:
            return tf.matmul(x, kernel) + tf.gather(table, i)

        def odd() -> Any:
            return x + tf.gather(table, i) - tf.gather_nd(table, [[i]])

        return tf.cond(i % 2 == 0, even, odd)

    def call(self, x: Any) -> Any:
        self.total.assign_add(1.0)
        _, y = tf.while_loop(
            lambda i, _: i < 4,
            lambda i, h: (i + 1, self.step(h, i)),
            [tf.constant(0), x],
            shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, x.shape[-1]])],
        )
        return y


def looping() -> tuple[Any, Any]:
    x = keras.Input((4,), name="x")
    return keras.Model(x, Looping(name="y")(x)), X


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [embedding, looping])
def test_variables_take_half_and_functions_give_the_same(
    make: Any, dtype: str, tmp_path: Path, consumers: Consumers
) -> None:
    model, x = make()
    rounded(model, dtype)
    expected = tf.function(lambda x: model(x, training=False))(x).numpy()
    if make is looping:
        model.layers[-1].total.assign(0.0)
    before = [(v.dtype, v.numpy()) for v in model.variables]
    full = ke.export(model, tmp_path / "full")
    half = ke.export(model, tmp_path / "half", variables_dtype=dtype)
    assert str(half.signatures["serve"]) == str(full.signatures["serve"])
    found = consumers.everywhere(tmp_path / "half", "serve", x=x)
    assert_same(found, {"y": expected}, rtol=1e-4, atol=1e-5)
    stored = consumers.tf(tmp_path / "half").attribute("variables")
    written = {"total"}
    for variable, ours in zip(model.variables, stored, strict=True):
        if variable.name in written or not keras.backend.is_float_dtype(variable.dtype):
            assert str(ours.value.dtype) == variable.dtype
        else:
            assert str(ours.value.dtype) == dtype
    for variable, (kind, value) in zip(model.variables, before, strict=True):
        assert variable.dtype == kind
        assert_same(variable.numpy(), value)
    assert any(f"stored as {dtype}" in note for note in half.notes)
    notes = [note for note in half.notes if note.startswith("stored in full")]
    assert [note.endswith("total") for note in notes] == ([True] if make is looping else [])


def test_all_variables_are_halved_that_are_only_read(tmp_path: Path, consumers: Consumers) -> None:
    model, _ = embedding()
    model.compile("adam", "mse")
    model.fit(np.int32([[1, 2, 3]]), np.ones((1, 2)), verbose=0)
    ke.export(model, tmp_path, variables_dtype="float16", include_optimizer=True)
    values = consumers.checkpoint(tmp_path).values()
    kept = {key for key, value in values.items() if value.dtype == np.float32}
    assert kept and all("optimizer" in key for key in kept)
    assert sum(value.dtype == np.float16 for value in values.values()) == len(model.weights)


def test_the_values_of_each_moment_are_rounded(tmp_path: Path, consumers: Consumers) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    exporter = ke.Exporter(model, variables_dtype="bfloat16")
    for number in range(2):
        model.layers[0].kernel.assign(RNG.normal(size=(4, 2)))
        expected = tf.cast(tf.cast(model.layers[0].kernel.value, "bfloat16"), "float32")
        report = exporter.write(tmp_path / str(number))
        found = consumers.cpp(tmp_path / str(number)).signature("serve", x=X)
        assert_same(found, {"y": X @ expected.numpy()}, rtol=1e-5)
    assert report.seconds["trace"] == 0


def test_a_half_layer_can_be_fine_tuned(tmp_path: Path, consumers: Consumers) -> None:
    model, x = embedding()
    ke.export(model, tmp_path, variables_dtype="bfloat16")
    found = consumers.tfsm(tmp_path).fine_tune(x, np.ones((2, 2), "float32"), 0.1)
    assert found["updated"] == found["trainable"] == len(model.trainable_weights)
    assert found["after"] < found["before"]


def test_averages_can_be_stored_in_half(tmp_path: Path, consumers: Consumers) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    for _ in range(3):
        model.train_on_batch(X, np.ones((2, 2)))
    ke.export(model, tmp_path, weights="ema", variables_dtype="float16")
    kernel, bias = (x.numpy() for x in model.optimizer._model_variables_moving_average)
    found = consumers.cpp(tmp_path).signature("serve", x=X)
    assert_same(found, {"y": X @ kernel + bias}, rtol=1e-2, atol=1e-2)


def test_a_number_too_large_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    model.layers[0].kernel.assign(np.full((4, 2), 1e6))
    with pytest.raises(ArgumentError, match=r"kernel as float16: .*received 1e\+06.*bfloat16"):
        ke.export(model, tmp_path / "a", variables_dtype="float16")
    assert list(tmp_path.iterdir()) == []
    model.layers[0].kernel.assign(np.full((4, 2), np.inf))
    ke.export(model, tmp_path / "a", variables_dtype="float16")


def test_what_is_no_half_dtype_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="y")])
    for wrong, error in (
        ("float32", ArgumentError),
        ("int8", ArgumentError),
        (3, ArgumentTypeError),
    ):
        with pytest.raises(error, match="variables_dtype='float16' or 'bfloat16', received"):
            ke.export(model, tmp_path / "a", variables_dtype=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="a Keras layer or model for variables_dtype"):
        ke.Exporter(tf.Module(), variables_dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_half_artifacts_are_half_as_large(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((400,), name="x"), keras.layers.Dense(300, name="y")])
    full = ke.export(model, tmp_path / "full").bytes_written
    half = ke.export(model, tmp_path / "half", variables_dtype="float16").bytes_written
    assert half < 0.55 * full
    assert artifacts.ops(tmp_path / "half").count("VarHandleOp") == 2
