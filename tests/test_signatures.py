"""Promises of `signatures`: what may be passed, what inputs and outputs are called, what is not."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers, Ragged, Sparse, Spec, assert_same

import keras_export as ke
from keras_export.errors import ReservedNameError, SignatureError
from keras_export.signatures import canonicalize

Pair = collections.namedtuple("Pair", ["second", "first"])

SCALAR = tf.TensorSpec([], tf.float32)


def signed(*specs: Any) -> Any:
    return tf.function(input_signature=specs)


def names(function: Any) -> list[str]:
    (signature,) = canonicalize(function).values()
    return [item.name for item in signature.inputs]


def outputs(result: Any) -> dict[str, Any]:
    function = tf.function(lambda x: result(x), input_signature=[tf.TensorSpec([2], tf.float32)])
    (signature,) = canonicalize(function).values()
    return {item.name: item.spec for item in signature.outputs}


def refuses(function: Any, *words: str, error: type[Exception] = SignatureError) -> None:
    with pytest.raises(error) as caught:
        canonicalize(function)
    assert isinstance(caught.value, ValueError)
    for part in words:
        assert part in str(caught.value)


# -- the three forms ------------------------------------------------------------------------------


def test_a_function_and_a_concrete_function_become_the_default_signature() -> None:
    function = tf.function(lambda x: x, input_signature=[SCALAR])
    for form in (function, function.get_concrete_function()):
        assert list(canonicalize(form)) == ["serving_default"]


def test_a_dict_names_its_signatures() -> None:
    one = tf.function(lambda x: x, input_signature=[SCALAR])
    two = tf.function(lambda y: y).get_concrete_function(SCALAR)
    assert sorted(canonicalize({"one": one, "t/w o-2": two})) == ["one", "t/w o-2"]
    assert canonicalize({}) == {}


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        (
            tf.function(lambda x: x),
            "It is a tf.function without input_signature: pass "
            "`f.get_concrete_function(tf.TensorSpec(...))`, or decorate it with "
            "`@tf.function(input_signature=[...])`.",
        ),
        (len, "It is a plain Python callable: decorate it with"),
        (7, "For several signatures pass a dict from names to functions."),
        ([len], "For several signatures pass a dict from names to functions."),
        (keras.layers.Dense(1), "To export a Keras model's forward pass, use"),
    ],
    ids=["no input_signature", "callable", "number", "list", "layer"],
)
def test_what_is_none_of_the_three_is_told_which_was_nearly_meant(wrong: Any, mend: str) -> None:
    expected = (
        "expected a tf.function with an input_signature, the result of get_concrete_function(), "
        "or a dict from names to either"
    )
    refuses(wrong, "Cannot export the signature 'serving_default': ", expected, mend)
    refuses({"mine": wrong}, "Cannot export the signature 'mine': ", mend)


def test_keys_are_strings_and_one_is_reserved() -> None:
    function = tf.function(lambda x: x, input_signature=[SCALAR])
    refuses({3: function}, "expected keys of type str, received key=3 (int)")
    refuses(
        {"__saved_model_init_op": function},
        "the SavedModel format keeps this key for the op that initialises tables",
        error=ReservedNameError,
    )


# -- inputs ---------------------------------------------------------------------------------------


def test_inputs_are_called_as_the_arguments_are() -> None:
    @signed(SCALAR, SCALAR)
    def f(zebra: tf.Tensor, ant: tf.Tensor) -> tf.Tensor:
        return zebra - ant

    assert names(f) == ["zebra", "ant"]


def test_a_spec_overrides_the_name_of_its_argument() -> None:
    @signed(tf.TensorSpec([], tf.float32, name="mine"), SCALAR)
    def f(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return x - y

    assert names(f) == ["mine", "y"]


def test_keyword_arguments_are_inputs_too() -> None:
    function = tf.function(lambda a, *, b, c: a + b + c)
    assert sorted(names(function.get_concrete_function(SCALAR, c=SCALAR, b=SCALAR))) == [
        "a",
        "b",
        "c",
    ]


def test_python_values_are_no_inputs(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x, negative, mode="up": -x if negative else x)
    concrete = module.f.get_concrete_function(SCALAR, True)
    assert names(concrete) == ["x"]
    ke.save(module, tmp_path, concrete)
    result = consumers.everywhere(tmp_path, x=np.float32(3))
    assert_same(result, {"output_0": np.float32(-3)})


def test_several_tensors_through_one_argument_are_named_or_refused() -> None:
    function = tf.function(lambda tree: tree["b"][0] + tree["b"][1])
    unnamed = function.get_concrete_function({"b": [SCALAR, SCALAR]})
    refuses(
        unnamed,
        "expected one tensor per argument, or a name for each tensor, received 2 tensors through "
        "the argument 'tree'",
        "Name each of them: tf.TensorSpec([], tf.float32, name=...), tf.TensorSpec([], "
        "tf.float32, name=...).",
    )
    spec = {"b": [tf.TensorSpec([], tf.float32, name) for name in ("left", "right")]}
    assert names(function.get_concrete_function(spec)) == ["left", "right"]


def test_composite_tensors_that_share_an_argument_are_numbered_and_reported(
    tmp_path: Path, consumers: Consumers
) -> None:
    function = tf.function(
        lambda both, x: both[0].values * both[1]["scale"] - both[1]["ragged"].values + x
    )
    ragged = tf.RaggedTensorSpec([None, None], tf.float32, ragged_rank=1)
    refuses(
        function.get_concrete_function([ragged, {"ragged": ragged, "scale": SCALAR}], SCALAR),
        "received 3 tensors through the argument 'both'",
        "Name each of them: tf.TensorSpec([], tf.float32, name=...).",
    )
    scale = tf.TensorSpec([], tf.float32, "scale")
    named = function.get_concrete_function([ragged, {"ragged": ragged, "scale": scale}], SCALAR)
    report = ke.save(tf.Module(), tmp_path, named)
    assert any("the inputs both, both_1, both_2, both_3 are" in note for note in report.notes)
    values, splits = np.float32([1, 2]), np.int64([0, 2])
    fed = {"both": values, "both_1": splits, "both_2": values * 10, "both_3": splits}
    result = consumers.everywhere(tmp_path, **fed, scale=np.float32(3), x=np.float32(100))
    assert_same(result, {"output_0": np.float32([93, 86])})


def test_two_inputs_of_one_name_are_numbered(tmp_path: Path, consumers: Consumers) -> None:
    @signed(tf.TensorSpec([], tf.float32, "same"), tf.TensorSpec([], tf.float32, "same"))
    def f(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return x - y

    assert names(f) == ["same", "same_1"]
    ke.save(tf.Module(), tmp_path, f)
    result = consumers.everywhere(tmp_path, same=np.float32(5), same_1=np.float32(3))
    assert_same(result, {"output_0": np.float32(2)})


def test_a_name_that_no_node_can_have_is_mapped_and_reported(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: x * 2.0, input_signature=[tf.TensorSpec([], tf.float32, name="_Größe")]
    )
    report = ke.save(module, tmp_path, module.f)
    (name,) = report.signatures["serving_default"].inputs
    assert re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", name)
    assert any(f"is called {name!r}" in note for note in report.notes)
    result = consumers.everywhere(tmp_path, **{name: np.float32(2)})
    assert_same(result, {"output_0": np.float32(4)})


def test_a_variable_as_argument_is_refused() -> None:
    function = tf.function(lambda v: v + 1.0)
    concrete = function.get_concrete_function(tf.Variable(1.0))
    refuses(concrete, "expected tensors as inputs", "an argument that is a tf.Variable")


def test_composite_tensors_are_inputs_by_their_components(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = tf.Module()
    module.f = tf.function(lambda rows: tf.reduce_sum(rows, 1))
    concrete = module.f.get_concrete_function(
        tf.RaggedTensorSpec([None, None], tf.float32, ragged_rank=1)
    )
    ke.save(module, tmp_path, concrete)
    assert names(concrete) == ["rows", "rows_1"]
    values, splits = np.float32([1, 2, 3]), np.int64([0, 1, 3])
    result = consumers.everywhere(tmp_path, rows=values, rows_1=splits)
    assert_same(result, {"output_0": np.float32([1, 5])})
    called = consumers.tf(tmp_path).call("f", Ragged(values, splits))
    assert_same(called, np.float32([1, 5]))


def test_a_tensor_default_is_the_default_of_the_signature(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Defaults(tf.Module):
        @tf.function(input_signature=[SCALAR, SCALAR, tf.TensorSpec([2], tf.int32)])
        def f(
            self,
            x: tf.Tensor,
            y: Any = tf.constant(7.0),  # noqa: B008
            z: Any = tf.constant([1, 2]),  # noqa: B008
        ) -> Any:
            return {"sum": x + y, "z": z}

    module = Defaults()
    ke.save(module, tmp_path, module.f)
    # Python's loader fills no defaults into a signature, in TensorFlow's own artifacts neither.
    assert_same(consumers.tf(tmp_path).call("f", np.float32(1))["sum"], np.float32(8))
    for reader in (consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        result = artifact.signature(x=np.float32(1))
        assert_same(result, {"sum": np.float32(8), "z": np.int32([1, 2])})
        result = artifact.signature(x=np.float32(1), y=np.float32(2), z=np.int32([5, 5]))
        assert_same(result, {"sum": np.float32(3), "z": np.int32([5, 5])})


def test_the_order_of_arguments_is_kept_whatever_their_names(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Order(tf.Module):
        @tf.function(input_signature=[SCALAR, tf.TensorSpec([], tf.string), SCALAR, SCALAR])
        def f(self, b: Any, a: Any, C: Any, _d: Any = None) -> Any:
            return {"difference": b - C, "text": a}

    module = Order()
    ke.save(module, tmp_path)
    inputs = {"b": np.float32(5), "a": np.array(b"t", object), "C": np.float32(3)}
    (extra,) = set(consumers.cpp(tmp_path).signatures()["serving_default"]["inputs"]) - set(inputs)
    result = consumers.everywhere(tmp_path, **inputs, **{extra: np.float32(0)})
    assert_same(result, {"difference": np.float32(2), "text": np.array(b"t", object)})


def test_a_signature_without_inputs_runs(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.v = tf.Variable(3.0)
    module.f = tf.function(lambda: {"v": module.v + 1.0}, input_signature=[])
    ke.save(module, tmp_path, module.f)
    assert_same(consumers.everywhere(tmp_path), {"v": np.float32(4)})


# -- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda x: x, ["output_0"]),
        (lambda x: [x, x], ["output_0", "output_1"]),
        (lambda x: (x,), ["output_0"]),
        (lambda x: {"b": x, "a": x}, ["a", "b"]),
        (lambda x: Pair(x, x), ["first", "second"]),
        (lambda x: 3, ["output_0"]),
        (lambda x: "text", ["output_0"]),
        (lambda x: [True, 2.5], ["output_0", "output_1"]),
        (lambda x: tf.sparse.from_dense(x), ["output_0"]),
        (lambda x: {"rows": tf.RaggedTensor.from_row_splits(x, [0, 1, 2])}, ["rows"]),
    ],
)
def test_outputs_are_named(result: Any, expected: list[str]) -> None:
    assert list(outputs(result)) == expected


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda x: None, "received a function that returns None"),
        (lambda x: [x, None], "output_1=None"),
        (lambda x: [x, [x]], "Return a flat dict: {'output_0': ..., 'output_1': ...}."),
        (lambda x: {"a": {"b": x}}, "a={'b': TensorSpec("),
        (lambda x: {"a": {"b": x}, "c": [x]}, "Return a flat dict: {'a_b': ..., 'c_0': ...}."),
        (lambda x: {"y": x, "aux": None}, "Return a flat dict: {'y': ...}."),
        (lambda x: {"a": {"b": x}, "a_b": x}, "{'output_0': ..., 'output_1': ...}."),
        (lambda x: {1: x}, "a dict of outputs with keys of type str, received key=1 (int)"),
        (lambda x: [], ""),
    ],
)
def test_outputs_that_are_no_flat_tensors_are_refused(result: Any, words: str) -> None:
    if words:
        with pytest.raises(SignatureError, match=re.escape(words)):
            outputs(result)
    else:
        assert outputs(result) == {}


def test_an_input_that_python_cannot_name_is_told(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="in")
    module.f = tf.function(lambda x: 2.0 * x, input_signature=[spec])
    report = ke.save(module, tmp_path, signatures=module.f)
    (note,) = report.notes
    assert "tf.saved_model.load refuses the input 'in', a keyword of Python" in note
    with pytest.raises(ConsumerError, match="'in' is not a valid parameter name"):
        consumers.tf(tmp_path).signatures()
    found = consumers.cpp(tmp_path).signature(**{"in": np.float32([1, 2])})
    assert_same(found, {"output_0": np.float32([2, 4])})


def test_eleven_outputs_keep_their_order(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: [x + float(i) for i in range(12)], input_signature=[SCALAR])
    ke.save(module, tmp_path)
    (input_name,) = consumers.cpp(tmp_path).signatures()["serving_default"]["inputs"]
    result = consumers.everywhere(tmp_path, **{input_name: np.float32(0)})
    assert_same(result, {f"output_{i}": np.float32(i) for i in range(12)})


def test_constants_and_composite_outputs_are_served(tmp_path: Path, consumers: Consumers) -> None:
    class Mixed(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="x")])
        def f(self, x: tf.Tensor) -> Any:
            ragged = tf.RaggedTensor.from_row_lengths(x, [0, 2])
            sparse = tf.sparse.from_dense(x)
            return {"n": 3, "text": "t", "sparse": sparse, "x": x, "ragged": ragged}

    ke.save(Mixed(), tmp_path)
    for reader in (consumers.tf, consumers.cpp):
        result = reader(tmp_path).signature(x=np.float32([0, 5]))
        assert_same(result["n"], np.int32(3))
        assert isinstance(result["sparse"], Sparse)
        assert_same(result["sparse"].values, np.float32([5]))
        assert isinstance(result["ragged"], Ragged)
        assert_same(result["ragged"].values, np.float32([0, 5]))
    assert consumers.cpp(tmp_path).signatures()["serving_default"]["outputs"]["n"] == Spec(
        (), "int32"
    )


# -- search ---------------------------------------------------------------------------------------


def test_one_function_with_a_signature_is_found_among_others(tmp_path: Path) -> None:
    class One(tf.Module):
        @tf.function
        def free(self, x: tf.Tensor) -> tf.Tensor:
            return x

        @tf.function(input_signature=[SCALAR])
        def bound(self, x: tf.Tensor) -> tf.Tensor:
            return x

        def plain(self) -> None:
            pass

    assert list(ke.save(One(), tmp_path).signatures) == ["serving_default"]


def test_no_or_several_candidates_give_no_signature(tmp_path: Path, consumers: Consumers) -> None:
    class Two(tf.Module):
        @tf.function(input_signature=[SCALAR])
        def a(self, x: tf.Tensor) -> tf.Tensor:
            return x + 1.0

        @tf.function(input_signature=[SCALAR])
        def b(self, x: tf.Tensor) -> tf.Tensor:
            return x + 2.0

    report = ke.save(Two(), tmp_path / "two")
    assert report.signatures == {}
    assert "no signature: several functions could be it; pass signatures= to choose" in report.notes
    loaded = consumers.tf(tmp_path / "two")
    assert loaded.signatures() == {}
    assert_same(loaded.call("b", np.float32(1)), np.float32(3))
    assert ke.save(tf.Module(), tmp_path / "none").signatures == {}
    assert consumers.cpp(tmp_path / "none").signatures() == {}


def test_the_same_function_under_two_names_is_one_candidate(tmp_path: Path) -> None:
    module = tf.Module()
    module.a = module.b = tf.function(lambda x: x, input_signature=[SCALAR])
    assert list(ke.save(module, tmp_path).signatures) == ["serving_default"]


def test_a_function_that_breaks_a_rule_is_passed_over_with_a_note(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Nested(tf.Module):
        @tf.function(input_signature=[SCALAR])
        def f(self, x: tf.Tensor) -> Any:
            return {"a": [x, x]}

    module = Nested()
    report = ke.save(module, tmp_path)
    assert report.signatures == {}
    (note,) = report.notes
    assert note.startswith("obj.f gives no signature: Cannot export the signature")
    assert_same(consumers.tf(tmp_path).call("f", np.float32(1))["a"][1], np.float32(1))
    with pytest.raises(SignatureError):
        ke.save(module, tmp_path, module.f)


def test_several_signatures_share_what_they_call(tmp_path: Path, consumers: Consumers) -> None:
    class Both(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = tf.Variable(2.0)

        @tf.function(input_signature=[SCALAR])
        def f(self, x: tf.Tensor) -> Any:
            return {"y": self.v * x}

        @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="by")])
        def add(self, by: tf.Tensor) -> Any:
            return {"v": self.v.assign_add(by)}

    module = Both()
    ke.save(module, tmp_path, {"one": module.f, "two": module.f, "add": module.add})
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        assert sorted(artifact.signatures()) == ["add", "one", "two"]
        artifact.signature("add", by=np.float32(8))
        for key in ("one", "two"):
            assert_same(artifact.signature(key, x=np.float32(3)), {"y": np.float32(30)})
