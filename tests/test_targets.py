"""Promises of `targets`: what can never work is refused before anything is made."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys

import pytest
from publications import (
    REPOSITORY,
    tree,
)

from keras_export.errors import ArgumentError, ArgumentTypeError, TargetError
from keras_export.publishing import stage
from keras_export.targets import check_target


def test_a_path_is_made_absolute(target: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.parent)
    for path in ("model", "./x/../model/", target, f"file://{target}"):
        assert check_target(path) == str(target)
    assert check_target(f"file://localhost{target}") == str(target)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("below", ["", "/below", "/far/below"])
def test_a_file_at_the_path_or_above_it_is_refused(target: pathlib.Path, below: str) -> None:
    target.write_text("a file")
    for refuse in (check_target, lambda path: stage(path).__enter__()):
        with pytest.raises(TargetError) as caught:
            refuse(f"{target}{below}")
        assert caught.value.errno == errno.ENOTDIR
        assert str(caught.value) == (
            f"Cannot export to {target}{below}: expected a directory or nothing there, and only "
            f"directories above, received a file at {target}. Move the file, or export elsewhere."
        )
    assert tree(target.parent) == {"model": "a file"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_place_without_write_permission_is_refused(
    target: pathlib.Path, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = target if exists else target.parent
    nearest.mkdir(exist_ok=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(nearest))
    with pytest.raises(TargetError) as caught:
        check_target(target / "a" / "..")
    assert caught.value.errno == errno.EACCES
    assert str(caught.value) == (
        f"Cannot export to {target}: expected to write there, received Permission denied at "
        f"{nearest}. Export to a place that this process may write to. What was at the path "
        "before is unchanged."
    )
    assert tree(target.parent) == ({"model/": ""} if exists else {})


def test_a_name_that_is_too_long_is_refused(target: pathlib.Path) -> None:
    with pytest.raises(TargetError, match="Export to a shorter path") as caught:
        check_target(target / ("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert os.listdir(target.parent) == []


def test_what_is_not_a_path_is_refused() -> None:
    for path in ("", "a\0b"):
        with pytest.raises(ArgumentError, match="Cannot export: expected the path of a directory"):
            check_target(path)
    with pytest.raises(ArgumentTypeError, match="received export_dir=3"):
        check_target(3)  # type: ignore[arg-type]


def test_the_import_does_not_load_tensorflow() -> None:
    code = "import sys; from keras_export import publishing, sweeping, targets\n"
    code += "sweeping.sweep('.'); targets.check_target('x')\n"
    code += "sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(TargetError, match="File system scheme 'nowhere'") as caught:
        check_target("nowhere://model")
    assert caught.value.errno == errno.ENOTSUP
