"""The readers of `consumers.py`, proved on artifacts that keras_export did not write."""

from __future__ import annotations

import collections
import gc
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import consumer_process
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from consumer_gradients import gradients
from consumers import (
    ConsumerCrash,
    ConsumerError,
    Consumers,
    Named,
    Opaque,
    Ragged,
    Sparse,
    Spec,
    assert_same,
)

Pair = collections.namedtuple("Pair", ["first", "second"])
GRAPH_READERS = ["tf", "v1", "cpp"]

DTYPES: dict[str, np.ndarray] = {
    "a_bool": np.array([True, False]),
    "a_uint8": np.array([0, 255], np.uint8),
    "a_int32": np.array([-1, 2**31 - 1], np.int32),
    "a_int64": np.array([-1, 2**63 - 1], np.int64),
    "a_float16": np.array([0.5, -2.0], np.float16),
    "a_bfloat16": np.array([0.5, -2.0], ml_dtypes.bfloat16),
    "a_float64": np.array([1e-300, np.inf]),
    "a_complex64": np.array([1 + 2j, 0], np.complex64),
    "a_string": np.array([b"short", b"long " * 100, b"", b"\x00\xff"], dtype=object),
    "scalar": np.array(7.0, np.float32),
    "scalar_string": np.array(b"seven", dtype=object),
    "empty": np.zeros([0, 3], np.float32),
    "empty_string": np.zeros([0], dtype=object),
}


class Encoder(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="kernel")
        self.counter = tf.Variable(0, trainable=False, name="counter")

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def f(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(x @ self.kernel)


class Everything(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.biases = [tf.Variable([1.0]), tf.Variable([2.0, 3.0])]
        self.add(np.float32(1), np.float32(2))
        self.add(np.float32(1), np.float32(2), twice=True)
        self.reverse({"rows": tf.ragged.constant([[1], [2, 3]]), "dense": tf.sparse.eye(2)})
        self.swap(Pair(np.float32(1), [np.int32(2), np.int32(3)]))

    @tf.function
    def add(self, a: tf.Tensor, b: tf.Tensor, twice: bool = False) -> tf.Tensor:
        return (a + b) * 2 if twice else a + b

    @tf.function
    def reverse(self, tensors: dict[str, Any]) -> dict[str, Any]:
        dense = tf.sparse.map_values(tf.negative, tensors["dense"])
        return {"rows": tf.reverse(tensors["rows"], [1]), "dense": dense}

    @tf.function
    def swap(self, pair: Pair) -> Pair:
        return Pair(pair.second, pair.first)

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="x")])
    def noisy(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + tf.cast(tf.math.floormod(tf.timestamp() * 1e3, 1e4), tf.float32)}

    @tf.function
    def echo(self, **tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.identity(tensor) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def module() -> Everything:
    return Everything()


@pytest.fixture(scope="module")
def saved_module(module: Everything, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("module")
    specs = {name: tf.TensorSpec(x.shape, _dtype(x), name=name) for name, x in DTYPES.items()}
    signatures = {
        "serving_default": module.encoder.f,
        "echo": module.echo.get_concrete_function(**specs),
        "noisy": module.noisy,
    }
    tf.saved_model.save(module, export_dir, signatures=signatures)
    return export_dir


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.Sequential(
        [keras.Input((3,), name="x"), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)]
    )


@pytest.fixture(scope="module")
def exported_model(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("model")
    model.export(export_dir)
    return export_dir


@pytest.fixture(scope="module")
def broken_model(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TensorFlow gives the signature and the saver of a Keras 3 model different handles."""
    export_dir = tmp_path_factory.mktemp("broken")
    tf.saved_model.save(model, export_dir)
    return export_dir


def _dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype == object else tf.as_dtype(array.dtype)


def _only_input(artifact: Any) -> str:
    (name,) = artifact.signatures()["serving_default"]["inputs"]
    return name


@pytest.mark.parametrize("reader", GRAPH_READERS)
def test_a_signature_gives_the_live_values(
    consumers: Consumers, reader: str, module: Everything, saved_module: Path
) -> None:
    x = np.array([[1.0, -1.0], [0.5, 0.25]], np.float32)
    outputs = getattr(consumers, reader)(saved_module).signature("serving_default", x=x)
    assert_same(outputs, {"output_0": module.encoder.f(x)})


@pytest.mark.parametrize("reader", GRAPH_READERS)
def test_every_dtype_and_shape_travels(
    consumers: Consumers, reader: str, saved_module: Path
) -> None:
    assert_same(getattr(consumers, reader)(saved_module).signature("echo", **DTYPES), DTYPES)


@pytest.mark.parametrize("reader", GRAPH_READERS)
def test_signatures_are_listed_with_shapes_and_dtypes(
    consumers: Consumers, reader: str, saved_module: Path
) -> None:
    signatures = getattr(consumers, reader)(saved_module).signatures()
    assert sorted(signatures) == ["echo", "noisy", "serving_default"]
    assert signatures["serving_default"] == {
        "inputs": {"x": Spec((None, 2), "float32")},
        "outputs": {"output_0": Spec((None, 2), "float32")},
    }
    assert signatures["echo"]["inputs"]["a_string"] == Spec((4,), "string")


def test_a_keras_export_is_the_same_everywhere(
    consumers: Consumers, model: keras.Model, exported_model: Path
) -> None:
    x = np.ones([2, 3], np.float32)
    name = _only_input(consumers.cpp(exported_model))
    outputs = consumers.everywhere(exported_model, **{name: x})
    assert_same(outputs, {"output_0": model(x)})


def test_readers_that_disagree_are_noticed(consumers: Consumers, saved_module: Path) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        consumers.everywhere(saved_module, "noisy", x=np.zeros(2, np.float32))


@pytest.mark.parametrize("reader", ["v1", "cpp"])
def test_variables_that_the_saver_does_not_restore_are_an_error(
    consumers: Consumers, reader: str, broken_model: Path
) -> None:
    x = np.ones([2, 3], np.float32)
    artifact = getattr(consumers, reader)(broken_model)
    with pytest.raises(ConsumerError, match="Could not find variable"):
        artifact.signature(**{_only_input(artifact): x})


def test_the_same_artifact_passes_in_python_alone(
    consumers: Consumers, model: keras.Model, broken_model: Path
) -> None:
    x = np.ones([2, 3], np.float32)
    artifact = consumers.tf(broken_model)
    assert_same(artifact.signature(**{_only_input(artifact): x}), {"output_0": model(x)})
    with pytest.raises(ConsumerError, match="Could not find variable"):
        consumers.everywhere(broken_model, **{_only_input(artifact): x})


@pytest.mark.parametrize("reader", [*GRAPH_READERS, "tfsm"])
def test_a_directory_without_an_artifact_is_refused(
    consumers: Consumers, reader: str, tmp_path: Path
) -> None:
    with pytest.raises(ConsumerError, match=r"SavedModel|saved_model\.pb|Could not find"):
        getattr(consumers, reader)(tmp_path)


@pytest.mark.parametrize("reader", GRAPH_READERS)
def test_cut_off_variables_are_refused(
    consumers: Consumers, reader: str, saved_module: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(saved_module, damaged)
    os.truncate(damaged / "variables" / "variables.data-00000-of-00001", 3)
    with pytest.raises(ConsumerError):
        getattr(consumers, reader)(damaged)


@pytest.mark.parametrize("reader", GRAPH_READERS)
def test_wrong_inputs_and_keys_are_refused(
    consumers: Consumers, reader: str, saved_module: Path
) -> None:
    artifact = getattr(consumers, reader)(saved_module)
    with pytest.raises(ConsumerError, match="y"):
        artifact.signature("serving_default", y=np.zeros([1, 2], np.float32))
    with pytest.raises(ConsumerError, match="missing"):
        artifact.signature("missing", x=np.zeros([1, 2], np.float32))


@pytest.mark.parametrize("reader", ["tf", "cpp"])
def test_a_wrong_dtype_is_refused(consumers: Consumers, reader: str, saved_module: Path) -> None:
    with pytest.raises(ConsumerError, match=r"float32|float"):
        getattr(consumers, reader)(saved_module).signature(x=np.zeros([1, 2], np.int64))


@pytest.mark.parametrize("reader", ["v1", "cpp"])
def test_defaults_of_a_signature_stand_in_for_missing_inputs(
    consumers: Consumers, reader: str, tmp_path: Path
) -> None:
    spec = tf.TensorSpec([1], tf.float32)

    @tf.function(input_signature=[spec, spec])
    def f(x: tf.Tensor, y: tf.Tensor = tf.constant([10.0])) -> dict[str, tf.Tensor]:  # noqa: B008
        return {"z": x + y}

    tf.saved_model.save(tf.Module(), tmp_path, signatures=f)
    artifact = getattr(consumers, reader)(tmp_path)
    x = np.array([1.0], np.float32)
    assert_same(artifact.signature(x=x), {"z": np.array([11.0], np.float32)})
    assert_same(artifact.signature(x=x, y=x), {"z": np.array([2.0], np.float32)})


def test_functions_are_called_with_pythons_convention(
    consumers: Consumers, saved_module: Path
) -> None:
    loaded = consumers.tf(saved_module)
    one, two = np.float32(1), np.float32(2)
    assert_same(loaded.call("add", one, two), np.float32(3))
    assert_same(loaded.call("add", one, b=two, twice=True), np.float32(6))
    with pytest.raises(ConsumerError, match="Could not find matching concrete function"):
        loaded.call("add", np.int32(1), np.int32(2))


def test_composite_tensors_and_namedtuples_travel(consumers: Consumers, saved_module: Path) -> None:
    loaded = consumers.tf(saved_module)
    tensors = {"rows": tf.ragged.constant([[1], [2, 3]]), "dense": tf.sparse.eye(2)}
    reversed_ = loaded.call("reverse", tensors)
    assert isinstance(reversed_["rows"], Ragged)
    assert reversed_["rows"].to_list() == [[1], [3, 2]]
    assert isinstance(reversed_["dense"], Sparse)
    assert_same(reversed_["dense"].values, np.array([-1.0, -1.0], np.float32))
    swapped = loaded.call("swap", Pair(np.float32(1), [np.int32(2), np.int32(3)]))
    assert_same(
        swapped, Named("Pair", {"first": [np.int32(2), np.int32(3)], "second": np.float32(1)})
    )


def test_attributes_and_variables_are_found_by_paths(
    consumers: Consumers, saved_module: Path
) -> None:
    loaded = consumers.tf(saved_module)
    assert {"add", "biases", "encoder"} <= set(loaded.attributes())
    assert loaded.attributes("encoder") == ["counter", "f", "kernel"]
    assert_same(loaded.attribute("biases.1").value, np.array([2.0, 3.0], np.float32))
    assert isinstance(loaded.attribute("encoder"), Opaque)
    variables = loaded.variables()
    assert sorted(variables) == ["biases.0", "biases.1", "encoder.counter", "encoder.kernel"]
    assert variables["encoder.kernel"].name == "kernel:0"
    assert variables["encoder.kernel"].shape == (2, 2)
    assert not variables["encoder.counter"].trainable


def test_assignments_reach_functions_and_stay_in_the_copy(
    consumers: Consumers, saved_module: Path
) -> None:
    x = np.array([[1.0, 0.0]], np.float32)
    changed = consumers.tf(saved_module)
    changed.assign("encoder.kernel", np.zeros([2, 2], np.float32))
    flat = np.array([[0.5, 0.5]], np.float32)
    assert_same(changed.call("encoder.f", x), flat)
    assert_same(changed.signature(x=x), {"output_0": flat})
    assert not np.allclose(consumers.tf(saved_module).call("encoder.f", x), flat)


@pytest.mark.parametrize("path", ["encoder.f", "signatures.serving_default"])
def test_gradients_equal_the_live_ones(
    consumers: Consumers, module: Everything, saved_module: Path, path: str
) -> None:
    x = tf.constant([[1.0, -1.0], [0.5, 0.25]])
    live = gradients(module.encoder.f, {"x": x, "kernel": module.encoder.kernel}, [x], {})
    loaded = consumers.tf(saved_module)
    assert_same(loaded.gradient(path, x=x), {"x": live["x"]})
    by_variable = loaded.gradient(path, x=x, wrt="variables")
    assert_same(by_variable["encoder.kernel"], live["kernel"])
    assert by_variable["biases.0"] is None
    assert np.abs(live["kernel"]).max() > 0


def test_a_loaded_artifact_can_be_saved_again(
    consumers: Consumers, saved_module: Path, tmp_path: Path
) -> None:
    consumers.tf(saved_module).save(tmp_path / "again")
    loaded = consumers.tf(tmp_path / "again")
    assert_same(loaded.call("add", np.float32(1), np.float32(2)), np.float32(3))


def test_a_layer_infers_and_learns(
    consumers: Consumers, model: keras.Model, exported_model: Path
) -> None:
    x = np.ones([2, 3], np.float32)
    layer = consumers.tfsm(exported_model)
    assert_same(layer(x), model(x))
    assert layer.weights() == {"trainable": 4, "all": 4}
    step = layer.fine_tune(x, np.full([2, 2], 3.0, np.float32))
    assert step["trainable"] == step["updated"] == 4
    assert step["after"] < step["before"]


def test_checkpoints_are_read_from_artifacts_and_prefixes(
    consumers: Consumers, module: Everything, saved_module: Path
) -> None:
    key = "encoder/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    for path in (saved_module, saved_module / "variables" / "variables"):
        checkpoint = consumers.checkpoint(path)
        assert checkpoint.has_object_graph()
        assert len(checkpoint.shapes()) == 4
        assert checkpoint.shapes()[key] == (2, 2)
        assert_same(checkpoint.values()[key], module.encoder.kernel.numpy())


def test_the_saver_of_an_artifact_writes_checkpoints(
    consumers: Consumers, saved_module: Path, tmp_path: Path
) -> None:
    prefix = consumers.v1(saved_module).save(tmp_path / "again" / "variables")
    assert_same(consumers.checkpoint(prefix).values(), consumers.checkpoint(saved_module).values())


def test_saved_model_cli_runs(consumers: Consumers, saved_module: Path) -> None:
    shown = consumers.cli(saved_module)
    assert "signature_def['serving_default']" in shown
    assert "Function Name: 'add'" in shown
    computed = consumers.cli(
        saved_module,
        "run",
        "--tag_set=serve",
        "--signature_def=serving_default",
        "--input_exprs=x=[[0.0, 0.0]]",
    )
    assert "[[0.5 0.5]]" in computed
    with pytest.raises(ConsumerError):
        consumers.cli(saved_module.with_name("missing"))


def test_fingerprints_are_read(consumers: Consumers, saved_module: Path, tmp_path: Path) -> None:
    assert consumers.fingerprint(saved_module)["saved_model_checksum"] > 0
    with pytest.raises(ConsumerError, match="fingerprint"):
        consumers.fingerprint(tmp_path)


def test_an_artifact_is_freed_with_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Fake:
        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setitem(consumer_process.READERS, "fake", Fake)
    server = consumer_process.Server()
    handle = server.answer("open", "fake")
    server.release([handle])
    assert closed == ["closed"]


def test_a_dropped_handle_is_released_with_the_next_request(
    consumers: Consumers, saved_module: Path
) -> None:
    artifact = consumers.tf(saved_module)
    handle, process = artifact._handle, artifact._process
    del artifact
    gc.collect()
    assert handle in process.released
    consumers.tf(saved_module)
    assert handle not in process.released


def test_keras_export_cannot_be_imported_by_a_reader() -> None:
    blocker = consumer_process._NoKerasExport()
    with pytest.raises(ImportError):
        blocker.find_spec("keras_export.exporter")
    blocker.find_spec("keras")


def test_a_crash_fails_one_request_and_the_next_is_served(saved_module: Path) -> None:
    with Consumers() as readers:
        os.kill(readers.pid, signal.SIGSEGV)
        with pytest.raises(ConsumerCrash, match="SIGSEGV"):
            readers.cpp(saved_module)
        artifact = readers.cpp(saved_module)
        assert "serving_default" in artifact.signatures()
        os.kill(readers.pid, signal.SIGKILL)
        with pytest.raises(ConsumerCrash, match="SIGKILL"):
            artifact.signatures()


def test_a_reader_that_hangs_is_a_crash(saved_module: Path) -> None:
    with (
        Consumers(timeout=0.1) as readers,  # importing TensorFlow takes longer
        pytest.raises(ConsumerCrash, match=r"no answer within 0\.1 s"),
    ):
        readers.tf(saved_module)
