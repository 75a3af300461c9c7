"""Promises of `sweeping` and `locks`: the living are left alone, the dead leave nothing."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess

import pytest
from publications import (
    FOREIGN,
    artifact,
    export,
    fill,
    prefixed,
    run_here,
    sweep_around,
    tree,
)

from keras_export.publishing import stage
from keras_export.sweeping import sweep


def test_a_staging_name_carries_the_pid_and_is_no_integer(target: pathlib.Path) -> None:
    with stage(target) as staging:
        [name] = os.listdir(target.parent)
        assert name.startswith(f".keras_export-{os.getpid()}-")
        assert staging.path == f"{target.parent}/{name}/new"
        with pytest.raises(ValueError):
            int(name)


def test_the_staging_of_a_living_export_is_not_swept(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old"))
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        assert sweep_around(target) == []
        run_here("assert not sweep_around(pathlib.Path(sys.argv[1]))", str(target))
        staging.commit()
    assert tree(target.parent) == prefixed(target, artifact("new"))


def test_what_a_killed_export_left_is_swept_by_the_next(target: pathlib.Path) -> None:
    code = "staging = stage(sys.argv[1]); staging.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(subprocess.CalledProcessError):
        run_here(code, str(target))
    [left] = os.listdir(target.parent)
    assert left.startswith(".keras_export-")
    export(target, "new")
    assert tree(target.parent) == prefixed(target, artifact("new"))


def test_sweep_returns_what_it_removed_and_leaves_everything_else(target: pathlib.Path) -> None:
    others = {".keras_export.json": "state", ".keras_export-": "", ".keras_export-1-zz/x": ""}
    fill(target, others | {".keras_export-1-0a/new/saved_model.pb": "", "12/saved_model.pb": ""})
    assert sweep(target) == [f"{target}/.keras_export-1-0a"]
    assert tree(target) == others | {"12/saved_model.pb": ""}
    assert sweep(target / "missing") == []


def test_a_staging_directory_of_another_user_is_not_swept(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = {".keras_export-1-0a/new/": "", ".keras_export-1-0a/parts/mine": "theirs"}
    fill(target, trap | {"mine": "mine"})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert sweep(target) == []
    assert tree(target) == trap | {"mine": "mine"}


def test_where_there_are_no_locks_exports_work_and_nothing_is_swept(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    fill(target, artifact("old") | FOREIGN)
    export(target, "new")
    assert tree(target.parent) == prefixed(target, artifact("new") | FOREIGN)
    fill(target.parent, {".keras_export-1-0a/new/": ""})
    assert sweep(target.parent) == []
