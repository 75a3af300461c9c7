"""The models of `keras.applications`, with random weights, are the same after a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers

import keras_export as ke

# The smallest member of each family. InceptionResNetV2 has none smaller and waits for the soak.
SMALLEST = [
    "ConvNeXtTiny",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "VGG16",
    "Xception",
]

# The smallest pictures that these accept; all others take 32 by 32.
SIDES = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
CLASSES = 7


def every_application() -> list[str]:
    return sorted(
        name
        for name, member in vars(keras.applications).items()
        if callable(member) and name[:1].isupper()
    )


def application(name: str) -> keras.Model:
    """A model whose weights are all different, so that no two could be exchanged unnoticed."""
    side = SIDES.get(name, 32)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=CLASSES, classifier_activation=None
    )
    random = np.random.default_rng(1)
    for weight in model.weights:
        value = np.asarray(weight)
        if value.dtype.kind == "f" and np.ptp(value) == 0:
            weight.assign(value + random.uniform(-0.1, 0.1, value.shape))
    return model


def pictures(model: keras.Model) -> np.ndarray:
    (inputs,) = model.inputs
    return np.random.default_rng(2).uniform(-1, 1, (2, *inputs.shape[1:])).astype("float32")


def in_a_graph(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What the live model gives when TensorFlow may choose the kernels as it does for artifacts."""
    (inputs,) = model.inputs
    spec = tf.TensorSpec(inputs.shape, inputs.dtype)  # with its batch size the kernels may change
    function = tf.function(lambda x: model(x, training=False), [spec], autograph=False)
    return np.asarray(function(x))


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Other kernels, or the same ones fused, differ in the last bit here and there."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def assert_round_trip(model: keras.Model, folder: Path, consumers: Consumers) -> None:
    report = ke.export(model, folder)
    (name,) = report.signatures["serve"].inputs
    x = pictures(model)
    expected = in_a_graph(model, x)
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 0
    for reader in (consumers.tf, consumers.cpp):
        error = difference(only(reader(folder).signature("serving_default", **{name: x})), expected)
        # In deep networks the bits depend on how a reader's kernels share the work out, for
        # Keras's artifact too.
        assert error <= 1e-6 or error <= 2 * error_of_keras(model, reader, folder, x, expected)


def error_of_keras(
    model: keras.Model, reader: Any, folder: Path, x: np.ndarray, expected: np.ndarray
) -> float:
    """How far the same reader is off with what Keras exports."""
    theirs = folder.with_name("theirs")
    artifacts.export_with_keras(model, theirs)
    (name,) = ke.inspect(theirs).signatures["serving_default"].inputs
    outputs = reader(theirs).signature("serving_default", **{name: x})
    return difference(only(outputs), expected)


def only(outputs: dict[str, Any]) -> Any:
    (output,) = outputs.values()
    return output


@pytest.mark.parametrize("name", SMALLEST)
def test_application_is_the_same_in_python_and_in_cpp(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    assert_round_trip(application(name), tmp_path / "model", consumers)


@pytest.mark.soak
@pytest.mark.parametrize("name", every_application())
def test_every_application_is_the_same_in_python_and_in_cpp(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    assert_round_trip(application(name), tmp_path / "model", consumers)


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_application_is_stored_once_and_bit_by_bit(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    model = application(name)
    ke.export(model, tmp_path / "model")
    values = consumers.checkpoint(tmp_path / "model").values().values()
    stored = sorted(value.tobytes() for value in values)
    assert stored == sorted(np.asarray(weight).tobytes() for weight in model.variables)


@pytest.mark.parametrize("name", ["MobileNetV2"])
def test_saved_model_is_a_seventh_of_what_keras_writes(name: str, tmp_path: Path) -> None:
    model = application(name)
    ke.export(model, tmp_path / "ours")
    artifacts.export_with_keras(model, tmp_path / "theirs")
    ours, theirs = (
        len(artifacts.files(tmp_path / writer)["saved_model.pb"]) for writer in ("ours", "theirs")
    )
    assert ours * 7 <= theirs
