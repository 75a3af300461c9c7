"""Endpoints put together by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke

_SPEC = keras.InputSpec(shape=(None, 3), dtype="float32")


def classifier() -> Any:
    x = keras.Input((3,), name="x")
    return keras.Model(x, keras.layers.Dense(2, name="out")(x))


def batch() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def test_endpoints_share_variables_and_the_first_is_the_default(
    tmp_path: Path, consumers: Consumers
) -> None:
    model, x = classifier(), batch()
    archive = ke.ExportArchive()
    logits = archive.track_and_add_endpoint("logits", model, [_SPEC])
    archive.add_endpoint("classes", lambda x: {"best": tf.argmax(logits(x), -1)}, [_SPEC])
    report = archive.write_out(tmp_path / "a")
    assert set(report.signatures) == {"logits", "classes", "serving_default"}
    expected = np.asarray(model(x))
    inputs = dict.fromkeys(report.signatures["logits"].inputs, x)
    for key in ("logits", "serving_default"):
        actual = consumers.everywhere(tmp_path / "a", key, **inputs)
        assert_same(actual, {"output_0": expected})
    best = consumers.everywhere(tmp_path / "a", "classes", x=x)
    assert_same(best, {"best": expected.argmax(-1)})
    assert_same(consumers.tf(tmp_path / "a").call("logits", x), expected)
    stored = ke.inspect(tmp_path / "a").variables.values()
    assert sorted(shape for shape, *_ in stored) == [(2,), (3, 2)]


def test_the_loaded_object_has_the_lists_of_variables_and_the_collections(tmp_path: Path) -> None:
    model = classifier()
    archive = ke.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [_SPEC])
    archive.add_variable_collection("kernels", (model.layers[-1].kernel,))
    assert archive.variables == archive.trainable_variables == model.variables
    assert archive.non_trainable_variables == []
    archive.write_out(tmp_path / "a")
    loaded = tf.saved_model.load(str(tmp_path / "a"))
    assert len(loaded.variables) == len(loaded.trainable_variables) == 2
    np.testing.assert_array_equal(loaded.kernels[0], model.layers[-1].kernel)


def test_a_later_write_has_the_values_of_its_moment(tmp_path: Path, consumers: Consumers) -> None:
    model, x = classifier(), batch()
    archive = ke.ExportArchive()
    archive.track_and_add_endpoint("serve", model, [_SPEC])
    for number in (1, 2):
        model.layers[-1].kernel.assign(np.full((3, 2), number, "float32"))
        archive.write_out(tmp_path / "a")
        assert_same(consumers.tf(tmp_path / "a").call("serve", x), np.asarray(model(x)))


def test_tables_of_tracked_layers_are_exported(tmp_path: Path, consumers: Consumers) -> None:
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    lookup(tf.constant(["a"]))
    archive = ke.ExportArchive()
    archive.track(lookup)
    archive.add_endpoint("ids", lambda words: lookup(words), [tf.TensorSpec([None], tf.string)])
    archive.write_out(tmp_path / "a")
    words = np.array([b"b", b"z", b"a"], object)
    ids = consumers.everywhere(tmp_path / "a", "ids", words=words)
    assert_same(ids, {"output_0": np.array([2, 0, 1])})


def test_tensors_of_one_argument_are_named_as_keras_names_them(
    tmp_path: Path, consumers: Consumers
) -> None:
    archive = ke.ExportArchive()
    archive.add_endpoint("serve", lambda xs: xs[0] - xs[1], [[_SPEC, _SPEC]])
    archive.write_out(tmp_path / "a")
    x = batch()
    actual = consumers.everywhere(tmp_path / "a", "serve", xs=x, xs_1=x + 1)
    assert_same(actual, {"output_0": np.full_like(x, -1)})


def test_a_function_that_was_called_needs_no_signature(
    tmp_path: Path, consumers: Consumers
) -> None:
    model, x = classifier(), batch()
    serving = tf.function(lambda x: model(x))
    archive = ke.ExportArchive()
    with pytest.raises(ValueError, match="that was never called"):
        archive.add_endpoint("serve", serving)
    serving(tf.constant(x))
    assert archive.add_endpoint("serve", serving) is serving
    archive.write_out(tmp_path / "a")
    actual = consumers.everywhere(tmp_path / "a", "serve", x=x)
    assert_same(actual, {"output_0": np.asarray(model(x))})


@pytest.mark.parametrize("name", ["serve", "variables", "signatures"])
def test_a_taken_name_is_refused(name: str) -> None:
    archive = ke.ExportArchive()
    archive.add_endpoint("serve", lambda x: x, [_SPEC])
    with pytest.raises(ValueError, match=f"Cannot add the endpoint '{name}'"):
        archive.add_endpoint(name, lambda x: x, [_SPEC])
    with pytest.raises(ValueError, match=f"Cannot add the variable collection '{name}'"):
        archive.add_variable_collection(name, [tf.Variable(1.0)])


def test_what_cannot_be_exported_is_refused_with_keras_error_types(tmp_path: Path) -> None:
    archive = ke.ExportArchive()
    with pytest.raises(ValueError, match="it has no endpoint"):
        archive.write_out(tmp_path / "a")
    with pytest.raises(ValueError, match="expected a built layer"):
        archive.track(keras.layers.Dense(1))
    with pytest.raises(ValueError, match="a Keras layer or model, or a TensorFlow trackable"):
        archive.track("model")
    with pytest.raises(ValueError, match="It is for Keras on JAX"):
        archive.add_endpoint("serve", lambda x: x, [_SPEC], is_static=True)
    with pytest.raises(ValueError, match=r"input_signature=\[keras.InputSpec"):
        archive.add_endpoint("serve", lambda x: x)
    with pytest.raises(TypeError, match="Give both shape and dtype"):
        archive.add_endpoint("serve", lambda x: x, ["float32"])
    with pytest.raises(ValueError, match="expected a list, tuple or set"):
        archive.add_variable_collection("v", tf.Variable(1.0))
    with pytest.raises(ValueError, match="expected variables of Keras or TensorFlow"):
        archive.add_variable_collection("v", [1.0])
    with pytest.raises(ValueError, match="expected format='saved_model'"):
        ke.ExportArchive(format="onnx")
    assert not (tmp_path / "a").exists()


def test_a_failed_write_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([1.0])), 0.0
    )
    archive = ke.ExportArchive()
    archive.add_endpoint("serve", table.lookup, [tf.TensorSpec([None], tf.string)])
    with pytest.raises(AssertionError, match=r"`archive.track\(...\)`"):
        archive.write_out(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
