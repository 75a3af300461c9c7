"""Promises of `portability`: what is exported beside a GPU runs without one."""

from __future__ import annotations

import collections
import inspect
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
    try:
        expected = model(x).numpy()
    except tf.errors.UnimplementedError:
        pytest.skip("this TensorFlow cannot run the live model on this processor either")
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
    def found() -> list[Any]:
        questions = tfi.keras_device_questions()
        called = keras.layers.Discretization.__call__
        return [called, *(getattr(module, name) for module, name, _ in questions)]

    before = found()
    with pytest.raises(ZeroDivisionError), portability.portable_kernels():
        assert found()[0] is not before[0]
        _ = 1 / 0
    assert all(x is y for x, y in zip(before, found(), strict=True))
    assert before[1:]


def in_bins() -> keras.Model:
    x = keras.Input((2,), name="x")
    arguments = {"bin_boundaries": [-0.5, 0.0, 0.5]}
    outputs = {
        "a": keras.layers.Discretization(**arguments)(x),
        "b": keras.layers.Discretization(**arguments, dtype="int64")(x),
        "c": keras.layers.Discretization(**arguments, output_mode="one_hot", dtype="int32")(x),
        "d": keras.layers.Discretization(**arguments, output_mode="multi_hot")(x),
    }
    return keras.Model(x, outputs)


IN_BINS = np.float32([[-0.3, 0.2], [0.7, -0.4], [0.1, 2.0]])


def test_numbers_are_not_rounded_before_they_are_put_into_bins(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = in_bins()
    expected = {name: np.asarray(y) for name, y in model(IN_BINS).items()}
    assert expected["a"].tolist() == [[1, 2], [3, 1], [2, 3]]
    ke.export(model, tmp_path / "m")
    for loader in (consumers.tf, consumers.cpp):
        assert_same(loader(tmp_path / "m").signature("serve", x=IN_BINS), expected)


def test_another_thread_puts_into_bins_as_always_while_one_is_traced() -> None:
    model = in_bins()
    found: list[Any] = []

    def trace() -> None:
        found.append(tf.function(lambda x: model(x, training=False))(IN_BINS)["b"].numpy())

    trace()
    with portability.portable_kernels(model):
        other = threading.Thread(target=trace)
        other.start()
        other.join()
        trace()
    trace()
    before, elsewhere, here, after = found
    assert (before == elsewhere).all() and (before == after).all()
    np.testing.assert_array_equal(here, model(IN_BINS)["b"])
    assert (before != here).any()  # else Keras no longer rounds, and the scope need not mend it


def normalized(axis: int) -> keras.Model:
    x = keras.Input((6, 5, 4), name="x")
    layer = keras.layers.BatchNormalization(axis=axis, name="y")
    model = keras.Model(x, layer(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape).astype("float32") for w in model.weights])
    return model


@pytest.mark.parametrize(("axis", "reshapes"), [(3, 0), (-1, 0), (1, 4), (2, 4)])
def test_a_normalization_over_the_last_axis_reshapes_nothing(
    axis: int, reshapes: int, tmp_path: Path
) -> None:
    model = normalized(axis)
    ke.export(model, tmp_path / "m")
    assert ke.inspect(tmp_path / "m").ops.get("Reshape", 0) == reshapes
    x = np.random.default_rng(1).normal(size=(3, 6, 5, 4)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_array_equal(loaded.serve(x), model(x, training=False))


def test_gradients_of_a_normalization_are_those_of_the_live_model(tmp_path: Path) -> None:
    model = normalized(3)
    ke.export(model, tmp_path / "m")
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    x = tf.constant(np.random.default_rng(1).normal(size=(3, 6, 5, 4)), tf.float32)
    found = []
    for call, variables in (
        (lambda x: model(x, training=False), [v.value for v in model.trainable_variables]),
        (loaded.serve, loaded.trainable_variables),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(call(x) ** 2)
        found.append(tape.gradient(loss, [x, *variables]))
    for live, after in zip(*found, strict=True):
        np.testing.assert_allclose(after, live, rtol=1e-5, atol=1e-5)


def test_another_thread_normalizes_as_always_while_one_is_traced() -> None:
    ((module, name),) = tfi.keras_batch_normalization()
    seen: list[set[str]] = []

    def elsewhere() -> None:
        seen.append(ops_of_a_live_trace(normalized(3), tf.zeros((1, 6, 5, 4))))

    original = getattr(module, name)
    with portability.portable_kernels():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert "Reshape" in seen[0]
    assert getattr(module, name) is original


def convolved(**options: Any) -> keras.Model:
    x = keras.Input((6, 5), name="x")
    model = keras.Model(x, keras.layers.Conv1D(3, 2, name="y", **options)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


@pytest.mark.skipif(
    "ops.add" not in inspect.getsource(keras.layers.Conv1D.call),
    reason="this Keras adds a bias by an operator, where nobody can step in",
)
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-6), ("mixed_bfloat16", 0.05)])
def test_a_bias_of_the_last_axis_is_added_as_it_is(dtype: str, atol: float, tmp_path: Path) -> None:
    model = convolved(dtype=dtype)
    ke.export(model, tmp_path / "m")
    assert "Reshape" not in ke.inspect(tmp_path / "m").ops
    x = np.random.default_rng(1).normal(size=(3, 6, 5)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert_same(loaded.serve(x).numpy(), model(x, training=False).numpy(), atol=atol)


class Added(keras.layers.Layer):
    """Adds a reshaped vector where the reshape matters, and where it does not."""

    def __init__(self, first: tuple[int, ...], second: tuple[int, ...]) -> None:
        super().__init__(name="y")
        self.shapes = first, second

    def build(self, input_shape: Any) -> None:
        self.vector = self.add_weight(shape=(4,), initializer="ones", name="vector")

    def call(self, x: Any) -> Any:
        first, second = self.shapes
        return keras.ops.add(keras.ops.reshape(x, first), keras.ops.reshape(self.vector, second))


@pytest.mark.parametrize(
    ("first", "second", "reshapes"),
    [
        ((-1, 4), (1, 4), 1),
        ((-1, 4), (1, 1, 4), 2),
        ((-1, 4, 1), (1, 4, 1), 2),
        ((-1, 4, 2), (4, 1), 2),
        ((-1, 2, 4), (1, 4), 1),
        ((-1, 2, 1), (1, 1, 4), 1),
        ((-1, 2, 2), (1, 2, 2), 2),
    ],
)
def test_a_reshape_that_matters_stays(
    first: tuple[int, ...], second: tuple[int, ...], reshapes: int, tmp_path: Path
) -> None:
    x = keras.Input((8,), name="x")
    model = keras.Model(x, Added(first, second)(x))
    model.set_weights([np.float32([1, 2, 3, 4])])
    ke.export(model, tmp_path / "m")
    assert ke.inspect(tmp_path / "m").ops["Reshape"] == reshapes
    value = np.random.default_rng(1).normal(size=(2, 8)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert_same(loaded.serve(value).numpy(), model(value, training=False).numpy())


class Reshaped(keras.layers.Layer):
    """Reshapes by sizes that it asks for."""

    def __init__(self, shape_of: Any) -> None:
        super().__init__(name="y")
        self.shape_of = shape_of

    def call(self, x: Any) -> Any:
        return keras.ops.reshape(x, self.shape_of(x, keras.ops.shape(x)))


@pytest.mark.parametrize(
    ("shape", "shape_of", "is_free"),
    [
        ((2, 6), lambda x, sizes: (sizes[0], 3, 4), True),
        ((2, 6), lambda x, sizes: (sizes[0], 12), True),
        ((1,), lambda x, sizes: (sizes[0],), True),
        ((2, 6), lambda x, sizes: (3, sizes[0], 4), False),
        ((2, 6), lambda x, sizes: (sizes[0] + 0, 12), False),
        ((2, 6), lambda x, sizes: (sizes[0] * 2, 6), False),
        ((2, 6), lambda x, sizes: (keras.ops.shape(x + 0.0)[0], 12), False),
        ((2, 6), lambda x, sizes: (tf.shape(x)[tf.size(x) * 0], 12), False),
        ((2, 0), lambda x, sizes: (sizes[0], 0), False),
        ((None, 6), lambda x, sizes: (sizes[0], sizes[1], 6), False),
        ((None, 6), lambda x, sizes: (sizes[1], sizes[0], 6), False),
    ],
)
def test_the_first_axis_of_a_reshape_is_what_the_others_leave(
    shape: tuple[Any, ...], shape_of: Any, is_free: bool, tmp_path: Path
) -> None:
    x = keras.Input(shape, name="x")
    model = keras.Model(x, Reshaped(shape_of)(x))
    ke.export(model, tmp_path / "m")
    ops = ke.inspect(tmp_path / "m").ops
    assert is_free == ("Shape" not in ops)
    assert not (is_free and "Pack" in ops)
    signature = ke.inspect(tmp_path / "m").signatures["serve"]
    assert len(signature.outputs["y"].shape) == len(model.output_shape)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    for batch in (0, 1, 3):
        value = np.random.default_rng(1).normal(size=(batch, *(x or 5 for x in shape)))
        value = value[:, :, : shape[1]] if shape[1:] == (0,) else value
        assert_same(
            loaded.serve(value.astype("float32")).numpy(),
            model(value.astype("float32"), training=False).numpy(),
        )


def test_another_thread_reshapes_as_always_while_one_is_traced() -> None:
    x = keras.Input((12,), name="x")
    model = keras.Model(x, Reshaped(lambda x, sizes: (sizes[0], 3, 4))(x))
    seen: list[set[str]] = []

    def trace() -> None:
        concrete = tf.function(model).get_concrete_function(tf.TensorSpec([None, 12]))
        seen.append({op.type for op in concrete.graph.get_operations()})

    with portability.portable_kernels():
        other = threading.Thread(target=trace)
        other.start()
        other.join()
        trace()
    assert "Pack" in seen[0]
    assert "Pack" not in seen[1]


def test_a_reshape_without_a_graph_is_as_ever_while_one_is_traced() -> None:
    value = tf.reshape(tf.range(12.0), (2, 6))
    with portability.portable_kernels():
        found = keras.ops.reshape(value, (tf.shape(value)[0], 3, 2))
    np.testing.assert_array_equal(found, tf.reshape(value, (2, 3, 2)))
