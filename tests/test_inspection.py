"""Artifacts of all writers can be seen, in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import artifacts
import keras
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(5, name="out")(x))
    ke.export(model, folder / "ours")
    artifacts.export_with_keras(model, folder / "keras")
    tf.saved_model.save(model, str(folder / "tensorflow"))
    return {name: folder / name for name in ("ours", "keras", "tensorflow")}


@pytest.mark.parametrize("writer", ["ours", "keras", "tensorflow"])
def test_an_artifact_of_every_writer_is_read(exports: dict[str, Path], writer: str) -> None:
    info = ke.inspect(exports[writer])
    assert info.tags == ("serve",) and info.producer == tf.version.VERSION
    (outputs,) = {tuple(x.outputs) for x in info.signatures.values()}
    assert len(outputs) == 1 and info.ops["MatMul"] >= 1 and info.functions > 0
    assert ((4, 5), "float32", 80) in info.variables.values()
    assert info.graph_bytes == (exports[writer] / "saved_model.pb").stat().st_size
    assert "graph_def_program_hash" in info.fingerprint


def test_the_json_has_what_the_object_has(
    exports: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(exports["ours"]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == ke.inspect(exports["ours"]).to_dict()
    assert shown["signatures"]["serve"]["inputs"] == {"x": {"shape": [None, 4], "dtype": "float32"}}


def test_the_text_says_how_to_call(
    exports: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(exports["ours"])]) == 0
    assert "serve(x: float32[?, 4]) -> (out: float32[?, 5])" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["nothing", "garbage", "index"])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    damage: str, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage != "nothing":
        (tmp_path / "variables").mkdir()
        content = (exports["ours"] / "saved_model.pb").read_bytes()
        content = b"\x0a\xff\xff" if damage == "garbage" else content
        (tmp_path / "saved_model.pb").write_bytes(content)
        (tmp_path / "variables" / "variables.index").write_bytes(b"damaged")
    assert cli.main(["show", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-export: Cannot ") and "Traceback" not in error
    assert cli.main(["--debug", "show", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_needs_no_tensorflow() -> None:
    code = (
        "import sys, keras_export.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: print('tensorflow' in sys.modules, end.code)"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False 0"


def test_bad_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["shew"])
    assert end.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_composite_inputs_are_shown_as_what_they_are(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    describe = v1.saved_model.utils.build_tensor_info
    with v1.Graph().as_default(), v1.Session() as session:
        words = v1.ragged.placeholder(tf.int64, 1, [])
        weights = v1.sparse_placeholder(tf.float32, [None, 9])
        signature = v1.saved_model.signature_def_utils.build_signature_def(
            {"words": describe(words), "weights": describe(weights)},
            {"total": describe(tf.reduce_sum(words))},
        )
        builder = v1.saved_model.Builder(str(tmp_path / "v1"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serve": signature})
        builder.save()
    shown = ke.inspect(tmp_path / "v1").signatures["serve"]
    assert str(shown) == (
        "(weights: sparse float32[?, 9], words: ragged int64[?, ?]) -> (total: int64[])"
    )


def test_show_reads_without_tensorflow(exports: dict[str, Path]) -> None:
    code = (
        "import sys, keras_export.cli as cli\n"
        "code = cli.main(['show', sys.argv[1]])\n"
        "print('tensorflow' in sys.modules, code)"
    )
    for path in exports.values():
        done: Any = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "False 0"


def test_a_url_is_read_as_the_path_is(exports: dict[str, Path]) -> None:
    path = exports["ours"]
    by_url, by_path = ke.inspect(f"file://{path}").to_dict(), ke.inspect(path).to_dict()
    assert by_url.pop("export_dir") == f"file://{by_path.pop('export_dir')}"
    assert by_url == by_path and by_path["variables"]
