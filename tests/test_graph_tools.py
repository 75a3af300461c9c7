"""Promises to tools that read the graph: those that freeze, optimize and translate it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.grappler import tf_optimizer

import keras_export as ke
from keras_export.errors import UnsupportedError

X = np.float32([1, 2])


class Layers(tf.Module):
    """A function that calls another, with a variable and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable([2.0, 3.0], name="dense/scale")
        self.shift = tf.constant([5.0, 7.0])

    @tf.function
    def scaled(self, x: Any) -> Any:
        return x * self.scale

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="Pixels")])
    def served(self, image: Any) -> Any:
        return {"y": self.scaled(image) + self.shift}


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("layers")
    ke.save(Layers(), export_dir)
    return export_dir


def test_a_frozen_function_is_called_by_the_names_of_its_inputs(
    export_dir: Path, tmp_path: Path
) -> None:
    tf.saved_model.save(Layers(), tmp_path)
    names = []
    for folder in (export_dir, tmp_path):
        loaded = tf.saved_model.load(str(folder))
        for function in (
            loaded.signatures["serving_default"], loaded.served.get_concrete_function()
        ):  # fmt: skip
            frozen = convert_to_constants.convert_variables_to_constants_v2(function)
            names.append(frozen.inputs[0].name)
            assert_same(tf.nest.flatten(frozen(tf.constant(X)))[0].numpy(), np.float32([7, 13]))
    assert names[:2] == names[2:]


def test_an_argument_does_not_take_the_name_of_a_node(tmp_path: Path, consumers: Consumers) -> None:
    class Clashing(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2], name="ADDV20"), tf.TensorSpec([2])])
        def f(self, x: Any, arg: Any) -> Any:
            return x + arg + arg

    ke.save(Clashing(), tmp_path)
    result = consumers.everywhere(tmp_path, "serving_default", ADDV20=X, arg=X)
    assert_same(result, {"output_0": 3 * X})


def test_the_graph_of_a_session_can_be_frozen(export_dir: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(export_dir))
        signature = meta_graph.signature_def["serving_default"]
        output = signature.outputs["y"].name
        frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, session.graph_def, [output.partition(":")[0]]
        )
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(frozen, name="")
        assert not any(op.type == "VarHandleOp" for op in graph.get_operations())
        feeds = {signature.inputs["Pixels"].name: X}
        assert_same(session.run(output, feeds), np.float32([7, 13]))


def test_grappler_inlines_what_a_signature_calls(export_dir: Path) -> None:
    meta_graph = artifacts.meta_graph(export_dir)
    signature = meta_graph.signature_def["serving_default"]
    fetched = meta_graph.collection_def["train_op"].node_list.value
    fetched.extend(x.name for x in (*signature.inputs.values(), *signature.outputs.values()))
    meta_graph.ClearField("saver_def")
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    ops = {node.op for node in tf_optimizer.OptimizeGraph(config, meta_graph).node}
    assert {"ReadVariableOp", "Mul", "AddV2"} <= ops
    assert not ops & {"PartitionedCall", "StatefulPartitionedCall"}


def test_mlir_knows_the_shapes_of_variables_and_the_names_of_constants(export_dir: Path) -> None:
    text = tf.mlir.experimental.convert_saved_model(str(export_dir), "")
    reads = [line for line in text.splitlines() if '"tf.ReadVariableOp"' in line]
    assert reads and all(line.split(" -> ")[-1].startswith("tensor<2xf32>") for line in reads)
    assert 'exported_names = ["served.capture_0"]' in text


def test_lowered_branches_are_saved(tmp_path: Path, consumers: Consumers) -> None:
    # Among their ops is `_SwitchN`, whose name begins with what a node's name may not begin with.
    @tf.function(
        input_signature=[tf.TensorSpec([], tf.int32, name="index"), tf.TensorSpec([2], name="x")]
    )
    def function(index: Any, x: Any) -> Any:
        return tf.switch_case(index, [lambda: x, lambda: 2 * x, lambda: 3 * x])

    lowered = convert_to_constants.convert_variables_to_constants_v2(
        function.get_concrete_function()
    )
    assert any(op.type == "_SwitchN" for op in lowered.graph.get_operations())
    obj = tf.Module()
    obj.f = lowered
    ke.save(obj, tmp_path, signatures=lowered)
    result = consumers.everywhere(tmp_path, "serving_default", index=np.int32(1), x=X)
    assert_same(list(result.values()), [2 * X])


def test_an_object_that_defers_its_tensors_is_refused_by_name(tmp_path: Path) -> None:
    class Deferred(tf.Module):
        def _serialize_to_tensors(self) -> Any:
            return {"count": lambda: tf.constant(1)}

        def _restore_from_tensors(self, tensors: Any) -> None:
            pass

    obj = tf.Module()
    obj.held = Deferred()
    with pytest.raises(UnsupportedError, match=r"Cannot export obj\.held: .* count=function"):
        ke.save(obj, tmp_path / "a")
    with pytest.raises(NotImplementedError):
        ke.save(obj, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_object_without_values_is_saved_in_an_empty_session(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session():
        ke.save(tf.Module(), tmp_path)
    tf.saved_model.load(str(tmp_path))
