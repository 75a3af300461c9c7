"""Promises of `keras_models`: the author's names, the real dtypes, inference mode."""

from __future__ import annotations

import collections
import re
import sys
import types
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, Ragged, Sparse, Spec, assert_same

import keras_export as ke
from keras_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    SignatureError,
    UnsupportedError,
)

Scores = collections.namedtuple("Scores", ["low", "high"])
F = np.float32


def dense(units: int, name: str | None = None) -> keras.layers.Layer:
    return keras.layers.Dense(units, name=name)


def signature(report: ke.ExportReport) -> str:
    assert list(report.signatures) == ["serve", "serving_default"]
    assert str(report.signatures["serve"]) == str(report.signatures["serving_default"])
    return str(report.signatures["serve"])


def check(
    consumers: Consumers, export_dir: Path, inputs: dict[str, Any], expected: dict[str, Any]
) -> None:
    result = consumers.everywhere(export_dir, "serve", **inputs)
    assert_same(result, {name: np.asarray(x) for name, x in expected.items()}, rtol=1e-5, atol=1e-6)


# -- symbolic models ------------------------------------------------------------------------------


def test_inputs_and_outputs_are_called_as_their_layers(
    tmp_path: Path, consumers: Consumers
) -> None:
    a, b = keras.Input((2,), name="zebra"), keras.Input((3,), name="ant")
    model = keras.Model([a, b], [dense(2, "right")(a), dense(1, "left")(b)])
    report = ke.export(model, tmp_path)
    assert signature(report) == (
        "(ant: float32[?, 3], zebra: float32[?, 2]) -> (left: float32[?, 1], right: float32[?, 2])"
    )
    x, y = np.ones([2, 2], "f4"), np.ones([2, 3], "f4")
    right, left = model([x, y])
    check(consumers, tmp_path, {"zebra": x, "ant": y}, {"right": right, "left": left})
    found = consumers.tf(tmp_path).call("serve", [x, y])
    assert_same(found[0], right.numpy(), rtol=1e-5)
    assert_same(found[1], left.numpy(), rtol=1e-5)


def test_dict_inputs_and_outputs_keep_their_keys(tmp_path: Path, consumers: Consumers) -> None:
    a, b = keras.Input((2,), name="x"), keras.Input((), dtype="int32", name="n")
    h = dense(2)(a) + keras.ops.expand_dims(keras.ops.cast(b, "float32"), -1)
    model = keras.Model({"x": a, "n": b}, {"out": h, "double": h * 2})
    report = ke.export(model, tmp_path)
    assert signature(report) == (
        "(n: int32[?], x: float32[?, 2]) -> (double: float32[?, 2], out: float32[?, 2])"
    )
    # Not as many rows as columns: Keras would take the column for a bias then.
    x, n = np.ones([3, 2], "f4"), np.int32([1, 2, 3])
    expected = model({"x": x, "n": n})
    check(consumers, tmp_path, {"x": x, "n": n}, expected)
    found = consumers.tf(tmp_path).call("serve", {"x": x, "n": n})
    assert_same(found["double"], expected["double"].numpy(), rtol=1e-5)


def test_a_sequential_is_called_by_its_input_and_its_last_layer(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,), name="x"), dense(3), dense(1, "score")])
    report = ke.export(model, tmp_path)
    assert signature(report) == "(x: float32[?, 2]) -> (score: float32[?, 1])"


def test_a_sequential_that_was_built_by_a_shape_is_exported(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = keras.Sequential([dense(2, "y")])
    model.build((None, 3))
    report = ke.export(model, tmp_path)
    ((name, _),) = report.signatures["serve"].inputs.items()
    x = np.ones([1, 3], "f4")
    check(consumers, tmp_path, {name: x}, {"y": model(x)})


def test_several_outputs_of_one_layer_are_numbered(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((3, 2), name="x")
    model = keras.Model(x, keras.layers.LSTM(2, return_state=True, name="lstm")(x))
    report = ke.export(model, tmp_path)
    assert list(report.signatures["serve"].outputs) == ["lstm", "lstm_1", "lstm_2"]
    value = np.ones([1, 3, 2], "f4")
    expected = dict(zip(["lstm", "lstm_1", "lstm_2"], model(value), strict=True))
    check(consumers, tmp_path, {"x": value}, expected)


def test_a_name_that_keras_counted_is_used_and_flagged(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    report = ke.export(keras.Model(x, dense(1)(x)), tmp_path)
    (name,) = report.signatures["serve"].outputs
    assert re.fullmatch(r"dense(_\d+)?", name)
    assert report.notes == [
        f"the output name {name!r} was given by Keras's counter and changes with the process; "
        "name the layer to keep it"
    ]
    named = keras.Model(x, dense(1, "mine")(x))
    assert ke.export(named, tmp_path).notes == []


def test_names_with_other_characters_are_mapped_and_reported(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((2,), name="my-input.1")
    model = keras.Model(x, {"a b": dense(1)(x)})
    report = ke.export(model, tmp_path)
    assert signature(report) == "(my_input_1: float32[?, 2]) -> (a_b: float32[?, 1])"
    for kind, name, mapped in (("input", "my-input.1", "my_input_1"), ("output", "a b", "a_b")):
        words = f"the {kind} {name!r} is called {mapped!r}: only letters, digits and _ are kept"
        assert words in report.notes
    value = np.ones([1, 2], "f4")
    check(consumers, tmp_path, {"my_input_1": value}, {"a_b": model(value)["a b"]})


def test_an_input_that_python_cannot_name_is_called_otherwise(
    tmp_path: Path, consumers: Consumers
) -> None:
    name = "1st"
    x = keras.Input((2,), name=name)
    model = keras.Model(x, dense(1, "y")(x))
    report = ke.export(model, tmp_path)
    assert signature(report) == f"(input_{name}: float32[?, 2]) -> (y: float32[?, 1])"
    words = f"the input {name!r} is called 'input_{name}': Python has no argument {name!r}"
    assert words in report.notes
    value = np.ones([1, 2], "f4")
    check(consumers, tmp_path, {f"input_{name}": value}, {"y": model(value)})


def test_the_second_output_of_a_layer_takes_no_other_layers_name(tmp_path: Path) -> None:
    x = keras.Input((3, 2), name="x")
    both = keras.layers.GRU(4, return_state=True, name="gru")(x)
    model = keras.Model(x, [*both, keras.layers.GRU(4, name="gru_1")(x)])
    assert list(ke.export(model, tmp_path).signatures["serve"].outputs) == ["gru", "gru_1", "gru_2"]
    found = tf.saved_model.load(str(tmp_path)).signatures["serve"](x=tf.ones([1, 3, 2]))
    for name, value in zip(("gru", "gru_2", "gru_1"), model(np.ones([1, 3, 2])), strict=True):
        assert_same(found[name].numpy(), value.numpy(), rtol=1e-5, atol=1e-6)


def test_arguments_of_any_name_are_called_by_it(tmp_path: Path, consumers: Consumers) -> None:
    class Scaled(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = dense(1)
            self.dense.build((None, 2))

        def call(self, x: Any, *, offset: Any, **others: Any) -> Any:
            return self.dense(x) * others["scale"] + offset

    model, x = ke.with_export(Scaled()), np.float32([[1, 2], [3, 4]])
    values = {"scale": np.float32([[2], [3]]), "offset": np.float32([[1], [0]])}
    expected = model(x, **values)
    report = ke.export(model, tmp_path)
    assert signature(report) == (
        "(offset: float32[?, 1], scale: float32[?, 1], x: float32[?, 2])"
        " -> (output_0: float32[?, 1])"
    )
    check(consumers, tmp_path, {"x": x, **values}, {"output_0": expected})


def test_more_specs_than_arguments_are_refused(tmp_path: Path) -> None:
    class Twice(keras.Model):
        def call(self, x: Any) -> Any:
            return 2 * x

    with pytest.raises(ArgumentError, match=r"at most 1 specs.*Twice\.call, received 2"):
        ke.export(Twice(), tmp_path / "m", input_signature=[tf.TensorSpec([None])] * 2)
    assert not (tmp_path / "m").exists()


def test_a_layer_whose_calls_nobody_recorded_is_told_apart(tmp_path: Path) -> None:
    ke.export(keras.Sequential([keras.Input((2,), name="x"), dense(1)]), tmp_path / "model")
    layer = keras.layers.TFSMLayer(tmp_path / "model", call_endpoint="serve")
    layer(np.ones((1, 2), "f4"))
    with pytest.raises(ArgumentError, match="a TFSMLayer of whose calls Keras recorded nothing"):
        ke.export(layer, tmp_path / "again")
    ke.export(layer, tmp_path / "again", input_signature=[tf.TensorSpec([None, 2])])


@pytest.mark.parametrize("name", ["in", "lambda", "self"])
def test_an_input_that_python_cannot_name_gets_another_name(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((2,), name=name)
    model = keras.Model(x, dense(1, "class")(x))
    report = ke.export(model, tmp_path)
    assert signature(report) == f"({name}_: float32[?, 2]) -> (class: float32[?, 1])"
    assert f"the input {name!r} is called '{name}_': Python has a meaning for {name!r}" in (
        report.notes
    )
    value = np.ones([1, 2], "f4")
    check(consumers, tmp_path, {f"{name}_": value}, {"class": model(value)})


def test_a_clash_after_mapping_is_refused(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, {"a b": dense(1)(x), "a-b": dense(1)(x)})
    words = "expected a name of its own for each tensor, received 2 tensors called 'a_b'."
    with pytest.raises(SignatureError, match=re.escape(words)):
        ke.export(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    ke.export(model, tmp_path / "a", output_names=["one", "two"])


def test_the_names_of_keras_can_be_had(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, [dense(1, "a")(x), dense(2, "b")(x)])
    report = ke.export(model, tmp_path / "ours", names="keras")
    model.export(tmp_path / "keras")
    theirs = artifacts.meta_graph(tmp_path / "keras").signature_def["serve"]
    assert list(report.signatures["serve"].outputs) == sorted(theirs.outputs)
    assert list(report.signatures["serve"].inputs) == sorted(theirs.inputs)
    with pytest.raises(ArgumentError, match="names='layers' or names='keras', received names='x'"):
        ke.export(model, tmp_path / "c", names="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["p", "q"], ["p", "q"]), (("p", "q"), ["p", "q"]), ({"a": "p"}, ["b", "p"])],
)
def test_output_names_override(tmp_path: Path, wanted: Any, expected: list[str]) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, [dense(1, "a")(x), dense(2, "b")(x)])
    report = ke.export(model, tmp_path, output_names=wanted)
    outputs = report.signatures["serve"].outputs
    assert list(outputs) == expected
    assert outputs["p"].shape.as_list() == [None, 1]


@pytest.mark.parametrize("wanted", [["p"], ["p", "q", "r"], {"zz": "p"}])
def test_wrong_output_names_are_refused(tmp_path: Path, wanted: Any) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, [dense(1, "a")(x), dense(2, "b")(x)])
    words = "Cannot export: expected one name for each of the 2 outputs ('a', 'b'), received"
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ke.export(model, tmp_path / "a", output_names=wanted)
    with pytest.raises(SignatureError, match="2 tensors called 'p'"):
        ke.export(model, tmp_path / "a", output_names=["p", "p"])
    assert list(tmp_path.iterdir()) == []


def test_save_and_export_give_the_same_names(tmp_path: Path) -> None:
    x = keras.Input((3, 2), name="x-y")
    model = keras.Model(x, keras.layers.LSTM(2, return_state=True, name="lstm")(x))
    saved, exported = ke.save(model, tmp_path / "s"), ke.export(model, tmp_path / "e")
    assert list(saved.signatures) == ["serving_default"]
    assert str(saved.signatures["serving_default"]) == str(exported.signatures["serve"])


def test_shapes_and_dtypes_are_those_of_the_model(tmp_path: Path, consumers: Consumers) -> None:
    ids = keras.Input((None,), batch_size=4, dtype="int64", name="ids")
    mask = keras.Input((), batch_size=4, dtype="bool", name="mask")
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(5, 2)(ids))
    y = keras.layers.Multiply(name="y")([h, keras.ops.cast(mask, "float32")[:, None]])
    report = ke.export(keras.Model([ids, mask], y), tmp_path)
    assert signature(report) == "(ids: int64[4, ?], mask: bool[4]) -> (y: float32[4, 2])"
    specs = consumers.cpp(tmp_path).signatures()["serve"]
    assert specs["inputs"] == {"ids": Spec((4, None), "int64"), "mask": Spec((4,), "bool")}


def test_shared_layers_and_nested_models_run(tmp_path: Path, consumers: Consumers) -> None:
    shared = dense(2, "shared")
    inner_input = keras.Input((2,), name="inner_input")
    inner = keras.Model(inner_input, shared(shared(inner_input)), name="inner")
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    y = keras.layers.Add(name="y")([inner(a), inner(shared(b))])
    model = keras.Model([a, b], y)
    ke.export(model, tmp_path)
    x = np.ones([1, 2], "f4")
    check(consumers, tmp_path, {"a": x, "b": 2 * x}, {"y": model([x, 2 * x])})
    assert len(consumers.checkpoint(tmp_path).shapes()) == 2


def test_mixed_precision_and_lambda_run(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((2,), name="x")
    h = keras.layers.Dense(2, dtype="mixed_float16")(x)
    model = keras.Model(x, keras.layers.Lambda(lambda t: t * 2, name="y", dtype="float32")(h))
    ke.export(model, tmp_path)
    value = np.ones([1, 2], "f4")
    result = consumers.everywhere(tmp_path, "serve", x=value)
    assert_same(result, {"y": model(value).numpy()}, rtol=1e-2)


def test_a_model_loaded_from_a_file_is_exported(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, dense(1, "y")(x))
    model.save(tmp_path / "m.keras")
    ke.export(keras.models.load_model(tmp_path / "m.keras"), tmp_path / "a")
    value = np.ones([1, 2], "f4")
    check(consumers, tmp_path / "a", {"x": value}, {"y": model(value)})


# -- inference mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_dropout_is_off_and_statistics_are_frozen(
    tmp_path: Path, consumers: Consumers, write: Any
) -> None:
    x = keras.Input((4,), name="x")
    h = keras.layers.Dropout(0.9)(keras.layers.GaussianNoise(0.9)(x))
    model = keras.Model(x, keras.layers.BatchNormalization(name="y")(h))
    model.compile("sgd", "mse")
    model.fit(np.random.normal(3, 2, [32, 4]), np.zeros([32, 4]), verbose=0)
    write(model, tmp_path)
    value = np.random.normal(size=[3, 4]).astype("f4")
    expected = {"y": model(value, training=False)}
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        for _ in range(2):
            result = artifact.signature("serving_default", x=value)
            assert_same(result, {"y": expected["y"].numpy()}, rtol=1e-5)
    loaded = consumers.tf(tmp_path)
    before = {path: v.value for path, v in loaded.variables().items()}
    loaded.signature("serving_default", x=value)
    assert_same({path: v.value for path, v in loaded.variables().items()}, before)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(x)))
    before = [np.array(v.numpy()) for v in model.variables]
    attributes, trainable = set(vars(model)), model.trainable
    ke.export(model, tmp_path)
    for variable, value in zip(model.variables, before, strict=True):
        assert_same(np.asarray(variable.numpy()), value)
    assert (set(vars(model)), model.trainable) == (attributes, trainable)


def test_a_training_variant_is_an_explicit_signature(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.BatchNormalization(name="y")(x))

    class Both(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def train(self, x: tf.Tensor) -> Any:
            return {"y": self.model(x, training=True)}

    module = Both()
    ke.save(module, tmp_path, module.train)
    value = F([[1, 2, 3], [3, 4, 5]])
    result = consumers.cpp(tmp_path).signature(x=value)
    assert_same(result["y"], F([[-1, -1, -1], [1, 1, 1]]), rtol=1e-2)


# -- subclassed models ----------------------------------------------------------------------------


class Halves(keras.Model):
    """Takes whatever, in integers; returns by name."""

    def call(self, counts: Any) -> Any:
        return {"half": counts // 2, "dtype_is_int": tf.constant(counts.dtype == tf.int32)}


class TwoArguments(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="two_arguments")
        self.dense = dense(2)

    def call(self, x: Any, scale: Any = None, training: bool = False) -> Any:
        y = self.dense(x)
        return y if scale is None else y * scale


class Nested(keras.Model):
    def call(self, features: Any) -> Any:
        return Scores(features["a"][0] - features["a"][1], features["b"])


def test_a_model_that_was_called_has_its_argument_names(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = TwoArguments()
    x = np.ones([5, 3], "f4")
    model(x)
    report = ke.export(model, tmp_path)
    assert signature(report) == "(x: float32[?, 3]) -> (output_0: float32[?, 2])"
    (note,) = report.notes
    assert note.startswith("dtype assumed: Keras recorded only the shape of 'x', so its dtype is")
    assert "pass input_signature= to say another" in note
    check(consumers, tmp_path, {"x": x[:2]}, {"output_0": model(x[:2])})


def test_an_integer_input_stays_an_integer(tmp_path: Path, consumers: Consumers) -> None:
    model, spec = Halves(), tf.TensorSpec([None, 2], tf.int32)
    report = ke.export(model, tmp_path / "given", input_signature=[spec])
    assert signature(report).startswith("(counts: int32[?, 2]) -> (")
    assert report.notes == []
    result = consumers.everywhere(tmp_path / "given", "serve", counts=np.int32([[4, 7]]))
    assert_same(result, {"half": np.int32([[2, 3]]), "dtype_is_int": np.array(True)})


def test_an_integer_input_is_read_from_the_traces_of_predict(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = Halves()
    model.predict(np.int32([[4, 7]]), verbose=0)
    report = ke.export(model, tmp_path)
    assert signature(report).startswith("(counts: int32[?, 2]) -> (")
    result = consumers.everywhere(tmp_path, "serve", counts=np.int32([[4, 7], [8, 9], [1, 1]]))
    assert_same(result["half"], np.int32([[2, 3], [4, 4], [0, 0]]))


def test_nested_inputs_are_flattened_by_one_rule(tmp_path: Path, consumers: Consumers) -> None:
    spec = tf.TensorSpec([None], tf.float32)
    report = ke.export(Nested(), tmp_path, input_signature=[{"b": spec, "a": [spec, spec]}])
    inputs = report.signatures["serve"].inputs
    assert list(inputs) == ["a_0", "a_1", "b"]
    assert list(report.signatures["serve"].outputs) == ["high", "low"]
    values = {"a_0": F([5]), "a_1": F([3]), "b": F([7])}
    check(consumers, tmp_path, values, {"low": F([2]), "high": F([7])})
    found = consumers.tf(tmp_path).call("serve", {"b": F([7]), "a": [F([5]), F([3])]})
    assert_same(found.fields, {"low": F([2]), "high": F([7])})


def test_a_list_argument_is_numbered(tmp_path: Path, consumers: Consumers) -> None:
    class Pair(keras.Model):
        def call(self, xs: Any) -> Any:
            return [xs[0] - xs[1], xs[1]]

    spec = tf.TensorSpec([None], tf.float32)
    report = ke.export(Pair(), tmp_path, input_signature=[[spec, spec]])
    assert list(report.signatures["serve"].inputs) == ["xs_0", "xs_1"]
    check(
        consumers, tmp_path, {"xs_0": F([5]), "xs_1": F([3])},
        {"output_0": F([2]), "output_1": F([3])},
    )  # fmt: skip


def test_several_arguments_take_a_signature_each(tmp_path: Path, consumers: Consumers) -> None:
    model = TwoArguments()
    x = np.ones([2, 3], "f4")
    model(x, scale=F([2]))
    specs = [tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([1], tf.float32, name="factor")]
    report = ke.export(model, tmp_path, input_signature=specs)
    assert signature(report) == (
        "(factor: float32[1], x: float32[?, 3]) -> (output_0: float32[?, 2])"
    )
    check(consumers, tmp_path, {"x": x, "factor": F([3])}, {"output_0": model(x, F([3]))})
    found = consumers.tf(tmp_path).call("serve", x, F([3]))
    assert_same(found, model(x, F([3])).numpy(), rtol=1e-5)


def test_several_arguments_without_a_record_need_a_signature(tmp_path: Path) -> None:
    class Both(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="both")
            self.dense = dense(2)

        def build(self, x_shape: Any, y_shape: Any) -> None:
            self.dense.build(x_shape)

        def call(self, x: Any, y: Any) -> Any:
            return self.dense(x) + y

    model = Both()
    model(np.ones([2, 3], "f4"), np.ones([2, 2], "f4"))
    words = (
        "Cannot export the model 'both': expected an input_signature for a model whose call takes "
        "several tensors, received 2 arguments of which Keras recorded the shapes alone. Write "
        "`input_signature=[tf.TensorSpec([None, 3], tf.float32, name='x'), "
        "tf.TensorSpec([None, 2], tf.float32, name='y')]` with the right dtypes."
    )
    with pytest.raises(ArgumentError, match=re.escape(words)):
        ke.export(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_save_of_a_model_that_was_never_called_notes_what_is_missing(
    tmp_path: Path, consumers: Consumers
) -> None:
    report = ke.save(TwoArguments(), tmp_path)
    assert report.signatures == {}
    (note,) = report.notes
    assert note.startswith("no signature: Cannot export the model 'two_arguments'")
    assert consumers.tf(tmp_path).signatures() == {}


# -- input_signature ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        tf.TensorSpec([None, 3], tf.float32, name="x"),
        [tf.TensorSpec([None, 3], tf.float32)],
        (tf.TensorSpec([None, 3], tf.float32),),
        [keras.layers.InputSpec(shape=(None, 3), dtype="float32")],
        [keras.KerasTensor((None, 3), "float32")],
    ],
    ids=["bare", "list", "tuple", "InputSpec", "KerasTensor"],
)
def test_an_input_signature_has_many_forms(tmp_path: Path, spec: Any) -> None:
    before = repr(spec)
    report = ke.export(TwoArguments(), tmp_path, input_signature=spec)
    assert signature(report).endswith("-> (output_0: float32[?, 2])")
    ((_, found),) = report.signatures["serve"].inputs.items()
    assert found.shape.as_list() == [None, 3]
    assert repr(spec) == before


def test_an_array_as_signature_says_shape_and_dtype(tmp_path: Path) -> None:
    report = ke.export(Halves(), tmp_path, input_signature=[np.zeros([4, 2], "int32")])
    (found,) = report.signatures["serve"].inputs.values()
    assert (found.shape.as_list(), found.dtype) == ([4, 2], tf.int32)


def test_a_spec_without_a_dtype_is_refused(tmp_path: Path) -> None:
    words = "expected tf.TensorSpec, keras.InputSpec, KerasTensor or an array, received"
    for wrong in ([3], ["x"], [keras.layers.InputSpec(ndim=2)]):
        with pytest.raises(ArgumentTypeError, match=re.escape(words)):
            ke.export(Halves(), tmp_path / "a", input_signature=wrong)
    assert list(tmp_path.iterdir()) == []


def test_an_input_signature_renames_and_fixes_the_shape_of_a_functional_model(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((None, 2), name="x")
    model = keras.Model(x, dense(1, "y")(x))
    spec = tf.TensorSpec([8, 4, 2], tf.float32, name="frames")
    report = ke.export(model, tmp_path, input_signature=[spec])
    assert signature(report) == "(frames: float32[8, 4, 2]) -> (y: float32[8, 4, 1])"
    value = np.ones([8, 4, 2], "f4")
    check(consumers, tmp_path, {"frames": value}, {"y": model(value)})


def test_ragged_and_sparse_inputs_run(tmp_path: Path, consumers: Consumers) -> None:
    class Rows(keras.Model):
        def call(self, rows: Any) -> Any:
            return tf.reduce_sum(rows, 1)

    class Total(keras.Model):
        def call(self, cells: Any) -> Any:
            return tf.sparse.reduce_sum(cells, 1)

    ragged = tf.RaggedTensorSpec([None, None], tf.float32, ragged_rank=1)
    ke.export(Rows(), tmp_path / "ragged", input_signature=[ragged])
    rows = Ragged(F([1, 2, 3]), np.int64([0, 1, 3]))
    assert_same(consumers.tf(tmp_path / "ragged").call("serve", rows), F([1, 5]))
    sparse = tf.SparseTensorSpec([None, 3], tf.float32)
    ke.export(Total(), tmp_path / "sparse", input_signature=[sparse])
    cells = Sparse(np.int64([[0, 1], [1, 2]]), F([5, 7]), np.int64([2, 3]))
    assert_same(consumers.tf(tmp_path / "sparse").call("serve", cells), F([5, 7]))


# -- layers and states ----------------------------------------------------------------------------


def test_a_layer_is_exported_as_a_model_is(tmp_path: Path, consumers: Consumers) -> None:
    layer = dense(2)
    x = np.ones([1, 3], "f4")
    layer(x)
    report = ke.export(layer, tmp_path)
    (name,) = report.signatures["serve"].inputs
    check(consumers, tmp_path, {name: x}, {"output_0": layer(x)})


class Counting(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__(name="counting")
        self.count = self.add_weight(shape=(), name="count", trainable=False, dtype="int32")

    def call(self, x: Any) -> Any:
        self.count.assign_add(1)
        return x


def test_state_that_a_model_updates_is_exported_and_reported(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, Counting()(x))
    report = ke.export(model, tmp_path)
    assert any("counting/count" in note for note in report.notes)
    artifact = consumers.tf(tmp_path)
    (before,) = (v.value for v in artifact.variables().values())
    artifact.signature("serve", x=F([[1, 2]]))
    (after,) = (v.value for v in artifact.variables().values())
    assert after == before + 1


def test_updated_state_can_be_refused(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, Counting()(x))
    with pytest.raises(ValueError, match="counting/count"):
        ke.export(model, tmp_path / "a", state_updates="refuse")
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_a_clear_error_at_the_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = keras.Input((2,))
    model = keras.Model(x, dense(1)(x))
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(RuntimeError, match="Keras runs on the backend 'numpy'") as caught:
        ke.export(model, tmp_path / "a")
    assert isinstance(caught.value, ke.ExportError)
    assert "KERAS_BACKEND=tensorflow" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_a_model_returns_is_served_as_its_value(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Counting(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.count = self.add_weight(
                shape=(), initializer="zeros", dtype="int32", trainable=False
            )

        def call(self, x: Any) -> Any:
            self.count.assign_add(1)
            return x, self.count.value

    layer = Counting()
    layer(tf.ones([2, 3]))
    report = ke.export(layer, tmp_path / "a")
    (name,) = report.signatures["serve"].inputs
    x = np.ones((2, 3), "float32")
    served = consumers.cpp(tmp_path / "a").signature("serve", **{name: x})
    assert_same(served, {"output_0": x, "output_1": np.int32(2)})


def test_keras_names_free_the_batch_of_a_model_that_was_built_by_its_first_call(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    model(tf.ones([3, 10]))
    report = ke.export(model, tmp_path / "a", names="keras")
    (found,) = report.signatures["serve"].inputs.values()
    assert found.shape.as_list() == [None, 10]


def test_keras_names_assume_the_dtypes_of_several_arguments_but_not_of_a_model_never_called(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Difference(keras.Model):
        def build(self, y_shape: Any, x_shape: Any) -> None:
            self.built = True

        def call(self, x: Any, y: Any) -> Any:
            return x - y

    model = Difference()
    model.build((2, 3), (2, 3))
    with pytest.raises(ValueError, match="was never called"):
        ke.export(model, tmp_path / "a", names="keras")
    x, y = np.full((2, 3), 5, "float32"), np.full((2, 3), 2, "float32")
    model(x, y)
    report = ke.export(model, tmp_path / "a", names="keras")
    assert [note[:13] for note in report.notes] == ["dtype assumed"] * 2
    assert_same(consumers.everywhere(tmp_path / "a", "serve", x=x, y=y), {"output_0": x - y})
    assert_same(consumers.tf(tmp_path / "a").call("serve", x, y), x - y)


class FromTorch(keras.layers.TorchModuleWrapper):
    """A PyTorch layer as far as it can be made without PyTorch."""

    def __init__(self, name: str) -> None:
        keras.layers.Layer.__init__(self, name=name)
        self.output_shape = None

    def call(self, x: Any) -> Any:
        return x

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def test_a_layer_of_pytorch_is_refused_by_its_path(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((2,)), FromTorch("from_torch")], name="inner")
    x = keras.Input((2,), name="x")
    model = keras.Model(x, inner(x))
    words = r"Cannot export model\..*\(FromTorch\): it computes with PyTorch"
    for write in (ke.export, ke.save):
        with pytest.raises(UnsupportedError, match=words):
            write(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_pytorch_in_a_layer_is_refused_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Module:
        def __call__(self, x: Any) -> Any:
            return x

    class Holder(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Module()

        def call(self, x: Any) -> Any:
            return self.linear(x)

    torch = types.SimpleNamespace(nn=types.SimpleNamespace(Module=Module))
    layer = Holder()
    layer(tf.ones([1, 2]))
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(UnsupportedError, match=r"Cannot export model\.linear \(Module\)"):
        ke.export(layer, tmp_path / "a")


class Optional(keras.Model):
    """Scales and shifts where it is given by what."""

    def call(self, inputs: Any, shift: Any = None, more: Any = None) -> Any:
        x, scale = (inputs["x"], inputs["scale"]) if isinstance(inputs, dict) else (inputs, None)
        x = x if scale is None else x * scale
        x = x if shift is None else x + shift
        return {"y": x if more is None else x - more}


def test_an_optional_argument_can_be_left_out(tmp_path: Path, consumers: Consumers) -> None:
    x = tf.TensorSpec([None, 2], name="x")
    report = ke.export(Optional(), tmp_path / "a", input_signature=[x, None])
    assert signature(report) == "(x: float32[?, 2]) -> (y: float32[?, 2])"
    value = np.ones((1, 2), "float32")
    assert_same(consumers.tf(tmp_path / "a").call("serve", value)["y"], value)
    more = tf.TensorSpec([], name="more")
    report = ke.export(Optional(), tmp_path / "b", input_signature=[x, None, more])
    check(consumers, tmp_path / "b", {"x": value, "more": np.float32(3)}, {"y": value - 3})


@pytest.mark.skipif(
    int(keras.__version__.split(".")[1]) < 9, reason="Keras itself cannot call such a model"
)
def test_an_optional_input_in_a_dict_can_be_left_out(tmp_path: Path, consumers: Consumers) -> None:
    specs = {"x": tf.TensorSpec([None, 2]), "scale": None}
    report = ke.export(Optional(), tmp_path, input_signature=[specs])
    assert signature(report) == "(x: float32[?, 2]) -> (y: float32[?, 2])"
    value = np.ones((1, 2), "float32")
    check(consumers, tmp_path, {"x": value}, {"y": value})
    assert_same(consumers.tf(tmp_path).call("serve", {"x": value, "scale": None})["y"], value)


def test_a_sequential_that_a_batch_built_takes_any_batch(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = keras.Sequential([dense(2, "y")])
    model(tf.ones([3, 4]))
    report = ke.export(model, tmp_path / "a")
    ((name, spec),) = report.signatures["serve"].inputs.items()
    assert spec.shape.as_list() == [None, 4]
    assert any("keras.Input(batch_shape=(3, 4))" in note for note in report.notes)
    x = np.ones((5, 4), "float32")
    check(consumers, tmp_path / "a", {name: x}, {"y": model.layers[0](x)})
    fixed = keras.Sequential([keras.Input(batch_shape=(3, 4)), dense(2)])
    stateful = keras.Sequential([keras.layers.LSTM(2, stateful=True)])
    stateful(tf.ones([3, 4, 2]))
    for number, declared in enumerate((fixed, stateful)):
        report = ke.export(declared, tmp_path / f"fixed-{number}")
        (spec,) = report.signatures["serve"].inputs.values()
        assert spec.shape[0] == 3
    assert any("keeps a state for each example" in note for note in report.notes)


def test_frozen_weights_stay_frozen_in_a_layer(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((4,), name="x")
    h = dense(3, "frozen")(x)
    model = keras.Model(x, dense(2, "y")(keras.layers.BatchNormalization()(h)))
    model.get_layer("frozen").trainable = False
    model.get_layer("y").enable_lora(1)
    ke.export(model, tmp_path / "a")
    weights = consumers.tfsm(tmp_path / "a").weights()
    assert weights["trainable"] == len(model.trainable_weights) == 5
    found = consumers.tfsm(tmp_path / "a").fine_tune(np.ones((2, 4), "f4"), np.zeros((2, 2), "f4"))
    assert found["updated"] == 5 and found["after"] < found["before"]


def test_ragged_results_come_back_ragged(tmp_path: Path, consumers: Consumers) -> None:
    class Words(keras.Model):
        def call(self, text: Any) -> Any:
            return {"words": tf.strings.split(text), "length": tf.strings.length(text)}

    model = ke.with_export(Words())
    model(tf.constant(["a b"]))
    ke.export(model, tmp_path)
    text = np.array(["a b", "c"], object)
    expected = Ragged(np.array([b"a", b"b", b"c"], object), np.array([0, 2, 3]))
    for found in (
        consumers.tf(tmp_path).signature("serve", text=text),
        consumers.tf(tmp_path).call("serve", text),
    ):
        assert_same(found["words"], expected)
