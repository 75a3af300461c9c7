"""Values that are written while the graph is being made."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import early_writing, held_values
from keras_export.errors import TargetError


@pytest.fixture(autouse=True, params=["before the trace", "after the trace"])
def start(request, monkeypatch) -> str:
    """When the writing of such small objects begins."""
    if request.param == "before the trace":
        monkeypatch.setattr(early_writing, "_LARGE", 0)
    return request.param


@pytest.fixture
def writers(monkeypatch) -> list[str]:
    """The names of the threads that wrote bundles."""
    names: list[str] = []
    write = held_values.write_bundle

    def noted(*args: Any) -> None:
        names.append(threading.current_thread().name)
        write(*args)

    monkeypatch.setattr(held_values, "write_bundle", noted)
    return names


def _model() -> keras.Model:
    x = keras.Input((4,), name="x")
    hidden = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(8, name="in")(x))
    return keras.Model(x, keras.layers.Dense(3, name="out")(hidden))


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class _Counting(keras.layers.Layer):
    """Changes a variable whenever it is traced."""

    def build(self, shape: Any) -> None:
        self.traces = tf.Variable(0.0)

    def call(self, x: Any) -> Any:
        if tf.inside_function():
            with tf.init_scope():
                self.traces.assign_add(1.0)
        return x * self.traces


def test_values_written_during_the_trace_give_the_same_bytes_as_those_written_after(
    tmp_path, writers
):
    model = _model()
    ke.export(model, tmp_path / "at_once")
    assert writers == ["keras_export values"]
    ke.Exporter(model).write(tmp_path / "later")
    assert writers == ["keras_export values", "MainThread"]
    assert _contents(tmp_path / "at_once") == _contents(tmp_path / "later")


def test_save_of_a_module_writes_while_it_traces(tmp_path, writers):
    module = tf.Module()
    module.v = tf.Variable(tf.range(12.0))
    module.f = tf.function(lambda: module.v * 2.0, input_signature=[])
    ke.save(module, tmp_path / "m")
    assert writers == ["keras_export values"]
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_array_equal(loaded.f(), np.arange(12.0) * 2)


def test_values_that_the_trace_changes_are_those_after_it(tmp_path, writers, start):
    x = keras.Input((4,), name="x")
    layer = _Counting(name="out")
    model = keras.Model(x, layer(x))
    before = float(layer.traces)
    ke.export(model, tmp_path / "m")
    again = ["MainThread"] if start == "before the trace" else []
    assert writers == ["keras_export values", *again]
    assert float(layer.traces) == before + 1
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    served = loaded.serve(np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(served, np.full((1, 4), before + 1))


def test_a_layer_that_is_built_by_the_trace_has_its_values(tmp_path):
    class Late(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(3, name="first")
            self.first.build((None, 4))

        def build(self, shape: Any) -> None:
            self.second = keras.layers.Dense(2, name="second")
            self.built = True

        def call(self, x: Any) -> Any:
            return self.second(self.first(x))

    model = Late()
    ke.export(model, tmp_path / "m", input_signature=[tf.TensorSpec([None, 4], tf.float32)])
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6)


def test_a_failed_trace_leaves_no_file_of_the_values(tmp_path, writers, start):
    class Broken(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(shape=(4, 4))

        def call(self, x: Any) -> Any:
            raise ZeroDivisionError("in the trace")

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    x = keras.Input((4,), name="x")
    model = keras.Model(x, Broken()(x))
    with pytest.raises(ZeroDivisionError):
        ke.export(model, tmp_path / "above" / "m")
    assert writers == (["keras_export values"] if start == "before the trace" else [])
    assert not list(tmp_path.iterdir())


def test_an_early_write_that_fails_is_made_again(tmp_path, monkeypatch):
    write, calls = held_values.write_bundle, []

    def failing_once(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(28, "no space")
        write(*args)

    monkeypatch.setattr(held_values, "write_bundle", failing_once)
    model = _model()
    ke.export(model, tmp_path / "m")
    assert len(calls) == 2
    x = np.ones((2, 4), np.float32)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_variable_without_a_value_is_refused_and_leaves_no_file(tmp_path, writers):
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    module = tf.Module()
    module.v = tf.Variable(tf.ones([16]))
    module.late = UninitializedVariable(shape=[], dtype=tf.float32, name="late")
    with pytest.raises(ke.ExportError, match=r"obj\.late"):
        ke.save(module, tmp_path / "above" / "m")
    assert writers == []
    assert not list(tmp_path.iterdir())


def test_a_disk_that_stays_full_is_one_error_and_leaves_the_target(tmp_path, monkeypatch):
    ke.export(_model(), tmp_path / "m")
    before = _contents(tmp_path / "m")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(held_values, "write_bundle", full)
    with pytest.raises(TargetError, match="No space left"):
        ke.export(_model(), tmp_path / "m")
    assert _contents(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_averages_and_half_values_are_not_those_of_the_variables(tmp_path, writers):
    model = _model()
    ke.export(model, tmp_path / "half", variables_dtype="float16")
    assert writers == ["MainThread"]
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    model.fit(np.ones((4, 4), np.float32), np.ones((4, 3), np.float32), verbose=0)
    ke.export(model, tmp_path / "ema", weights="ema")
    assert writers == ["MainThread"] * 2


def test_what_is_refused_after_the_trace_leaves_no_file_of_the_values(tmp_path, writers):
    class Waiting(tf.Module):
        def _deserialization_dependencies(self, children: Any) -> dict[str, Any]:
            return {"other": self.other}

    module = Waiting()
    module.v = tf.Variable(tf.ones([16]))
    module.other = Waiting()
    module.other.other = module
    with pytest.raises(ke.ExportError, match="depend on each other in a circle"):
        ke.save(module, tmp_path / "above" / "m")
    assert writers == ["keras_export values"]
    assert not list(tmp_path.iterdir())


def test_small_objects_are_refused_before_a_folder_is_made(tmp_path, monkeypatch, writers):
    monkeypatch.undo()
    module = tf.Module()
    module.v = tf.Variable(tf.ones([16]))
    made: list[str] = []
    stage = early_writing.publishing.stage
    monkeypatch.setattr(
        early_writing.publishing, "stage", lambda path: made.append(path) or stage(path)
    )
    with pytest.raises(ke.ExportError):
        ke.save(module, tmp_path / "m", signatures={"a b/": 3})
    assert made == []
