"""What `check` says of a consumer is what that consumer does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import foreign_artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.core.protobuf import saved_model_pb2

import keras_export as ke
from keras_export import cli

_HERE = ".".join(tf.__version__.split(".")[:2])
_VERSION = tf.version.GRAPH_DEF_VERSION
_INPUT = np.ones((1, 3), "float32")


class Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones((3, 2)), name="dense/kernel")

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def served(self, x: Any) -> Any:
        return tf.nn.relu(tf.matmul(x, self.weight))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def other(self, x: Any) -> Any:
        return tf.nn.softplus(x)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = Module()
    folder = tmp_path_factory.mktemp("base") / "artifact"
    ke.save(module, folder, signatures=module.served)
    (folder / "fingerprint.pb").unlink()  # it is not that of the changed graphs
    return folder


def changed(base: Path, folder: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of an artifact with another graph."""
    shutil.copytree(base, folder)
    file = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(proto.meta_graphs[0].graph_def)
    file.write_bytes(proto.SerializeToString())
    return folder


def node_of(graph: Any, op: str) -> Any:
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    return next(node for body in bodies for node in body if node.op == op)


def attribute(op: str, name: str, **value: Any) -> Callable[[Any], Any]:
    def change(graph: Any) -> None:
        for kind, content in value.items():
            setattr(node_of(graph, op).attr[name], kind, content)

    return change


def other_op(old: str, new: str) -> Callable[[Any], Any]:
    def change(graph: Any) -> None:
        node_of(graph, old).op = new

    return change


def loose_function(graph: Any) -> None:
    function = graph.library.function.add()
    function.CopyFrom(graph.library.function[0])
    function.signature.name = "loose_99"
    function.node_def[0].op = "BrandNew"


def device(op: str, device: str) -> Callable[[Any], Any]:
    return lambda graph: setattr(node_of(graph, op), "device", device)


def on_a_gpu_apart(graph: Any) -> None:
    for function in graph.library.function:
        function.attr["_noinline"].b = True
    node_of(graph, "Relu").device = "/device:GPU:0"


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda graph: None,
    "op_in_a_served_function": other_op("Relu", "BrandNew"),
    "op_in_another_function": other_op("Softplus", "BrandNew"),
    "op_in_a_loose_function": loose_function,
    "op_in_the_main_graph": lambda graph: graph.node.add(name="new", op="BrandNew"),
    "dtype_that_the_op_refuses": attribute("Relu", "T", type=7),
    "dtype_in_another_function": attribute("Softplus", "T", type=7),
    "dtype_that_does_not_exist": attribute("Relu", "T", type=77),
    "attribute_missing": lambda graph: node_of(graph, "Relu").attr.pop("T"),
    "attribute_unknown": attribute("Relu", "brand_new", b=True),
    "attribute_of_a_variable": attribute("VarHandleOp", "brand_new", s=b"x"),
    "attribute_by_default": attribute("MatMul", "transpose_a", b=False),
    "min_consumer": lambda graph: setattr(graph.versions, "min_consumer", _VERSION + 1),
    "min_consumer_exactly": lambda graph: setattr(graph.versions, "min_consumer", _VERSION),
    "bad_consumer": lambda graph: graph.versions.bad_consumers.append(_VERSION),
    "on_a_gpu": device("Relu", "/device:GPU:0"),
    "on_a_gpu_apart": on_a_gpu_apart,
    "variable_on_a_gpu": device("VarHandleOp", "/gpu:0"),
    "on_another_machine": device("Relu", "/job:worker/task:1"),
    "producer_of_the_future": lambda graph: setattr(graph.versions, "producer", 99999),
}


def works(load: Callable[[], Any]) -> bool:
    try:
        load().signature("serving_default", x=_INPUT)
    except ConsumerError:
        return False
    return True


@pytest.mark.parametrize("name", CHANGES)
def test_the_verdict_is_what_loading_does(
    name: str, base: Path, tmp_path: Path, consumers: Consumers
) -> None:
    folder = changed(base, tmp_path / name, CHANGES[name])
    able = [
        reader
        for reader, load in (("python", consumers.tf), ("c++", consumers.cpp))
        if works(lambda load=load: load(folder))
    ]
    assert list(ke.check(folder).loadable[_HERE]) == able
    assert ke.check(folder, f"tensorflow=={_HERE}").loads == (len(able) == 2)
    assert ke.check(folder, f"tf-serving=={_HERE}").loads == ("c++" in able)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    x = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
    y = keras.layers.Flatten()(keras.layers.BatchNormalization(name="norm")(y))
    model = keras.Model(x, keras.layers.Dense(2, name="last")(y))
    ke.export(model, folder / "ours")
    model.export(folder / "keras")
    tf.saved_model.save(model, str(folder / "tensorflow"))
    return {name: folder / name for name in ("ours", "keras", "tensorflow")}


@pytest.mark.parametrize("writer", ["ours", "keras"])
def test_nothing_is_said_against_an_artifact_of_any_writer(
    writer: str, exports: dict[str, Path]
) -> None:
    report = ke.check(exports[writer])
    assert report.ok and report.oldest == "2.12" and report.findings == ()
    assert str(report) == f"{exports[writer]}: loads in TensorFlow 2.12 or older"


def test_variables_that_no_saver_fills_are_told(exports: dict[str, Path]) -> None:
    """TensorFlow gives the signature and the saver of a Keras 3 model different handles."""
    report = ke.check(exports["tensorflow"])
    assert set(report.loadable.values()) == {("python",)} and report.oldest is None
    (finding,) = report.findings
    assert (finding.problem, finding.readers, finding.count) == ("variable", ("c++",), 8)
    assert finding.subject in finding.message and "neither the saver nor" in finding.message
    assert "Python alone can load it, in TensorFlow 2.12 or newer" in str(report)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return foreign_artifacts.write_all(tmp_path_factory.mktemp("foreign"))


@pytest.mark.filterwarnings("ignore")
def test_the_verdict_on_what_others_wrote_is_what_loading_does(
    foreign: list[Path], consumers: Consumers
) -> None:
    wrong = foreign_artifacts.misjudged(foreign, _HERE, consumers)
    assert wrong == [] and len(foreign) > 40


def test_one_of_several_metagraphs_is_judged_and_the_others_are_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foreign_artifacts.WRITERS["v1_references"](str(tmp_path / "both"))
    file = tmp_path / "both" / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    training = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs[0]
    training.meta_info_def.tags[:] = ["train"]
    training.graph_def.node.add(name="new", op="BrandNew")
    proto.meta_graphs.insert(0, training)
    file.write_bytes(proto.SerializeToString())
    report = ke.check(tmp_path / "both")
    assert report.oldest == "2.12" and report.findings == ()
    (note,) = report.notes
    assert "tags ['serve'], not ['train']" in note and "told `tags=['serve']`" in note


def test_a_finding_says_what_where_and_what_to_do(exports: dict[str, Path], tmp_path: Path) -> None:
    ours = changed(exports["ours"], tmp_path / "ours", other_op("Relu", "BrandNew"))
    (finding,) = ke.check(ours, "tensorflow>=2.14").findings
    assert (finding.problem, finding.subject, finding.effect) == ("op", "BrandNew", "refused")
    assert finding.readers == ("python", "c++") and finding.releases[0] == "2.14"
    assert finding.layer == "first" and finding.count == 1
    theirs = changed(exports["keras"], tmp_path / "keras", other_op("Relu", "BrandNewV2"))
    (finding,) = ke.check(theirs, "tensorflow>=2.14").findings
    assert "first" in finding.layer and finding.function in finding.place
    assert "No TensorFlow that is known has the op BrandNewV2" in str(finding)
    assert "tf.load_op_library" in finding.remedy


def test_an_op_that_came_later_names_the_releases_that_have_it_and_its_relatives(
    base: Path, tmp_path: Path
) -> None:
    folder = changed(base, tmp_path / "new", other_op("Softplus", "TopKV3"))
    assert "has the op TopKV3" in ke.check(folder, "2.15").findings[0].message
    newer = changed(base, tmp_path / "newer", other_op("Softplus", "FFTND"))
    report = ke.check(newer, "tensorflow==2.12")
    assert not report.ok and report.findings[0].message == "TensorFlow 2.12 has no op FFTND."
    assert "Deploy on TensorFlow 2.1" in report.findings[0].remedy


class Top(tf.Module):
    def __init__(self, index_type: Any) -> None:
        super().__init__()
        self.index_type = index_type

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def top(self, x: Any) -> Any:
        return tf.raw_ops.TopKV2(input=x, k=1, index_type=self.index_type).indices


def test_a_new_attribute_matters_only_with_another_value_than_its_default(tmp_path: Path) -> None:
    for index_type in (tf.int32, tf.int64):
        ke.save(Top(index_type), tmp_path / index_type.name)
    assert ke.check(tmp_path / "int32", "tensorflow==2.12").ok
    report = ke.check(tmp_path / "int64", "tensorflow==2.12")
    assert not report.loads and report.oldest == "2.13"
    (finding,) = report.findings
    assert finding.subject == "TopKV2.index_type"
    assert finding.message == (
        "TensorFlow 2.12 does not know TopKV2.index_type=int64 and gives float32, int32, not "
        "float32, int64."
    )
    assert finding.remedy == "Deploy on TensorFlow 2.13 or newer, or export without it."


def test_an_attribute_that_is_left_out_silently_is_no_refusal_but_not_fine(
    base: Path, tmp_path: Path
) -> None:
    folder = changed(base, tmp_path / "lost", attribute("Relu", "brand_new", b=True))
    report = ke.check(folder, f"tensorflow=={_HERE}")
    assert report.loads and not report.ok
    assert [finding.effect for finding in report.findings] == ["ignored"]
    assert "loads it and loses something" in str(report)


def test_code_that_jax_made_for_a_gpu_alone_is_found(base: Path, tmp_path: Path) -> None:
    def by_jax(*platforms: bytes) -> Callable[[Any], Any]:
        def change(graph: Any) -> None:
            node = node_of(graph, "Relu")
            node.op = "XlaCallModule"
            node.attr.pop("T")
            node.attr["platforms"].list.s.extend(platforms)
            node.attr["version"].i, node.attr["module"].s = 9, b""
            node.attr["Sout"].list.shape.add()
            for name in ("Tin", "Tout"):
                node.attr[name].list.type.append(1)

        return change

    said = {}
    for name, platforms in {"gpu": (b"CUDA",), "both": (b"CPU", b"CUDA")}.items():
        report = ke.check(changed(base, tmp_path / name, by_jax(*platforms)))
        said[name] = str(ke.check(tmp_path / name, f"tensorflow=={_HERE}"))
        assert any("code by jax" in note for note in report.notes)
    assert "XlaCallModule holds code for CUDA alone" in said["gpu"]
    assert "XlaCallModule" not in said["both"]


class Gather(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int16, name="at")])
    def gather(self, at: Any) -> Any:
        return tf.gather(tf.constant([1.0, 2.0]), at)


def test_a_kernel_that_a_release_lacks_is_found(tmp_path: Path) -> None:
    ke.save(Gather(), tmp_path / "gather")
    report = ke.check(tmp_path / "gather", "tensorflow==2.12")
    (finding,) = report.findings
    assert finding.problem == "kernel" and finding.subject == "GatherV2"
    assert "no CPU kernel for GatherV2 with Tindices=int16" in finding.message
    assert report.oldest is not None and f"TensorFlow {report.oldest}" in finding.remedy


class Cut(tf.Module):
    def __init__(self, compiled: bool) -> None:
        super().__init__()
        spec = tf.TensorSpec([1, 3], tf.float32, name="x")
        cut = tf.function(_cut, jit_compile=compiled)
        self.cut = tf.function(lambda x: tf.reduce_sum(cut(x)), input_signature=[spec])


def _cut(x: Any) -> Any:
    return tf.reduce_sum(gen_xla_ops.xla_set_dynamic_dimension_size(x, 1, 2))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_op_without_a_kernel_runs_only_in_code_that_xla_makes(
    compiled: bool, tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(Cut(compiled), tmp_path)
    expected = [] if compiled else ["kernel"]
    found = ke.check(tmp_path, f"tensorflow=={_HERE}").findings
    assert [x.problem for x in found] == expected
    for load in (consumers.tf, consumers.cpp):
        assert works(lambda load=load: load(tmp_path)) == compiled


def test_a_cast_that_a_release_cannot_do_is_found(tmp_path: Path) -> None:
    module = tf.Module()
    by_int4 = tf.function(
        lambda x: tf.cast(tf.cast(x, tf.dtypes.experimental.int4), tf.float32),
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    module.cast = by_int4
    ke.save(module, tmp_path)
    report = ke.check(tmp_path, f"tensorflow=={_HERE}")
    assert not report.loads
    assert [(x.problem, x.subject) for x in report.findings] == [("kernel", "Cast")] * 2
    assert "Cast with DstT=int4, SrcT=float32" in "".join(map(str, report.findings))


class Table(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="x")])
    def served(self, x: Any) -> Any:
        return self.table.lookup(x)


def test_a_table_that_changes_loads_in_tensorflow_2_12_only_as_we_write_it(tmp_path: Path) -> None:
    module = Table()
    for name, save in (("ours", ke.save), ("theirs", tf.saved_model.save)):
        save(module, str(tmp_path / name), signatures=module.served)
    assert ke.check(tmp_path / "ours").oldest == "2.12"
    report = ke.check(tmp_path / "theirs")
    assert report.oldest == "2.13" and report.loadable["2.12"] == ("c++",)
    assert [finding.problem for finding in report.findings] == ["object"]


def test_the_tables_of_adapt_do_not_keep_an_old_reader_from_loading(tmp_path: Path) -> None:
    text = keras.layers.TextVectorization(output_sequence_length=3)
    text.adapt(["a b", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string", name="x"), text])
    ke.export(model, tmp_path / "ours")
    model.export(tmp_path / "keras")
    assert ke.check(tmp_path / "ours").oldest == "2.12"
    assert ke.check(tmp_path / "keras").loadable["2.12"] == ("c++",)


# -- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tensorflow==2.15", ["2.15"]),
        ("tensorflow == 2.15.1", ["2.15"]),
        ("2.15", ["2.15"]),
        (">=2.20", ["2.20", "2.21"]),
        ("tensorflow>=2.13.1,<2.15", ["2.13", "2.14"]),
        ("tensorflow~=2.20.0", ["2.20"]),
        ("tensorflow-cpu==2.16.*", ["2.16"]),
        ("tf_serving==2.14", ["2.14"]),
    ],
)
def test_a_target_stands_for_releases(target: str, expected: list[str], base: Path) -> None:
    assert list(ke.check(base, target).releases) == expected


@pytest.mark.parametrize("target", ["tensorflow=2.15", "torch==2.1", "", "tensorflow==2.99"])
def test_a_target_that_nobody_knows_is_refused_with_those_there_are(
    target: str, base: Path
) -> None:
    with pytest.raises(ValueError, match=r"^Cannot check: expected .*target="):
        ke.check(base, target)


def test_what_was_not_judged_is_said(base: Path) -> None:
    notes = ke.check(base, "tensorflow>=2.9").notes
    assert notes == ("Releases before 2.12 are not known, and were not judged.",)


# -- on the command line --------------------------------------------------------------------------


@pytest.fixture()
def refused(base: Path, tmp_path: Path) -> Iterator[Path]:
    yield changed(base, tmp_path / "refused", other_op("Relu", "BrandNew"))


def test_the_exit_code_is_the_verdict(
    base: Path, refused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(base)]) == 0
    assert cli.main(["check", str(base), "--target", "tensorflow>=2.12"]) == 0
    assert cli.main(["check", str(refused), "--target", "tensorflow==2.15"]) == 1
    assert cli.main(["check", str(refused)]) == 1
    assert "refused: No TensorFlow that is known has the op BrandNew." in capsys.readouterr().out
    assert cli.main(["check", str(tmp_path)]) == 2
    assert cli.main(["check", str(base), "--target", "python==3"]) == 2


def test_the_json_has_what_the_object_has(
    refused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["check", str(refused), "--target", "2.15", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown == ke.check(refused, "2.15").to_dict()
    assert shown["ok"] is False and shown["findings"][0]["releases"] == ["2.15"]


def test_a_check_needs_no_tensorflow(base: Path) -> None:
    code = (
        "import sys, keras_export.cli as cli\n"
        "code = cli.main(['check', sys.argv[1], '--target', 'tensorflow==2.15'])\n"
        "print('tensorflow' in sys.modules, code)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code, str(base)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False 0"


def test_a_report_renders_in_a_notebook(refused: Path) -> None:
    shown = ke.check(refused, "2.15")._repr_html_()
    assert "BrandNew" in shown and "<table>" in shown
