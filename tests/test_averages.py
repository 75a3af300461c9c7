"""Promises of `averages`: `weights="ema"` exports what the optimizer averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export.errors import ArgumentError

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")


def trained(optimizer: Any, steps: int = 3) -> keras.Model:
    layers = [
        keras.Input((3,), name="x"),
        keras.layers.Dense(4, name="h"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(2, name="y"),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return model


def averaged(model: keras.Model) -> np.ndarray:
    """What Keras's own way of using the averages gives."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(copy.trainable_variables, averages, strict=True):
        variable.assign(average)
    return copy(X, training=False).numpy()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss scale"])
def test_the_averages_are_exported_and_the_live_model_goes_on(
    scaled: bool, tmp_path: Path, consumers: Consumers
) -> None:
    optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5)
    model = trained(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
    before = [np.array(v.numpy()) for v in model.variables]
    exporter = ke.Exporter(model, weights="ema")
    report = exporter.write(tmp_path / "1")
    expected = averaged(model)
    assert np.abs(expected - model(X, training=False).numpy()).max() > 1e-3
    found = consumers.everywhere(tmp_path / "1", "serve", x=X)
    assert_same(found, {"y": expected}, rtol=1e-4, atol=1e-5)
    for variable, value in zip(model.variables, before, strict=True):
        assert_same(variable.numpy(), value)
    assert any("restored from this artifact" in note for note in report.notes)
    model.train_on_batch(X, Y)
    assert exporter.write(tmp_path / "2").seconds["trace"] == 0
    found = consumers.cpp(tmp_path / "2").signature("serve", x=X)
    assert_same(found, {"y": averaged(model)}, rtol=1e-4, atol=1e-5)


def test_a_snapshot_of_averages_is_that_of_its_moment(tmp_path: Path, consumers: Consumers) -> None:
    model = trained(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    snapshot, expected = ke.Exporter(model, weights="ema").snapshot(), averaged(model)
    model.train_on_batch(X, Y)
    snapshot.write(tmp_path)
    found = consumers.cpp(tmp_path).signature("serve", x=X)
    assert_same(found, {"y": expected}, rtol=1e-4, atol=1e-5)


def test_frozen_weights_have_no_average_and_are_exported_as_they_are(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = trained("sgd", steps=0)
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    ke.export(model, tmp_path, weights="ema")
    found = consumers.cpp(tmp_path).signature("serve", x=X)
    assert_same(found, {"y": averaged(model)}, rtol=1e-4, atol=1e-5)
    stored = consumers.tf(tmp_path).attribute("variables")
    assert_same(stored[0].value, model.layers[0].kernel.numpy())


def test_another_optimizer_is_noticed(tmp_path: Path, consumers: Consumers) -> None:
    model = trained(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    exporter = ke.Exporter(model, weights="ema")
    exporter.write(tmp_path / "1")
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), "mse")
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    exporter.write(tmp_path / "2")
    found = consumers.cpp(tmp_path / "2").signature("serve", x=X)
    assert_same(found, {"y": averaged(model)}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]),
            "a model without optimizer",
        ),
        (lambda: trained("sgd"), r"SGD\(use_ema=False\)"),
        (
            lambda: trained(keras.optimizers.SGD(use_ema=True), steps=0),
            "an optimizer that never took a step",
        ),
    ],
)
def test_a_model_without_averages_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=words):
        ke.export(make(), tmp_path / "a", weights="ema")
    assert list(tmp_path.iterdir()) == []


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="weights=None or 'ema', received weights='EMA'"):
        ke.export(trained("sgd"), tmp_path / "a", weights="EMA")  # type: ignore[arg-type]
