"""`verify` says of a sound artifact that it is, and of a damaged one what is wrong with it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import bundles, cli, inspection, object_graphs
from keras_export.errors import ArgumentError

_WRITERS = ("ours", "keras", "tensorflow")
_X = np.float32([[1, 2, 3], [4, 5, 6]])
_INPUTS = {"serving_default": {"x": _X, "word": np.array([b"cat", b"owl"], object)}}
_DATA = "variables/variables.data-00000-of-00001"
_FLIPPED = {
    "saved_model.pb": "damaged-graph",
    "variables/variables.index": "damaged-index",
    _DATA: "damaged-data",
    "assets/words.txt": "changed-asset",
    "assets.extra/digests.json": "damaged-digests",
    "fingerprint.pb": "wrong-fingerprint",
}


class Words(tf.Module):
    """Variables, a table from a file, two kinds of inputs."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.scale = tf.Variable([1.0, 2.0, 3.0], name="scale")
        self.kernel = tf.Variable(tf.ones([3, 200]), name="kernel")
        index = tf.lookup.TextFileIndex
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(file), tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER
            ),
            -1,
        )

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 3], tf.float32, "x"),
            tf.TensorSpec([None], tf.string, "word"),
        ]
    )
    def f(self, x: tf.Tensor, word: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x * self.scale, self.kernel), "id": self.table.lookup(word)}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    file = folder / "source" / "words.txt"
    file.parent.mkdir()
    file.write_text("bird\ncat\n")
    module = Words(file)
    ke.save(module, folder / "ours")
    tf.saved_model.save(module, str(folder / "tensorflow"))
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(5, name="out")(x))
    artifacts.export_with_keras(model, folder / "keras")
    tf.saved_model.save(model, str(folder / "orphans"))
    return {name: folder / name for name in (*_WRITERS, "orphans")}


@pytest.fixture
def damaged(exports: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies an artifact, to be damaged."""

    def copy(writer: str) -> Path:
        return Path(shutil.copytree(exports[writer], tmp_path / writer))

    return copy


def _kinds(export_dir: Path) -> set[str]:
    return {problem.kind for problem in ke.verify(export_dir, run=False).problems}


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# -- sound artifacts ------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", _WRITERS)
def test_a_sound_artifact_of_every_writer_passes(writer: str, exports: dict[str, Path]) -> None:
    inputs = _INPUTS if writer != "keras" else {}
    y = (_X * [1, 2, 3]).sum(1, keepdims=True) * np.ones([1, 200], np.float32)
    outputs = {"serving_default": {"y": y, "id": np.int64([1, -1])}} if inputs else {}
    report = ke.verify(exports[writer], inputs=inputs, outputs=outputs)
    assert report.ok and report.problems == ()
    assert report.checked["signatures"] == (2 if writer == "keras" else 1)
    assert report.checked["variables"] == len(ke.inspect(exports[writer]).variables)
    assert report.checked["compared"] == len(outputs)
    unseen = [note for note in report.notes if "a changed asset goes unseen" in note]
    assert len(unseen) == (writer == "tensorflow")
    assert f"{exports[writer]}: sound" in str(report)
    assert "✓ sound" in report._repr_html_()


def test_other_results_than_the_recorded_ones_are_told(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", x=_X, word=np.array([b"cat", b"owl"]))
    np.savez(tmp_path / "out.npz", y=np.zeros([2, 200], np.float32), id=np.int64([1, -1]))
    arguments = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
    assert cli.main(["verify", str(exports["ours"]), "--json", *arguments]) == 1
    shown = json.loads(capsys.readouterr().out)
    (problem,) = shown["problems"]
    assert problem["kind"] == "different-outputs" and not shown["ok"]
    assert "'y' up to 32 away" in problem["message"]


def test_what_graph_readers_cannot_restore_is_named(exports: dict[str, Path]) -> None:
    """TensorFlow's save of a Keras model: its signature reads variables that nothing restores."""
    (problem,) = ke.verify(exports["orphans"]).problems
    assert problem.kind == "missing-variable"
    assert "out/kernel" in problem.message or "out/bias" in problem.message


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", _FLIPPED)
def test_a_flipped_bit_is_noticed_wherever_it_is(file: str, damaged: Any) -> None:
    _flip_many(damaged("ours"), file, 25)


@pytest.mark.parametrize("writer", ["keras", "tensorflow"])
@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.index", _DATA])
def test_a_flipped_bit_in_what_others_wrote_is_noticed(
    file: str, writer: str, damaged: Any
) -> None:
    _flip_many(damaged(writer), file, 25)


def test_an_object_graph_that_names_no_object_is_read_as_far_as_it_goes(
    exports: dict[str, Path],
) -> None:
    meta_graph, _ = inspection.read_graph(str(exports["keras"]))
    bundle = bundles.read_bundle(inspection.bundle_prefix(str(exports["keras"])))
    assert bundle is not None
    saved, stored = meta_graph.object_graph_def.nodes, object_graphs.stored_objects(bundle)
    whole, _ = object_graphs.walk(saved, stored)
    for number in (len(saved), 1 << 40, -1):
        saved[0].children[0].node_id = number
        paths, _ = object_graphs.walk(saved, stored)
        assert set(paths) <= set(whole) and len(paths) > 1
        saved[0].children[0].node_id = stored[0].children[0].node_id
        stored[0].children[0].node_id = number
        paths, pairs = object_graphs.walk(saved, stored)
        assert set(paths) == set(whole) and len(pairs) > 1
        stored[0].children[0].node_id = saved[0].children[0].node_id


@pytest.mark.soak
@pytest.mark.parametrize("writer", _WRITERS)
@pytest.mark.parametrize("file", _FLIPPED)
def test_any_flipped_bit_is_noticed(file: str, writer: str, damaged: Any) -> None:
    if writer != "ours" and file not in ("saved_model.pb", "variables/variables.index", _DATA):
        pytest.skip("their other files are not covered by a digest")
    _flip_many(damaged(writer), file, 100, seed=None)


def _flip_many(export_dir: Path, file: str, count: int, seed: int | None = 8) -> None:
    path = export_dir / file
    bits = path.stat().st_size * 8
    for bit in random.Random(seed).sample(range(bits), min(bits, count)):
        _flip(path, bit)
        report = ke.verify(export_dir, run=False)
        assert not report.ok, f"bit {bit}"
        found = {problem.kind for problem in report.problems}
        # A sound index with a changed byte between its blocks is as good as another one.
        named = {_FLIPPED[file], "foreign-variables" if file.endswith(".index") else ""}
        if file == "assets.extra/digests.json":  # a digest that fits no more, or another path
            named |= {"changed-asset", "missing-asset"}
        if file == "fingerprint.pb":
            named |= {"damaged-graph", "foreign-variables"}
        assert found & named, f"bit {bit}: {found}"
        _flip(path, bit)
    assert ke.verify(export_dir, run=False).ok


def _remove(path: str) -> Callable[[Path], None]:
    return lambda export_dir: (export_dir / path).unlink()


def _truncate(export_dir: Path) -> None:
    with (export_dir / _DATA).open("r+b") as file:
        file.truncate(100)


def _lengthen(export_dir: Path) -> None:
    with (export_dir / _DATA).open("ab") as file:
        file.write(b"more")


def _change_asset(export_dir: Path) -> None:
    (export_dir / "assets/words.txt").write_text("cat\nbird\n")


@pytest.mark.parametrize(
    ("kind", "damage", "where"),
    [
        ("missing-shard", _remove(_DATA), _DATA),
        ("truncated-shard", _truncate, _DATA),
        ("damaged-data", _lengthen, _DATA),
        ("missing-index", _remove("variables/variables.index"), "variables/variables.index"),
        ("missing-asset", _remove("assets/words.txt"), "assets/words.txt"),
        ("changed-asset", _change_asset, "assets/words.txt"),
    ],
)
def test_a_file_that_is_not_what_was_exported_is_named(
    kind: str, damage: Callable[[Path], None], where: str, damaged: Any
) -> None:
    export_dir = damaged("ours")
    damage(export_dir)
    (problem,) = ke.verify(export_dir).problems
    assert (problem.kind, problem.where) == (kind, where)


def test_the_variables_of_another_export_are_told(damaged: Any, exports: dict[str, Path]) -> None:
    for writer in ("ours", "tensorflow"):
        export_dir = damaged(writer)
        loaded = tf.saved_model.load(str(exports[writer]))
        loaded.scale.assign([7.0, 8.0, 9.0])
        tf.train.Checkpoint(loaded).write(f"{export_dir}/variables/variables")
        assert _kinds(export_dir) == {"foreign-variables"}


def test_the_fingerprint_of_another_export_is_told(
    damaged: Any, exports: dict[str, Path], tmp_path: Path
) -> None:
    export_dir = damaged("ours")
    shutil.copy(exports["keras"] / "fingerprint.pb", export_dir)
    assert _kinds(export_dir) == {"wrong-fingerprint"}


def test_an_artifact_without_fingerprint_passes_with_a_note(damaged: Any) -> None:
    export_dir = damaged("ours")
    (export_dir / "fingerprint.pb").unlink()
    report = ke.verify(export_dir, run=False)
    assert report.ok and "no fingerprint.pb" in report.notes[0]


def test_a_variable_that_the_graph_needs_and_the_bundle_lacks_is_named(
    damaged: Any, exports: dict[str, Path]
) -> None:
    for writer in ("ours", "tensorflow"):
        export_dir = damaged(writer)
        prefix = f"{export_dir}/variables/variables"
        reader = tf.train.load_checkpoint(prefix)
        kept = [x for x in reader.get_variable_to_shape_map() if not x.startswith("kernel")]
        values = [tf.constant(reader.get_tensor(name)) for name in kept]
        tf.raw_ops.SaveV2(
            prefix=prefix, tensor_names=kept, shape_and_slices=[""] * len(kept), tensors=values
        )
        (export_dir / "fingerprint.pb").unlink()
        problems = ke.verify(export_dir, run=False).problems
        assert {x.kind for x in problems} == {"missing-variable"}
        assert {x.where for x in problems} >= {"kernel/.ATTRIBUTES/VARIABLE_VALUE"}


def test_a_variable_of_another_shape_is_named(damaged: Any) -> None:
    export_dir = damaged("ours")
    prefix = f"{export_dir}/variables/variables"
    reader = tf.train.load_checkpoint(prefix)
    names = list(reader.get_variable_to_shape_map())
    stored = {name: reader.get_tensor(name) for name in names}
    values = [x[:2] if name.startswith("scale") else x for name, x in stored.items()]
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(x) for x in values],
    )
    (export_dir / "fingerprint.pb").unlink()
    (problem,) = ke.verify(export_dir, run=False).problems
    assert problem.kind == "mismatched-variable" and problem.where == "scale"
    assert "float32[3]" in problem.message and "float32[2]" in problem.message


class ReadsFile(tf.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def f(self, x: tf.Tensor) -> tf.Tensor:
        return tf.strings.length(tf.io.read_file(self.path)) + tf.cast(x, tf.int32)


def test_a_signature_that_needs_a_file_outside_is_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("needed")
    tf.saved_model.save(ReadsFile(str(outside)), str(tmp_path / "a"))
    for run in (False, True):
        (problem,) = ke.verify(tmp_path / "a", run=run).problems
        assert (problem.kind, problem.where) == ("outside-file", str(outside))
    # Here the graph does not tell the path before it runs.
    halves = ReadsFile(tf.Variable(str(tmp_path)) + "/outside.txt")
    halves.folder = halves.path
    concrete = halves.f.get_concrete_function()
    tf.saved_model.save(halves, str(tmp_path / "b"), concrete)
    outside.unlink()
    (problem,) = ke.verify(tmp_path / "b").problems
    assert (problem.kind, problem.where) == ("outside-file", str(outside))


def test_a_graph_that_calls_python_is_named(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: tf.numpy_function(lambda y: y, [x], tf.float32),
        input_signature=[tf.TensorSpec([2], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path / "a"))
    assert _kinds(tmp_path / "a") == {"python-code"}


# -- usage ----------------------------------------------------------------------------------------


def test_ragged_and_sparse_results_are_run_and_compared(tmp_path: Path) -> None:
    class Composite(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2, 3], tf.float32, "x")])
        def f(self, x: tf.Tensor) -> dict[str, Any]:
            rows = tf.RaggedTensor.from_tensor(x, lengths=[2, 1])
            words = tf.strings.as_string(rows)
            return {"rows": rows, "cells": tf.sparse.from_dense(x), "words": words}

    ke.save(Composite(), tmp_path)
    key, inputs = "serving_default", {"x": _X}
    rows = np.float32([[1, 2], [4, 0]])
    words = np.array([[b"1.000000", b"2.000000"], [b"4.000000", b""]], object)
    given = {"inputs": {key: inputs}, "outputs": {key: {"rows": rows, "cells": _X, "words": words}}}
    report = ke.verify(tmp_path, **given)
    assert report.ok, report
    assert report.notes == ()
    given["outputs"][key]["rows"] = rows + 1
    assert not ke.verify(tmp_path, **given).ok


def test_names_that_the_artifact_does_not_have_are_refused(exports: dict[str, Path]) -> None:
    for arguments, message in (
        ({"inputs": {"sreve": {}}}, r"a signature of \['serving_default'\]"),
        ({"inputs": {"serving_default": {"z": 1}}}, r"the inputs \['word', 'x'\]"),
        ({"outputs": {"serving_default": {"y": 1, "id": 2}}}, "inputs beside the outputs"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ke.verify(exports["ours"], **arguments)


def test_what_is_no_artifact_is_refused_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "without saved_model.pb" in capsys.readouterr().err


def test_the_command_tells_the_damage_and_exits_with_1(
    damaged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    export_dir = damaged("ours")
    _change_asset(export_dir)
    assert cli.main(["verify", str(export_dir), "--files-only"]) == 1
    assert "assets/words.txt" in capsys.readouterr().out
    assert cli.main(["verify", str(export_dir), "--files-only", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [x["kind"] for x in shown["problems"]] == ["changed-asset"]


def test_files_are_checked_without_tensorflow(exports: dict[str, Path]) -> None:
    code = (
        "import sys, keras_export.cli as cli\n"
        "code = cli.main(['verify', '--files-only', sys.argv[1]])\n"
        "print('tensorflow' in sys.modules, code)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code, str(exports["ours"])], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False 0", done.stderr


def test_an_artifact_at_a_url_is_verified(exports: dict[str, Path]) -> None:
    target = f"ram://verified/{os.getpid()}"
    for folder, _, names in os.walk(exports["keras"]):
        for name in names:
            path = Path(folder, name)
            tf.io.gfile.makedirs(f"{target}/{path.parent.relative_to(exports['keras'])}")
            below = path.relative_to(exports["keras"])
            tf.io.gfile.copy(str(path), f"{target}/{below}", overwrite=True)
    report = ke.verify(target, run=False)
    assert report.ok and report.export_dir == target and report.checked["variables"] == 4


def test_the_digests_name_every_asset(exports: dict[str, Path]) -> None:
    files = artifacts.files(exports["ours"])
    stated = json.loads(files["assets.extra/digests.json"])["sha256"]
    assert list(stated) == [name for name in files if name.startswith("assets/")]
