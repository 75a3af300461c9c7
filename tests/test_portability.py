"""Promises of `portability`: what is exported beside a GPU runs without one."""

from __future__ import annotations

import collections
import threading
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import portability
from keras_export import tf_internals as tfi

Device = collections.namedtuple("Device", ["name", "device_type"])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keras is told that there is a GPU."""
    devices = [Device("/device:CPU:0", "CPU"), Device("/device:GPU:0", "GPU")]

    def listed(device_type: str | None = None) -> list[Any]:
        return [x for x in devices if device_type in (None, x.device_type)]

    def appear() -> None:
        monkeypatch.setattr(tf.config, "list_logical_devices", listed)
        _forget_devices()

    yield appear
    monkeypatch.undo()
    _forget_devices()


def _forget_devices() -> None:
    for module, name, _ in tfi.keras_device_questions():
        getattr(getattr(module, name), "cache_clear", lambda: None)()


def recurrent() -> keras.Model:
    x = keras.Input((5, 3), name="x")
    h = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(x)
    h = keras.layers.GRU(4, return_sequences=True)(h)
    return keras.Model(x, keras.layers.LSTM(2, name="y")(h))


def channels_first() -> keras.Model:
    x = keras.Input((2, 6, 6), name="x")
    layer = keras.layers.DepthwiseConv2D(3, data_format="channels_first", name="y")
    return keras.Model(x, layer(x))


def ops_of_a_live_trace(model: Any, x: Any) -> set[str]:
    trace = tf.function(lambda x: model(x, training=False)).get_concrete_function(x)
    return {op.type for op in trace.graph.get_operations()}


@pytest.mark.parametrize("make", [recurrent, channels_first])
def test_what_is_exported_beside_a_gpu_runs_without_one(
    make: Any, gpu: Any, tmp_path: Path, consumers: Consumers
) -> None:
    model = make()
    x = np.random.default_rng(0).normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    expected = model(x).numpy()
    ke.export(model, tmp_path / "without")
    gpu()
    ke.export(model, tmp_path / "beside")
    assert artifacts.ops(tmp_path / "beside") == artifacts.ops(tmp_path / "without")
    assert not [op for op in artifacts.ops(tmp_path / "beside") if "Cudnn" in op]
    for loader in (consumers.tf, consumers.cpp):
        served = loader(tmp_path / "beside").signature("serve", x=x)
        assert_same(served, {"y": expected}, rtol=1e-4, atol=1e-5)
    if make is recurrent:  # else this test could not fail
        assert "CudnnRNNV3" in ops_of_a_live_trace(model, x)


def test_a_layer_that_insists_on_cudnn_gives_in_for_the_export_alone(
    gpu: Any, tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((5, 3), name="x")
    value = np.ones((2, 5, 3), "float32")
    layer = keras.layers.LSTM(2, name="y")
    model = keras.Model(x, layer(x))
    expected = model(value).numpy()
    layer.use_cudnn = True
    gpu()
    ke.export(model, tmp_path / "a")
    archive = ke.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.__call__, [tf.TensorSpec([None, 5, 3], name="x")])
    archive.write_out(tmp_path / "b")
    assert_same(consumers.cpp(tmp_path / "a").signature("serve", x=value), {"y": expected}, 1e-4)
    (served,) = consumers.cpp(tmp_path / "b").signature("serve", x=value).values()
    assert_same(served, expected, rtol=1e-4)
    assert layer.use_cudnn is True
    assert "CudnnRNNV3" in ops_of_a_live_trace(model, value)


def test_other_threads_keep_their_kernels_meanwhile(gpu: Any) -> None:
    model, x = recurrent(), np.ones((1, 5, 3), "float32")
    model.layers[-1].use_cudnn = True
    gpu()
    found: list[set[str]] = []
    other = threading.Thread(target=lambda: found.append(ops_of_a_live_trace(model, x)))
    with portability.portable_kernels(model):
        with portability.portable_kernels(model):
            other.start()
            other.join()
        assert "CudnnRNNV3" not in ops_of_a_live_trace(model, x)
    assert "CudnnRNNV3" in found[0]
    assert model.layers[-1].use_cudnn is True


def test_nothing_stays_changed() -> None:
    before = [getattr(module, name) for module, name, _ in tfi.keras_device_questions()]
    with pytest.raises(ZeroDivisionError), portability.portable_kernels():
        _ = 1 / 0
    after = [getattr(module, name) for module, name, _ in tfi.keras_device_questions()]
    assert all(x is y for x, y in zip(before, after, strict=True))
    assert before
