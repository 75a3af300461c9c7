"""Every kind of Keras model goes through every kind of file and comes back as it was.

What Keras itself does not save, or not load again, is no promise of ours; the soak says what.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import test_zoo as zoo
from consumers import Consumers
from zoo import KINDS, Kind, architectures, dtypes, interfaces, preprocessing, states, values

import keras_export as ke

_MODULES = (architectures, dtypes, interfaces, preprocessing, states, values)
CUSTOM = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if getattr(value, "__module__", "") == module.__name__
    and (inspect.isclass(value) or inspect.isfunction(value))
}

SAMPLED = [
    "bfloat16",
    "diffusion_unet",
    "functional_dict",
    "functional_models_in_models",
    "subclassed",
    "text_classifier",
    "whole_numbers",
]


def models(names: Any = KINDS) -> list[Any]:
    """Those that are models, and not layers or modules."""
    return zoo.kinds(name for name in names if not name.startswith(("layer", "variables_in")))


def saved(model: Any, path: Path) -> Any:
    """What Keras loads of what it saved, None if it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(path)
            return keras.saving.load_model(path, CUSTOM, compile=False, safe_mode=False)
    except Exception:
        return None


def bits(model: Any) -> list[bytes]:
    return [np.asarray(weight).tobytes() for weight in model.weights]


def forget(model: Any) -> None:
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape, np.asarray(weight).dtype))


def is_low_rank(model: Any) -> bool:
    """Whether Keras's files hold sums of its weights, which no file can give back."""
    return any("lora" in weight.path for weight in model.weights)


def load(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimizer misses its state
        model.load_weights(path)


def returns(
    kind: Kind,
    made: Any,
    expected: list[Any],
    before: list[bytes],
    folder: Path,
    consumers: Consumers,
) -> None:
    """The artifact gives the numbers, and its weights go back into the model bit for bit."""
    artifact = consumers.cpp(folder / "out")
    for results in expected:
        zoo.assert_close(artifact.signature("serving_default", **zoo.named_inputs(kind)), results)
    if is_low_rank(made):
        with pytest.raises(ke.ConversionError, match="does not say where"):
            ke.extract_weights(folder / "out", folder / "back.weights.h5")
    elif made.weights:
        ke.extract_weights(folder / "out", folder / "back.weights.h5")
        forget(made)
        load(made, folder / "back.weights.h5")
        assert bits(made) == before


def signature_for(kind: Kind, made: Any) -> Any:
    """What no file says of a subclassed model: its inputs' dtypes and free dimensions."""
    if kind.input_signature is not None or getattr(made, "inputs", None):
        return kind.input_signature
    specs = []
    for text in kind.inputs.values():
        dtype, _, shape = text.removesuffix("]").partition("[")
        sizes = [None if size == "?" else int(size) for size in shape.split(", ") if size]
        specs.append(tf.TensorSpec(sizes, dtype))
    return list(tf.nest.pack_sequence_as(kind.arguments(), specs))


def through_a_model(kind: Kind, ending: str, folder: Path, consumers: Consumers) -> str:
    made = kind.make(recorded=False)
    if not isinstance(made, keras.Model):
        return "no model"
    for layer in made._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # what it computes with are the weights that are saved
    path = folder / f"model.{ending}"
    loaded, before = saved(made, path), bits(made)
    if loaded is None:
        return "not by Keras"
    options = {"input_signature": signature_for(kind, made)}
    try:
        ke.convert(path, folder / "out", custom_objects=CUSTOM, **options)
    except ke.ConversionError as error:
        assert ending == "h5" and "no vocabulary" in str(error), error
        return "not by HDF5"
    # Keras rounds sums of quantized weights when it saves.
    expected = zoo.live_results(kind, loaded if is_low_rank(made) else made)
    returns(kind, made, expected, before, folder, consumers)
    return "same"


def through_weights(kind: Kind, folder: Path, consumers: Consumers) -> str:
    made = kind.make()
    if not isinstance(made, keras.Model) or not made.weights:
        return "no weights"
    if is_low_rank(made):
        return "merged by Keras"
    made.save_weights(folder / "model.weights.h5")
    before = bits(made)
    forget(made)
    load(made, folder / "model.weights.h5")
    if bits(made) != before:  # a bare tf.Variable, say, is in no file of Keras
        return "not by Keras"
    forget(made)
    options = {} if kind.input_signature is None else {"input_signature": kind.input_signature}
    ke.export(made, folder / "empty", **options)
    ke.reweight(folder / "empty", folder / "model.weights.h5", folder / "out")
    load(made, folder / "model.weights.h5")
    returns(kind, made, zoo.live_results(kind, made), before, folder, consumers)
    return "same"


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("kind", models(SAMPLED))
def test_a_model_returns_from_its_file(
    kind: Kind, ending: str, tmp_path: Path, consumers: Consumers
) -> None:
    through_a_model(kind, ending, tmp_path, consumers)


@pytest.mark.parametrize("kind", models(SAMPLED))
def test_weights_return_from_their_file(
    kind: Kind, tmp_path: Path, consumers: Consumers
) -> None:
    assert through_weights(kind, tmp_path, consumers) == "same"


@pytest.mark.soak
@pytest.mark.parametrize("way", ["keras", "h5", "weights.h5"])
@pytest.mark.parametrize("kind", models())
def test_every_kind_returns_from_every_file(
    kind: Kind, way: str, tmp_path: Path, consumers: Consumers, record_property: Any
) -> None:
    if way == "weights.h5":
        outcome = through_weights(kind, tmp_path, consumers)
    else:
        outcome = through_a_model(kind, way, tmp_path, consumers)
    record_property("round trip", (f"{kind.name}.{way}", outcome))
