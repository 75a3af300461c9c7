"""Promises of `metagraph`: a main graph for sessions and an object graph for Python that agree."""

from __future__ import annotations

import collections
import inspect
import re
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers, assert_same
from tensorflow.core.framework import op_def_pb2  # noqa: F401

import keras_export as ke
from keras_export.errors import UnsupportedError
from keras_export.main_graph import node_name

SPEC = tf.TensorSpec([None], tf.float32, name="x")


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(2.0, name="weight")
        self.same_name = tf.Variable(3.0, name="weight")
        self.hidden = tf.Variable(1.0, name="_hidden")
        self.odd = tf.Variable(1.0, name="odd")
        self.unused = tf.Variable([5.0, 6.0], name="unused")
        self.frozen = tf.Variable(1.0, trainable=False, name="frozen")

    @tf.function(input_signature=[SPEC])
    def f(self, x: tf.Tensor) -> Any:
        return {"y": x * self.weight * self.same_name * self.hidden * self.odd * self.frozen}

    @tf.function
    def typed(self, x: tf.Tensor, *, flag: bool = True) -> tf.Tensor:
        return x if flag else -x


def model() -> keras.Model:
    x = keras.Input((2,), name="x")
    return keras.Model(x, keras.layers.Dense(3, name="y")(x), name="m")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("module")
    module = Module()
    module.typed(tf.constant([1.0]), flag=False)
    ke.save(module, export_dir, module.f)
    return export_dir


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("model")
    ke.export(model(), export_dir)
    return export_dir


@pytest.fixture(params=["saved", "exported"])
def export_dir(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


# -- main graph -----------------------------------------------------------------------------------


def test_each_variable_has_one_handle_whose_name_is_its_shared_name(export_dir: Path) -> None:
    handles = [x for x in artifacts.meta_graph(export_dir).graph_def.node if x.op == "VarHandleOp"]
    stored = [
        key
        for key, _ in tf.train.list_variables(str(export_dir / "variables/variables"))
        if key != "_CHECKPOINTABLE_OBJECT_GRAPH"
    ]
    assert len(handles) == len(stored) > 0
    for handle in handles:
        assert handle.attr["shared_name"].s.decode() == handle.name
        assert re.match(r"[A-Za-z0-9.]", handle.name)
    assert len({handle.name.lower() for handle in handles}) == len(handles)


def test_variables_of_one_name_keep_apart(saved: Path, consumers: Consumers) -> None:
    result = consumers.everywhere(saved, x=np.float32([1]))
    assert_same(result, {"y": np.float32([6])})


def test_people_find_the_names_of_variables(saved: Path, exported: Path) -> None:
    def names(folder: Path) -> list[str]:
        graph = artifacts.meta_graph(folder).object_graph_def
        return sorted(x.variable.name for x in graph.nodes if x.HasField("variable"))

    assert names(saved) == ["_hidden", "frozen", "odd", "unused", "weight", "weight"]
    assert names(exported) == ["y/bias", "y/kernel"]


def test_nodes_come_before_those_that_use_them(export_dir: Path) -> None:
    seen: set[str] = set()
    for node in artifacts.meta_graph(export_dir).graph_def.node:
        assert {x.lstrip("^").split(":")[0] for x in node.input} <= seen, node.name
        assert node.name not in seen
        seen.add(node.name)


def test_the_signature_says_names_dtypes_and_shapes(export_dir: Path) -> None:
    meta_graph = artifacts.meta_graph(export_dir)
    names = {node.name for node in meta_graph.graph_def.node}
    signature = meta_graph.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    for info in (*signature.inputs.values(), *signature.outputs.values()):
        assert info.name.split(":")[0] in names
        assert info.dtype == tf.float32.as_datatype_enum
        assert not info.tensor_shape.unknown_rank
    placeholders = [x for x in meta_graph.graph_def.node if x.op == "Placeholder"]
    assert {"shape", "dtype"} <= set(placeholders[0].attr)
    assert [p.name for p in placeholders if p.name.endswith("_x")] != []


def test_the_keys_of_an_export_share_one_call(exported: Path) -> None:
    signatures = artifacts.meta_graph(exported).signature_def
    assert signatures["serve"] == signatures["serving_default"]
    calls = [x for x in artifacts.meta_graph(exported).graph_def.node if "PartitionedCall" in x.op]
    assert len(calls) == 1


def test_the_saver_restores_and_saves_in_a_session(
    tmp_path: Path, saved: Path, consumers: Consumers
) -> None:
    saver = artifacts.meta_graph(saved).saver_def
    assert saver.filename_tensor_name and saver.restore_op_name and saver.save_tensor_name
    again = consumers.v1(saved).save(tmp_path / "again" / "variables")
    ours, theirs = consumers.checkpoint(saved).values(), consumers.checkpoint(again).values()
    assert_same(theirs, ours)


def test_a_session_saves_the_whole_artifact_again(
    tmp_path: Path, saved: Path, consumers: Consumers
) -> None:
    x = np.float32([1, 2])
    expected = consumers.v1(saved).signature(x=x)
    consumers.v1(saved).save_model(tmp_path / "again")
    for reader in (consumers.v1, consumers.cpp):
        assert_same(reader(tmp_path / "again").signature(x=x), expected)


def test_saved_model_cli_shows_and_runs(export_dir: Path, consumers: Consumers) -> None:
    (name,) = artifacts.meta_graph(export_dir).signature_def["serving_default"].inputs
    shown = consumers.cli(export_dir)
    assert "MetaGraphDef with tag-set: 'serve'" in shown
    assert f"inputs['{name}'] tensor_info" in shown
    options = ("--tag_set=serve", "--signature_def=serving_default")
    inputs = np.ones([2, *_free(export_dir, name)[1:]]).tolist()
    computed = consumers.cli(export_dir, "run", *options, f"--input_exprs={name}={inputs}")
    assert "Result for output key" in computed


def _free(export_dir: Path, name: str) -> list[int]:
    shape = artifacts.meta_graph(export_dir).signature_def["serving_default"].inputs[name]
    return [dim.size for dim in shape.tensor_shape.dim]


def test_the_fingerprint_is_what_tensorflow_computes_of_the_files(
    export_dir: Path, consumers: Consumers
) -> None:
    from tensorflow.core.protobuf import fingerprint_pb2
    from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

    content = fingerprinting.CreateFingerprintDef(str(export_dir))
    computed = fingerprint_pb2.FingerprintDef.FromString(content)
    stored = consumers.fingerprint(export_dir)
    assert {name: getattr(computed, name) for name in stored if name != "version"} == {
        name: value for name, value in stored.items() if name != "version"
    }


def test_arguments_keep_the_names_that_users_gave_them(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None])
    module.f = tf.function(lambda x, y: x - y, input_signature=[spec, spec])
    ke.save(module, tmp_path)
    names = {
        tuple(f.arg_attr[i].attr["_user_specified_name"].s for i in sorted(f.arg_attr))
        for f in artifacts.library(tmp_path).values()
    }
    assert names == {(b"x", b"y")}


def test_a_model_without_variables_loads_everywhere(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1.0, input_signature=[SPEC])
    ke.save(module, tmp_path)
    result = consumers.everywhere(tmp_path, x=np.float32([1]))
    assert_same(result, {"output_0": np.float32([2])})


def test_meta_information_is_complete(export_dir: Path, consumers: Consumers) -> None:
    meta_graph = artifacts.meta_graph(export_dir)
    info = meta_graph.meta_info_def
    assert list(info.tags) == ["serve"]
    assert info.tensorflow_version == tf.version.VERSION
    assert info.stripped_default_attrs
    listed = {op.name for op in info.stripped_op_list.op}
    functions = set(artifacts.library(export_dir))
    assert listed == set(artifacts.ops(export_dir)) - functions
    versions = meta_graph.graph_def.versions
    assert versions.producer >= versions.min_consumer
    assert set(consumers.fingerprint(export_dir)) >= {"saved_model_checksum", "checkpoint_hash"}
    assert "signature_def['serving_default']" in consumers.cli(export_dir)


@pytest.mark.parametrize(
    ("name", "valid"),
    [("a/b", "a/b"), ("_a", "v_a"), ("a b:0", "a_b_0"), ("/a", "v/a"), ("-", "v-"), ("7", "7")],
)
def test_a_node_name_is_valid_in_every_loader(name: str, valid: str) -> None:
    assert node_name(name) == valid


# -- options --------------------------------------------------------------------------------------


def test_the_saver_can_be_skipped(tmp_path: Path, consumers: Consumers) -> None:
    module = Module()
    ke.save(module, tmp_path, options=ke.SaveOptions(experimental_skip_saver=True))
    assert not artifacts.meta_graph(tmp_path).HasField("saver_def")
    assert not {"RestoreV2", "SaveV2"} & set(artifacts.ops(tmp_path))
    assert_same(consumers.tf(tmp_path).call("f", np.float32([1])), {"y": np.float32([6])})


@pytest.mark.skipif(
    "extra_tags" not in inspect.signature(tf.saved_model.SaveOptions).parameters,
    reason="TensorFlow has no further tags",
)
def test_tags_are_added(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(Module(), tmp_path, options=ke.SaveOptions(extra_tags=["gpu", "mine"]))
    assert list(artifacts.meta_graph(tmp_path).meta_info_def.tags) == ["serve", "gpu", "mine"]
    loaded = consumers.cpp(tmp_path, tags=("serve", "gpu", "mine"))
    assert_same(loaded.signature(x=np.float32([1])), {"y": np.float32([6])})
    with pytest.raises(ConsumerError):
        consumers.cpp(tmp_path)


def test_ops_of_other_namespaces_are_refused_unless_allowed(tmp_path: Path) -> None:
    class Foreign(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="x")])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            return x

    from keras_export import metagraph

    graph_def = tf.compat.v1.GraphDef()
    function = graph_def.library.function.add()
    function.node_def.add(name="a", op="Mine>Op")
    graph_def.node.add(name="b", op="Other>Op")
    graph_def.node.add(name="c", op="Identity")
    metagraph._refuse_namespaces(graph_def, None)
    metagraph._refuse_namespaces(graph_def, ["Mine", "Other"])
    words = (
        "Cannot export: the ops Mine>Op are of namespaces that namespace_whitelist=['Other'] does "
        "not allow. A consumer needs the library that defines them; if it has it, add 'Mine'."
    )
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        metagraph._refuse_namespaces(graph_def, ["Other"])
    ke.save(Foreign(), tmp_path, options=ke.SaveOptions(namespace_whitelist=[]))


@pytest.mark.parametrize("policy", [None, "save_variable_devices"])
def test_the_variable_policy_decides_devices(
    tmp_path: Path, policy: str | None, consumers: Consumers
) -> None:
    with tf.device("/cpu:0"):
        module = Module()
        ke.save(module, tmp_path, options=ke.SaveOptions(experimental_variable_policy=policy))
    handles = [node for node in artifacts.nodes(tmp_path) if node.op == "VarHandleOp"]
    devices = {node.device for node in handles}
    assert devices == ({""} if policy is None else {module.weight.device})
    assert {x.device for x in artifacts.nodes(tmp_path) if x.op != "VarHandleOp"} == {""}
    result = consumers.everywhere(tmp_path, x=np.float32([1]))
    assert_same(result, {"y": np.float32([6])})


# -- object graph ---------------------------------------------------------------------------------


def test_the_loaded_variables_are_what_they_were(saved: Path, consumers: Consumers) -> None:
    live = Module()
    loaded = consumers.tf(saved)
    for name in ("weight", "same_name", "unused", "frozen"):
        ours, theirs = loaded.attribute(name), getattr(live, name)
        assert (ours.dtype, ours.shape) == (theirs.dtype.name, tuple(theirs.shape))
        assert ours.trainable == theirs.trainable
        assert_same(ours.value, theirs.numpy())


def test_the_object_graph_says_what_readers_need(export_dir: Path) -> None:
    graph = artifacts.meta_graph(export_dir).object_graph_def
    (signature_map,) = (x for x in graph.nodes if x.user_object.identifier == "signature_map")
    assert "signatures" in {child.local_name for child in graph.nodes[0].children}
    assert len(signature_map.children) in (1, 2)
    for name, concrete in graph.concrete_functions.items():
        assert name in artifacts.library(export_dir)
        assert concrete.HasField("canonicalized_input_signature")
        assert concrete.HasField("output_signature")
        arguments = artifacts.library(export_dir)[name].signature.input_arg
        assert len(concrete.bound_inputs) <= len(arguments)


def test_every_object_is_reached_from_the_root(export_dir: Path) -> None:
    graph = artifacts.meta_graph(export_dir).object_graph_def
    reached, pending = {0}, [0]
    while pending:
        for child in graph.nodes[pending.pop()].children:
            if child.node_id not in reached:
                reached.add(child.node_id)
                pending.append(child.node_id)
    bound = {i for concrete in graph.concrete_functions.values() for i in concrete.bound_inputs}
    assert set(range(len(graph.nodes))) == reached | bound


def test_function_specs_keep_the_python_signature(saved: Path, consumers: Consumers) -> None:
    assert_same(consumers.tf(saved).call("typed", np.float32([1]), flag=False), np.float32([-1]))


def test_an_export_is_flat(exported: Path) -> None:
    """Loading time is the number of objects: endpoints and lists of variables are all there is."""
    graph = artifacts.meta_graph(exported).object_graph_def
    names = [child.local_name for child in graph.nodes[0].children]
    assert sorted(names) == [
        "_default_save_signature",
        "non_trainable_variables",
        "serve",
        "signatures",
        "trainable_variables",
        "variables",
    ]
    kinds = collections.Counter(node.WhichOneof("kind") for node in graph.nodes)
    assert kinds["variable"] == 2


def test_the_checkpoint_and_the_saved_object_graph_agree(export_dir: Path) -> None:
    loaded = tf.saved_model.load(str(export_dir))
    status = tf.train.Checkpoint(loaded).read(str(export_dir / "variables/variables"))
    status.assert_existing_objects_matched()
    status.assert_consumed()


def test_a_graph_that_is_too_large_names_its_largest_constants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from keras_export import metagraph

    module = tf.Module()
    large, small = tf.random.normal([100, 100]), tf.random.normal([3])
    module.f = tf.function(lambda x: large[0, 0] + small[0] + x, input_signature=[SPEC])
    monkeypatch.setattr(metagraph, "_MAX_PROTO_BYTES", 10_000)
    words = (
        "Cannot export: the graph is larger than 2 GiB, the most that a protobuf holds. Its "
        "largest constants are float32[100, 100], float32[3]. Make them variables, which are "
        "stored apart."
    )
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
