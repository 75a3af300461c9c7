"""Promises of `wrappers`: a function of one call, with other names, another order, never traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import functions, tracking, wrappers

SCALAR = tf.TensorSpec([], tf.float32)


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable(10.0)

    @tf.function(input_signature=[SCALAR, tf.TensorSpec([], tf.int32), SCALAR])
    def f(self, z: tf.Tensor, n: tf.Tensor, a: tf.Tensor) -> Any:
        return [z - a, n, self.v + a]

    @tf.function(input_signature=[SCALAR])
    def bump(self, by: tf.Tensor) -> Any:
        return self.v.assign_add(by)

    @tf.function(input_signature=[SCALAR], experimental_implements="mine.op")
    def marked(self, x: tf.Tensor) -> tf.Tensor:
        return x


def collected(name: str) -> tuple[Any, Any]:
    module = Module()
    collector = functions.FunctionCollector(tracking.track(module))
    concrete = getattr(module, name).get_concrete_function()
    return collector.library, collector.add(concrete, name)


def test_a_wrapper_is_one_call_with_its_own_order() -> None:
    library, inner = collected("f")
    specs = ((SCALAR, SCALAR, tf.TensorSpec([], tf.int32)), {})
    wrapper = wrappers.wrap(library, inner, "outer", [2, 0, 1], [1, 0], specs, [SCALAR, SCALAR])
    definition = library.definitions[wrapper.name]
    callee = library.definitions[inner.name]
    (call,) = definition.node_def
    assert call.attr["f"].func.name == inner.name
    outer = {x.name: x.type for x in definition.signature.input_arg}
    assert [outer[x] for x in call.input] == [x.type for x in callee.signature.input_arg]
    # Inner argument 0 is the wrapper's argument 2, and so on; captures stay behind.
    assert list(call.input) == ["input2", "input0", "input1", "input3"]
    results = [definition.ret[output.name] for output in definition.signature.output_arg]
    assert results == [f"{call.name}:output:1", f"{call.name}:output:0"]
    assert wrapper.bindings == inner.bindings
    assert wrapper.concrete is None
    assert library.functions[wrapper.name] is wrapper


def test_a_wrapper_gets_a_name_of_its_own() -> None:
    library, inner = collected("f")
    names = {
        wrappers.wrap(library, inner, "outer", [0, 1, 2], [0], ((), {}), [SCALAR]).name
        for _ in range(3)
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    ("name", "op"), [("bump", "StatefulPartitionedCall"), ("marked", "PartitionedCall")]
)
def test_a_wrapper_is_stateful_if_what_it_calls_is(name: str, op: str) -> None:
    library, inner = collected(name)
    wrapper = wrappers.wrap(library, inner, "outer", [0], [0], ((SCALAR,), {}), SCALAR)
    definition = library.definitions[wrapper.name]
    (call,) = definition.node_def
    assert call.op == op
    assert definition.signature.is_stateful == (name == "bump")
    assert dict(definition.control_ret) == ({call.name: call.name} if name == "bump" else {})


def test_what_names_the_body_of_a_function_is_not_said_of_its_wrapper() -> None:
    library, inner = collected("marked")
    wrapper = wrappers.wrap(library, inner, "outer", [0], [0], ((SCALAR,), {}), SCALAR)
    assert any("implements" in name for name in library.definitions[inner.name].attr)
    assert not any("implements" in name for name in library.definitions[wrapper.name].attr)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x", "x"), ("X", "X"), ("a-b", "a_b"), ("a/b.c", "a_b_c"), ("1x", "arg_1x")],
)
def test_a_keyword_is_what_tensorflow_makes_of_a_name(name: str, expected: str) -> None:
    assert wrappers.keyword(name) == expected


def test_names_in_any_order_reach_their_arguments(tmp_path: Path, consumers: Consumers) -> None:
    module = Module()
    ke.save(module, tmp_path, module.f)
    result = consumers.everywhere(tmp_path, z=np.float32(5), n=np.int32(7), a=np.float32(1))
    assert_same(
        result,
        {"output_0": np.float32(4), "output_1": np.int32(7), "output_2": np.float32(11)},
    )
    loaded = consumers.tf(tmp_path)
    assert_same(
        loaded.call("f", np.float32(5), np.int32(7), np.float32(1)),
        [np.float32(4), np.int32(7), np.float32(11)],
    )


def test_names_that_differ_only_after_sanitizing_in_case_and_order_are_served(
    tmp_path: Path, consumers: Consumers
) -> None:
    specs = [tf.TensorSpec([], tf.float32, name) for name in ("Zeta", "b/x", "a.y")]
    module = tf.Module()
    module.f = tf.function(lambda p, q, r: {"y": p * 100.0 + q * 10.0 + r}, input_signature=specs)
    ke.save(module, tmp_path, module.f)
    names = list(consumers.cpp(tmp_path).signatures()["serving_default"]["inputs"])
    values = {"zeta": 1, "b": 2, "a": 3}
    inputs = {name: np.float32(values[name.lower().split("/")[0].split(".")[0].split("_")[0]])
              for name in names}  # fmt: skip
    for reader in (consumers.v1, consumers.cpp):
        assert_same(reader(tmp_path).signature(**inputs), {"y": np.float32(123)})


def test_a_signature_wrapper_changes_variables_as_the_function_does(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = Module()
    ke.save(module, tmp_path, {"bump": module.bump})
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        artifact.signature("bump", by=np.float32(1))
        result = artifact.signature("bump", by=np.float32(1))
        assert_same(result, {"output_0": np.float32(12)})


def test_a_forward_pass_is_traced_once_for_all_that_call_it(
    tmp_path: Path, consumers: Consumers
) -> None:
    traces = []

    class Noting(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            traces.append(x)
            return x * 2.0

    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    layer = Noting(name="twice")
    model = keras.Model({"b": b, "a": a}, {"out": layer(b) - a})
    traces.clear()
    ke.export(model, tmp_path)
    assert len(traces) == 1
    ones = np.ones([1, 2], "float32")
    expected = {"out": -ones}
    for key in ("serve", "serving_default"):
        assert_same(consumers.everywhere(tmp_path, key, b=ones, a=3 * ones), expected)
    assert_same(consumers.tf(tmp_path).call("serve", {"a": 3 * ones, "b": ones}), expected)
    matching = [f for f in artifacts.library(tmp_path).values() if "Mul" in
                {node.op for node in f.node_def}]  # fmt: skip
    assert len(matching) == 1
