"""Artifacts of all writers can be seen, in Python and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    model.export(folder / "keras", verbose=False)
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


def test_a_ragged_output_is_shown_as_what_it_is(tmp_path: Path) -> None:
    module = tf.Module()
    module.split = tf.function(
        lambda x: tf.RaggedTensor.from_row_splits(x, [0, 1, 3]),
        input_signature=[tf.TensorSpec([3], tf.float32, "x")],
    )
    ke.save(module, tmp_path / "model", signatures=module.split)
    info = ke.inspect(tmp_path / "model")
    (output,) = info.signatures["serving_default"].outputs.values()
    assert isinstance(output, tf.RaggedTensorSpec)
    assert output.dtype == tf.float32
    assert output.shape.rank == 2
    assert "float32" in str(info)
    assert info.to_dict()["signatures"]["serving_default"]["outputs"]
