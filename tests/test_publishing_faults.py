"""Promises of `publishing` when something fails: each looks at what is left on the disk."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest
from publications import (
    FOREIGN,
    WAYS,
    Tree,
    artifact,
    export,
    failing,
    fill,
    prefixed,
    run_here,
    sweep_around,
    tree,
    use,
)

from keras_export import directories
from keras_export.errors import TargetError
from keras_export.publishing import stage
from keras_export.sweeping import sweep


def test_without_a_commit_the_old_artifact_is_as_it_was(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old") | FOREIGN)
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
    assert tree(target) == artifact("old") | FOREIGN
    assert os.listdir(target.parent) == ["model"]


def test_an_export_that_cannot_start_touches_nothing_where_the_process_stands(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"new/file": "mine", "parts/file": "mine", "fresh/file/": "", "file": "mine"}
    fill(target.parent, here)
    monkeypatch.chdir(target.parent)
    monkeypatch.setattr(os, "mkdir", failing(os.mkdir, str(target), code=errno.ENOSPC))
    with pytest.raises(TargetError, match="Free space there"):
        export(target / "below", "new")
    assert tree(target.parent) == here


@pytest.mark.parametrize("error", [KeyError("k"), OSError(errno.ENOSPC, "full"), SystemExit(3)])
def test_an_error_of_the_caller_passes_unchanged(
    target: pathlib.Path, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught, stage(target) as staging:
        fill(staging.path, artifact("new"))
        raise error
    assert caught.value is error
    assert os.listdir(target.parent) == []


def test_an_error_after_the_commit_leaves_the_new_artifact(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old"))
    with pytest.raises(KeyError), stage(target) as staging:
        fill(staging.path, artifact("new"))
        staging.commit()
        raise KeyError
    assert tree(target.parent) == {f"model/{name}": text for name, text in artifact("new").items()}


def test_a_full_disk_names_the_path_and_what_to_do(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(target, artifact("old"))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TargetError) as caught, stage(target) as staging:
        fill(staging.path, {"saved_model.pb": "new"})
        staging.commit()
    assert str(caught.value) == (
        f"Cannot export to {target}: expected to write there, received No space left on device at "
        f"{staging.path}/saved_model.pb. Free space there, or export to another file system. "
        "What was at the path before is unchanged."
    )
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, OSError)
    assert tree(target.parent) == {f"model/{name}": text for name, text in artifact("old").items()}


# Every call of publishing that changes something on the disk.
_CALLS = [(os, name) for name in ("fsync", "mkdir", "rename", "replace", "link", "chmod", "rmdir")]
_CALLS += [(os, "unlink"), (directories, "renameat2")]


class Saboteur:
    """Strikes at the n-th of all calls that change the disk."""

    def __init__(self, n: int, strike: Callable[[], None]) -> None:
        self.left, self._strike, self._real = n, strike, [getattr(*call) for call in _CALLS]

    def __enter__(self) -> Saboteur:
        for (module, name), real in zip(_CALLS, self._real, strict=True):
            setattr(module, name, self._wrapped(real))
        return self

    def __exit__(self, *_: object) -> None:
        for (module, name), real in zip(_CALLS, self._real, strict=True):
            setattr(module, name, real)

    def export(
        self, target: str | os.PathLike[str], text: str, above: pathlib.Path | None = None
    ) -> None:
        with self, stage(target, above=above) as staging:
            self.__exit__()
            fill(staging.path, artifact(text))
            self.__enter__()
            staging.commit()

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self._strike()
            return real(*args, **kwargs)

        return call


def strike_io_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def strike_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("strike", [strike_io_error, strike_interrupt])
@pytest.mark.parametrize("old", [artifact("old") | FOREIGN, {}], ids=["replaced", "new"])
def test_whichever_call_fails_the_target_is_old_or_new_and_nothing_else_stays(
    target: pathlib.Path, way: str, old: Tree, strike: Callable[[], None]
) -> None:
    new = artifact("new") | (FOREIGN if old else {})
    if way == "inside" and not old:
        old = {"": ""}  # an empty folder: a target that is not there has no inside
    for n in itertools.count(1):
        fill(target.parent, prefixed(target, old))
        saboteur = Saboteur(n, strike)
        try:
            saboteur.export(target, "new")
            allowed = [new]
            sweep_around(target)  # of what could not be deleted
        except TargetError as error:
            assert error.errno == errno.EIO
            allowed = [old]
        except KeyboardInterrupt:  # may also come when all is done
            allowed = [old, new]
            sweep_around(target)
        assert tree(target.parent) in [prefixed(target, files) for files in allowed], n
        shutil.rmtree(target, ignore_errors=True)
        if saboteur.left > 0:
            break
    assert n > 15


@pytest.mark.parametrize("old", [artifact("old") | FOREIGN, {}], ids=["replaced", "new"])
@pytest.mark.parametrize("way", WAYS[:2])
def test_whichever_call_fails_what_was_staged_above_leaves_nothing(
    target: pathlib.Path, way: str, old: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(way, target, monkeypatch.setattr)
    model, new = target / "1" / "model", artifact("new") | (FOREIGN if old else {})
    for n in itertools.count(1):
        target.mkdir()
        fill(model, old)
        saboteur = Saboteur(n, strike_io_error)
        try:
            saboteur.export(model, "new", above=target)
            expected = new
            sweep(target)  # of what could not be deleted
            sweep(target / "1")
        except TargetError:
            expected = old
        assert tree(target) == {f"1/model/{name}": text for name, text in expected.items()}, n
        assert expected or not (target / "1").exists(), n
        shutil.rmtree(target)
        if saboteur.left > 0:
            break
    assert n > 12


def kill_everywhere(way: str, target: pathlib.Path) -> None:
    """Kills a child at each call that changes the disk; to be run in a process without threads."""
    use(way, target, setattr)
    old, new = artifact("old") | FOREIGN, artifact("new") | FOREIGN
    seen = []
    for n in itertools.count(1):
        fill(target, old)
        child = os.fork()
        if child == 0:
            Saboteur(n, lambda: os.kill(os.getpid(), signal.SIGKILL)).export(target, "new")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = tree(target)
        assert found in (old, new) or way == "inside" or (way == "two steps" and not found), n
        sweep_around(target)
        seen.append(tree(target.parent))
        assert seen[-1] in (prefixed(target, old), prefixed(target, new)), (n, seen[-1])
        shutil.rmtree(target)
        if os.WIFEXITED(status):
            break
    assert len(seen) > 15 and prefixed(target, old) in seen[:-1] and prefixed(target, new) in seen


@pytest.mark.parametrize("way", WAYS)
def test_whenever_the_process_is_killed_the_artifact_is_old_or_new_after_a_sweep(
    target: pathlib.Path, way: str
) -> None:
    code = "from test_publishing_faults import kill_everywhere as kill\n"
    run_here(f"{code}kill(sys.argv[1], pathlib.Path(sys.argv[2]))", way, str(target))
    assert os.listdir(target.parent) == []


def kill_below(way: str, folder: pathlib.Path, old: Tree) -> None:
    """Kills a child that publishes what was staged above; in a process without threads."""
    model = folder / "1" / "model"
    use(way, model, setattr)
    new = artifact("new") | (FOREIGN if old else {})
    seen = []
    for n in itertools.count(1):
        folder.mkdir()
        fill(model, old)
        child = os.fork()
        if child == 0:
            Saboteur(n, lambda: os.kill(os.getpid(), signal.SIGKILL)).export(model, "new", folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert old or not (folder / "1").exists() or tree(model) == new, n
        sweep(folder)
        sweep(folder / "1")
        seen.append(tree(folder))
        assert seen[-1] in (prefixed(model, old, "1/"), prefixed(model, new, "1/")), (n, seen[-1])
        shutil.rmtree(folder)
        if os.WIFEXITED(status):
            break
    assert len(seen) > 12 and seen[0] != seen[-1]


@pytest.mark.parametrize(("way", "old"), [("exchange", ""), ("two steps", "replaced")])
def test_whenever_the_process_is_killed_a_folder_has_its_artifact_or_is_not_there(
    target: pathlib.Path, way: str, old: str
) -> None:
    code = "from test_publishing_faults import FOREIGN, artifact, kill_below as kill\n"
    code += "old = artifact('old') | FOREIGN if sys.argv[3] else {}\n"
    run_here(f"{code}kill(sys.argv[1], pathlib.Path(sys.argv[2]), old)", way, str(target), old)
    assert os.listdir(target.parent) == []


def test_the_old_artifact_comes_back_when_the_second_rename_fails(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("two steps", target, monkeypatch.setattr)
    fill(target, artifact("old") | FOREIGN)
    with pytest.raises(TargetError) as caught, stage(target) as staging:
        fill(staging.path, artifact("new"))
        monkeypatch.setattr(os, "rename", failing(os.rename, staging.path, code=errno.EIO))
        staging.commit()
    assert caught.value.errno == errno.EIO
    assert tree(target.parent) == prefixed(target, artifact("old") | FOREIGN)


def test_an_old_artifact_that_cannot_be_put_back_is_kept_and_named(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(path: str, new: str) -> None:
        if path != str(target):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        real_rename(path, new)

    real_rename = os.rename
    use("two steps", target, monkeypatch.setattr)
    fill(target, artifact("old"))
    with monkeypatch.context() as patch, pytest.raises(TargetError) as caught:
        patch.setattr(os, "rename", rename)
        export(target, "new")
    [container] = target.parent.iterdir()
    assert str(caught.value) == (
        f"Cannot restore {target}: expected renames to work, received Input/output error at "
        f"{container}/whole/model. What was there is in {container}: move it back, or call "
        "sweep() later."
    )
    assert tree(container / "whole" / "model") == artifact("old")
    assert sweep(target.parent) == [str(container)]
    assert tree(target.parent) == prefixed(target, artifact("old"))


def test_what_cannot_be_deleted_is_told_and_the_export_stands(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(target, artifact("old"))
    with stage(target) as staging, monkeypatch.context() as patch:
        fill(staging.path, artifact("new"))
        patch.setattr(shutil, "rmtree", lambda path, **kwargs: None)
        publication = staging.commit()
        assert publication.leftovers == (os.path.dirname(staging.path),)
    assert tree(target.parent) == prefixed(target, artifact("new"))
