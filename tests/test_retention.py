"""Old versions go, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli, retention
from keras_export.errors import ArgumentError, ArgumentTypeError


def _version(path: Path, content: str = "model") -> Path:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text(content)
    (path / "variables" / "variables.index").write_text("index")
    return path


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number in ("1", "2", "00003", "9", "10", "100"):
        _version(tmp_path / "base" / number)
    return tmp_path / "base"


def test_the_newest_versions_stay_by_number_and_not_by_name(base: Path) -> None:
    found = retention.prune(base, 3)
    assert found.removed == ("1", "2", "00003") and found.kept == ("9", "10", "100")
    assert _names(base) == {"9", "10", "100"}
    assert found.freed_bytes == 3 * len("model" + "index")


def test_a_dry_run_tells_the_same_and_deletes_nothing(base: Path) -> None:
    before = _names(base)
    dry = retention.prune(base, 2, dry_run=True)
    assert _names(base) == before and "would remove" in str(dry)
    assert retention.prune(base, 2).removed == dry.removed
    assert "would" not in str(retention.prune(base, 2))


def test_nothing_but_complete_versions_is_counted_or_deleted(base: Path, tmp_path: Path) -> None:
    (base / "0").mkdir()  # being written by somebody who does not stage
    (base / "200" / "variables").mkdir(parents=True)
    for foreign in ("notes", "1a", "-5", ".keras_export-1-ab"):
        _version(base / foreign)
    (base / "7").write_text("a file")
    elsewhere = _version(tmp_path / "elsewhere")
    (base / "5").symlink_to(elsewhere)
    before = _names(base)
    found = retention.prune(base, 1)
    assert found.kept == ("100",) and before - _names(base) == set(found.removed)
    assert found.removed == ("1", "2", "00003", "9", "10")
    assert (elsewhere / "saved_model.pb").exists()
    reasons = "\n".join(found.notes)
    assert "0 stays: it has no saved_model.pb" in reasons and "5 stays: it is a link" in reasons
    assert "200 stays" in reasons


def test_a_version_that_a_link_leads_to_stays(base: Path) -> None:
    (base.parent / "base-best").symlink_to("base/2")
    (base / "stable").symlink_to(base / "9")
    found = retention.prune(base, 1)
    assert found.kept == ("2", "9", "100")
    assert "2 stays: a link leads to it" in found.notes
    assert (base.parent / "base-best" / "saved_model.pb").exists()


def test_files_that_versions_share_stay_whole(tmp_path: Path) -> None:
    one, two = _version(tmp_path / "1", "shared model"), tmp_path / "2"
    two.mkdir()
    os.link(one / "saved_model.pb", two / "saved_model.pb")
    found = retention.prune(tmp_path, 1)
    assert found.freed_bytes == len("index")
    assert (two / "saved_model.pb").read_text() == "shared model"


@pytest.mark.parametrize("keep_last", [0, -1, True, 1.5, None])
def test_a_number_that_is_none_is_refused_by_name(base: Path, keep_last: Any) -> None:
    before = _names(base)
    with pytest.raises((ArgumentError, ArgumentTypeError), match="keep_last"):
        retention.prune(base, keep_last)
    assert _names(base) == before


def test_versions_at_a_url_are_pruned(tmp_path: Path) -> None:
    base = f"ram://pruned/{os.getpid()}"
    for number in (1, 2, 3):
        ke.save(tf.Module(), f"{base}/{number}")
    assert retention.prune(base, 1).removed == ("1", "2")
    assert tf.io.gfile.exists(f"{base}/3/saved_model.pb")
    assert not tf.io.gfile.exists(f"{base}/1/saved_model.pb")


def test_the_command_asks_nothing_and_says_what_went(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prune", str(base), "--keep-last", "5", "--dry-run"]) == 0
    assert "would remove 1 versions" in capsys.readouterr().out
    assert cli.main(["prune", str(base), "--keep-last", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["removed"] == ["1", "2", "00003", "9"] and shown["kept"] == ["10", "100"]
    assert cli.main(["prune", str(base), "--keep-last", "0"]) == 2
    assert "keep_last of 1 or more" in capsys.readouterr().err
    assert cli.main(["prune", str(base / "none"), "--keep-last", "1"]) == 2
    assert "expected a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["prune", str(base)])
    assert end.value.code == 2


def test_real_versions_of_every_writer_are_pruned_without_tensorflow(tmp_path: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable(1.0)
    ke.save(module, tmp_path / "1")
    tf.saved_model.save(module, str(tmp_path / "2"))
    ke.save(module, tmp_path / "3")
    code = (
        "import sys, keras_export.cli as cli\n"
        "code = cli.main(['prune', sys.argv[1], '--keep-last', '1'])\n"
        "print('tensorflow' in sys.modules, code)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False 0", done.stderr
    assert _names(tmp_path) == {"3"} and ke.verify(tmp_path / "3", run=False).ok


def test_the_result_renders_in_a_notebook(base: Path) -> None:
    assert "<li>kept: 10, 100</li>" in retention.prune(base, 2)._repr_html_()
