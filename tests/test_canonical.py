"""Promises of `canonical`: small functions with the same names everywhere, and the same effects."""

from __future__ import annotations

import collections
import os
import re
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import attributes

X = tf.TensorSpec([2], tf.float32, name="x")


class Effects(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable([1.0, 2.0])
        self.count = tf.Variable(0.0)

    @tf.function(input_signature=[X])
    def counts(self, x: tf.Tensor) -> tf.Tensor:
        self.count.assign_add(1.0)
        return x * 2.0

    @tf.function(input_signature=[X])
    def reads_between(self, x: tf.Tensor) -> Any:
        before = self.count + 0.0
        self.count.assign(tf.reduce_sum(x))
        return {"before": before, "after": self.count + 0.0}

    @tf.function(input_signature=[X])
    def asserts(self, x: tf.Tensor) -> tf.Tensor:
        tf.debugging.assert_positive(x, message="not positive")
        return x

    @tf.function
    def _inner(self, x: tf.Tensor) -> tf.Tensor:
        self.count.assign_add(10.0)
        return x

    @tf.function(input_signature=[X])
    def through_a_call(self, x: tf.Tensor) -> tf.Tensor:
        self._inner(x)
        return x

    @tf.function(input_signature=[X])
    def in_a_branch(self, x: tf.Tensor) -> tf.Tensor:
        if x[0] > 0:
            self.count.assign_add(100.0)
        return x

    @tf.function(input_signature=[X])
    def in_a_loop(self, x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(3):
            self.count.assign_add(1000.0)
        return x

    @tf.function(input_signature=[X])
    def useless(self, x: tf.Tensor) -> tf.Tensor:
        tf.linalg.matmul([[1.0]], x[None, :1])
        return self.v * x


class Conv(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.ones([1, 1, 1, 1]))

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1], tf.float32, name="image")])
    def f(self, image: tf.Tensor) -> tf.Tensor:
        y = tf.nn.conv2d(image, self.kernel, strides=1, padding="SAME")
        return tf.nn.conv2d(y, self.kernel, strides=2, padding="SAME", dilations=1)


def model() -> keras.Model:
    x = keras.Input((4,), name="x")
    h = keras.layers.Dense(4, "silu", name="a")(x)
    h = keras.layers.BatchNormalization(name="b")(h)
    h = keras.layers.Reshape((2, 2), name="c")(h)
    return keras.Model(x, keras.layers.LSTM(3, name="d")(h), name="m")


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("effects")
    ke.save(Effects(), export_dir)
    return export_dir


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("model")
    ke.export(model(), export_dir)
    return export_dir


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("counts", 1),
        ("through_a_call", 10),
        ("in_a_branch", 100),
        ("in_a_loop", 3000),
        ("reads_between", 3),
    ],
)
def test_side_effects_survive(effects: Path, consumers: Consumers, name: str, count: int) -> None:
    loaded = consumers.tf(effects)
    loaded.call(name, np.float32([1, 2]))
    assert_same(loaded.attribute("count").value, np.float32(count))


def test_reads_stay_on_their_side_of_a_write(effects: Path, consumers: Consumers) -> None:
    result = consumers.tf(effects).call("reads_between", np.float32([3, 4]))
    assert_same(result, {"after": np.float32(7), "before": np.float32(0)})


def test_an_assertion_survives(tmp_path: Path, consumers: Consumers) -> None:
    module = Effects()
    ke.save(module, tmp_path, signatures=module.asserts)
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        assert_same(artifact.signature(x=np.float32([1, 2])), {"output_0": np.float32([1, 2])})
        with pytest.raises(RuntimeError, match="not positive"):
            artifact.signature(x=np.float32([1, -2]))


def test_a_signature_has_its_effects_in_a_session(tmp_path: Path, consumers: Consumers) -> None:
    module = Effects()
    signatures = {"serving_default": module.counts, "read": module.reads_between}
    ke.save(module, tmp_path, signatures=signatures)
    for reader in (consumers.v1, consumers.cpp):
        artifact = reader(tmp_path)
        for _ in range(2):
            artifact.signature(x=np.float32([1, 2]))
        result = artifact.signature("read", x=np.float32([3, 4]))
        assert_same(result["before"], np.float32(2))


def test_a_loaded_object_saved_again_keeps_its_effects(
    tmp_path: Path, effects: Path, consumers: Consumers
) -> None:
    consumers.tf(effects).save(tmp_path / "again")
    loaded = consumers.tf(tmp_path / "again")
    loaded.call("counts", np.float32([1, 2]))
    assert_same(loaded.attribute("count").value, np.float32(1))


def test_what_nothing_needs_is_pruned(effects: Path) -> None:
    functions = artifacts.library(effects)
    (useless,) = (f for name, f in functions.items() if "useless" in name)
    assert not {"MatMul", "BatchMatMulV2"} & {node.op for node in useless.node_def}


def test_a_function_that_only_reads_keeps_no_order(exported: Path) -> None:
    for function in artifacts.library(exported).values():
        calls = ("While", "StatefulPartitionedCall")
        assert all(effect.startswith(calls) for effect in function.control_ret.values())
        reads = {node.name for node in function.node_def if node.op == "ReadVariableOp"}
        for node in function.node_def:
            assert not reads & {source[1:] for source in node.input if source[0] == "^"}


def test_names_are_unique_in_the_whole_library(effects: Path, exported: Path) -> None:
    """But for arguments of functions that people call: these are called what their author wrote."""
    for export_dir in (effects, exported):
        called = artifacts.meta_graph(export_dir).object_graph_def.concrete_functions
        arguments, names = set(), []
        for function in artifacts.library(export_dir).values():
            for index, argument in enumerate(function.signature.input_arg):
                if function.signature.name in called and index in function.arg_attr:
                    arguments.add(argument.name)
                else:
                    names.append(argument.name)
            names += [node.name for node in function.node_def]
        repeated = [name for name, count in collections.Counter(names).items() if count > 1]
        assert repeated == []
        assert not arguments & set(names)


def test_function_names_end_in_a_number_of_their_own(effects: Path, exported: Path) -> None:
    """The fingerprint orders functions by it; equal numbers would come in any order."""
    for export_dir in (effects, exported):
        names = list(artifacts.library(export_dir))
        endings = [re.search(r"_(\d+)$", name) for name in names]
        assert all(endings)
        repeated = collections.Counter(int(found.group(1)) for found in endings if found)
        concretes = artifacts.meta_graph(export_dir).object_graph_def.concrete_functions
        numbers = [int(name.rpartition("_")[2]) for name in concretes]
        assert len(set(numbers)) == len(numbers), repeated


def test_names_do_not_count_what_the_process_did_before(tmp_path: Path) -> None:
    def names(folder: Path) -> list[str]:
        keras.utils.clear_session()
        ke.export(model(), folder)
        return [*artifacts.library(folder), *(node.name for node in artifacts.nodes(folder))]

    first = names(tmp_path / "1")
    for _ in range(3):
        tf.function(lambda x: keras.ops.silu(x)).get_concrete_function(X)
    assert names(tmp_path / "2") == first


class Scoped(tf.Module):
    """Ops in scopes, and what TensorFlow's control flow and gradients make of scopes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([[2.0]], name="w")

    @tf.function(input_signature=[tf.TensorSpec([None, 1], name="x")])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.name_scope("encoder"):
            y = tf.matmul(tf.matmul(x, self.w), self.w)
        with tf.GradientTape() as tape, tf.name_scope("steps"):
            loss = y
            tape.watch(y)
            for _ in tf.range(3):
                loss = tf.nn.silu(loss @ self.w)
        return {"y": y, "slope": tape.gradient(loss, y)}


def test_the_scopes_of_a_module_stay_in_the_names_of_its_nodes(
    tmp_path: Path, consumers: Consumers
) -> None:
    """Converters name tensors after them."""
    ke.save(scoped := Scoped(), tmp_path / "1")
    products = [x.name for x in artifacts.nodes(tmp_path / "1") if x.op == "MatMul"]
    assert {"encoder/MatMul", "encoder/MatMul0"} <= set(products)
    x = np.float32([[1.0]])
    assert_same(consumers.everywhere(tmp_path / "1", x=x), scoped.f(x), rtol=1e-5)
    # They do not count what the process did before.
    ke.save(Scoped(), tmp_path / "2")
    assert artifacts.files(tmp_path / "2") == artifacts.files(tmp_path / "1")


class Named(tf.Module):
    """Ops that their author named, some after a counter of the process, one as an argument."""

    count = 0

    @tf.function(input_signature=[tf.TensorSpec([1, 4, 4, 1], name="x")])
    def f(self, x: tf.Tensor) -> tf.Tensor:
        Named.count += 1
        kernel = tf.ones([1, 1, 1, 1])
        y = tf.nn.conv2d(x, kernel, 1, "SAME", name="sample/conv2d")
        y = tf.nn.conv2d(y, kernel, 1, "SAME", name="sample/conv2d")
        y = tf.nn.relu(y, name="squash")
        y = tf.multiply(y, 2.0, name="weight")
        return tf.nn.softmax(tf.nn.elu(y, name=f"elu{Named.count}")) + self.g(y)

    @tf.function(input_signature=[tf.TensorSpec([1, 4, 4, 1], name="weight")])
    def g(self, weight: tf.Tensor) -> tf.Tensor:
        return weight + 1.0


def test_what_the_author_of_a_module_called_an_op_stays(
    tmp_path: Path, consumers: Consumers
) -> None:
    """Quantizers are told by these names, and converters tell tensors by them."""
    named = Named()
    ke.save(named, tmp_path / "1", named.f)
    names = {x.name: x.op for x in artifacts.nodes(tmp_path / "1")}
    assert {op for name, op in names.items() if name.startswith("sample/conv2d")} == {"Conv2D"}
    assert (names["squash"], names["Softmax"], names["Elu"]) == ("Relu", "Softmax", "Elu")
    assert sum(op == "Conv2D" for op in names.values()) == 2
    # An argument that another function calls so keeps the name.
    arguments = [
        argument.name
        for function in artifacts.library(tmp_path / "1").values()
        for argument in function.signature.input_arg
    ]
    assert "weight" in arguments and "weight" not in names
    x = np.ones([1, 4, 4, 1], "float32")
    assert_same(consumers.everywhere(tmp_path / "1", x=x), {"output_0": named.f(x)}, rtol=1e-5)
    again = Named()
    ke.save(again, tmp_path / "2", again.f)
    assert artifacts.files(tmp_path / "2") == artifacts.files(tmp_path / "1")


def test_functions_come_in_the_order_of_first_use(effects: Path) -> None:
    functions = artifacts.library(effects)
    position = {name: index for index, name in enumerate(functions)}
    for name, function in functions.items():
        for node in function.node_def:
            for attr in ("f", "then_branch", "else_branch", "body", "cond"):
                called = node.attr[attr].func.name if attr in node.attr else ""
                assert not called or position[called] > position[name]


def test_no_default_attribute_is_left_in_main_graph_or_library(exported: Path) -> None:
    meta_graph = artifacts.meta_graph(exported)
    assert meta_graph.meta_info_def.stripped_default_attrs
    removed = ke.strip_default_attributes(meta_graph)
    assert removed.total == 0


def test_attributes_that_differ_from_their_default_stay(
    tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(Conv(), tmp_path)
    convolutions = [node for node in artifacts.nodes(tmp_path) if node.op == "Conv2D"]
    strides = sorted(list(node.attr["strides"].list.i) for node in convolutions)
    assert strides == [[1, 1, 1, 1], [1, 2, 2, 1]]
    assert not any("dilations" in node.attr or "data_format" in node.attr for node in convolutions)
    image = np.ones([1, 4, 4, 1], "float32")
    result = consumers.everywhere(tmp_path, image=image)
    assert_same(result, {"output_0": np.ones([1, 2, 2, 1], "float32")})


def test_only_attributes_that_readers_need_stay(effects: Path, exported: Path) -> None:
    dropped = {
        "_class", "_collective_manager_ids", "_construction_context", "_user_specified_name",
        "_has_manual_control_dependencies", "_read_only_resource_inputs",
    }  # fmt: skip
    for export_dir in (effects, exported):
        for node in artifacts.nodes(export_dir):
            assert not dropped & set(node.attr), node.name
            assert "config_proto" not in node.attr
        for function in artifacts.library(export_dir).values():
            assert "_input_shapes" in function.attr
            kept = [set(argument.attr) for argument in function.arg_attr.values()]
            assert all(names == {"_user_specified_name"} for names in kept)
            assert "_construction_context" not in function.attr


def test_a_compiled_function_stays_compiled(tmp_path: Path, consumers: Consumers) -> None:
    class Compiled(tf.Module):
        @tf.function(input_signature=[X], jit_compile=True)
        def f(self, x: tf.Tensor) -> tf.Tensor:
            return tf.exp(x) * 2.0

    ke.save(compiled := Compiled(), tmp_path, signatures=compiled.f)
    functions = artifacts.library(tmp_path)
    (name,) = [n for n, f in functions.items() if "_XlaMustCompile" in f.attr]
    # A session inlines what a call that does not say so calls.
    calls = [x for x in artifacts.nodes(tmp_path) if x.attr["f"].func.name == name]
    assert [x.attr["_XlaMustCompile"].b for x in calls] == [True]
    x = np.float32([1, 2])
    assert_same(consumers.tf(tmp_path).call("f", x), 2 * np.exp(x), rtol=1e-5)
    served = consumers.everywhere(tmp_path, x=x)
    assert_same(served, {"output_0": 2 * np.exp(x)}, rtol=1e-5)


def test_a_device_inside_a_function_stays_and_that_of_the_caller_does_not(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Placed(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = tf.Variable([1.0, 2.0])

        @tf.function(input_signature=[X])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            with tf.device("/cpu:0"):
                inside = tf.exp(x)
            return self.v * inside

    with tf.device("/cpu:0"):
        ke.save(Placed(), tmp_path)
    devices = {(node.op, node.device) for node in artifacts.nodes(tmp_path) if node.device}
    assert {op for op, _ in devices} == {"Exp"}
    assert all(device.lower().endswith("cpu:0") for _, device in devices)
    x = np.float32([0, 0])
    assert_same(consumers.everywhere(tmp_path, x=x), {"output_0": np.float32([1, 2])})


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_no_device_is_left_when_a_model_is_exported_in_a_device_scope(
    tmp_path: Path, write: Any
) -> None:
    with tf.device("/cpu:0"):
        write(model(), tmp_path)
    assert {node.device for node in artifacts.nodes(tmp_path)} == {""}


def test_recurrent_layers_are_portable(exported: Path, consumers: Consumers) -> None:
    assert not [op for op in artifacts.ops(exported) if "cudnn" in op.lower()]
    for function in artifacts.library(exported).values():
        assert not [name for name in function.attr if name.startswith("api_")]


def test_an_op_type_is_part_of_each_short_name(exported: Path) -> None:
    """So that a profile stays readable."""
    for function in artifacts.library(exported).values():
        for node in function.node_def:
            if "shared_name" in [a.name for a in _definition(node.op).attr]:
                continue
            assert re.fullmatch(rf".*{re.escape(node.op)}_?\d*", node.name.split("/")[-1])


def _definition(op: str) -> Any:
    from keras_export import tf_internals

    return tf_internals.op_def_of(op)


def test_the_artifact_is_small(tmp_path: Path, exported: Path) -> None:
    keras.utils.clear_session()
    artifacts.export_with_keras(model(), tmp_path)
    ours, theirs = (os.path.getsize(folder / "saved_model.pb") for folder in (exported, tmp_path))
    assert ours * 4 < theirs
    assert attributes.op_list(artifacts.meta_graph(exported).graph_def).op
