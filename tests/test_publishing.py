"""Promises of `publishing`. Every fault test ends by looking at what is left on the disk."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keras_export import publishing
from keras_export.errors import ArgumentError, ArgumentTypeError, TargetError
from keras_export.publishing import check_target, stage, sweep

Tree = dict[str, str]

_REPOSITORY = pathlib.Path(publishing.__file__).parents[1]
_WAYS = ("exchange", "two steps", "inside")
_FOREIGN = {"notes.txt": "foreign", "eval/1/log": "foreign", "assets.extra/labels": "foreign"}


def artifact(text: str) -> Tree:
    names = ("saved_model.pb", "fingerprint.pb", "variables/variables.index")
    return {**dict.fromkeys(names, text), "assets/": ""}


def fill(folder: str | os.PathLike[str], tree: Tree) -> None:
    for name, text in tree.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not name.endswith("/"):
            pathlib.Path(path).write_text(text)


def tree(folder: str | os.PathLike[str]) -> Tree:
    """The text of every file by relative path; links and empty folders too."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def export(target: str | os.PathLike[str], text: str, *, exclusive: bool = False) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact(text))
        staging.commit(exclusive=exclusive)


def no_renameat2(path: str, target: str, flags: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)


def use(way: str, target: str | os.PathLike[str], patch: Callable[..., Any]) -> None:
    """Makes the file system behave so that the target is published in one of the three ways."""
    if way == "two steps":
        patch(publishing, "_renameat2", no_renameat2)
    if way == "inside":
        patch(os.path, "ismount", lambda path: path == str(target))


def failing(call: Callable[..., Any], *where: object, code: int) -> Callable[..., Any]:
    """The call, failing where its first argument is one of `where`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if args[0] in where:
            raise OSError(code, os.strerror(code), args[0])
        return call(*args, **kwargs)

    return wrapper


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    """A path in a folder of its own, so that everything left beside it is seen."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model"


@pytest.fixture(params=_WAYS)
def way(
    request: pytest.FixtureRequest, target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    use(request.param, target, monkeypatch.setattr)
    return request.param


# -- what is published -----------------------------------------------------------------------------


def test_a_new_target_holds_exactly_what_was_written(target: pathlib.Path) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        publication = staging.commit()
    assert tree(target) == artifact("new")
    assert os.listdir(target.parent) == ["model"]
    assert publication.sync_seconds > 0 and publication.publish_seconds > 0
    assert publication.leftovers == ()


def test_nothing_is_at_the_target_before_the_commit(target: pathlib.Path) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        assert not target.exists()
        assert staging.target == str(target)
        staging.commit()


def test_an_old_artifact_is_replaced_with_all_its_files(target: pathlib.Path, way: str) -> None:
    old = ("saved_model.pbtxt", "saved_model.cpb", "debug/info.pb", "variables/shard-2", "assets/v")
    extras = ("tf_serving_warmup_requests", "keras_export.json", "digests.json")
    fill(target, artifact("old"))
    fill(target, dict.fromkeys(old, "old"))
    fill(target, {f"assets.extra/{name}": "old" for name in extras})
    export(target, "new")
    assert tree(target) == artifact("new")
    assert os.listdir(target.parent) == ["model"]


def test_foreign_files_are_carried_over(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old") | _FOREIGN | {"empty/": "", "assets.extra/digests.json": "old"})
    (target / "link").symlink_to("../elsewhere")
    export(target, "new")
    expected = artifact("new") | _FOREIGN | {"empty/": "", "link": "-> ../elsewhere"}
    assert tree(target) == expected


def test_a_foreign_file_keeps_its_inode_and_a_foreign_folder_its_mode(
    target: pathlib.Path, way: str
) -> None:
    fill(target, artifact("old") | _FOREIGN)
    (target / "eval").chmod(0o751)
    before = (target / "eval/1/log").stat().st_ino
    export(target, "new")
    assert (target / "eval/1/log").stat().st_ino == before
    assert stat.S_IMODE((target / "eval").stat().st_mode) == 0o751


def test_foreign_files_are_copied_where_there_are_no_hard_links(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "no hard links")

    fill(target, artifact("old") | _FOREIGN)
    (target / "link").symlink_to("../elsewhere")
    monkeypatch.setattr(os, "link", link)
    export(target, "new")
    assert tree(target) == artifact("new") | _FOREIGN | {"link": "-> ../elsewhere"}


def test_a_foreign_file_never_takes_the_place_of_an_exported_one(
    target: pathlib.Path, way: str
) -> None:
    fill(target, artifact("old") | {"assets.extra/labels": "foreign", "extra": "foreign"})
    with stage(target) as staging:
        fill(staging.path, artifact("new") | {"assets.extra/labels": "new", "extra/file": "new"})
        staging.commit()
    assert tree(target) == artifact("new") | {"assets.extra/labels": "new", "extra/file": "new"}


def test_a_folder_without_a_model_gets_the_export_beside_what_it_holds(
    target: pathlib.Path, way: str
) -> None:
    held = {"assets/logo.png": "foreign", "variables/notes": "foreign", "debug/log": "foreign"}
    fill(target, held | {"assets.extra/digests.json": "foreign", "1/saved_model.pb": "version"})
    export(target, "new")
    expected = artifact("new") | held | {"assets.extra/digests.json": "foreign"}
    del expected["assets/"]
    assert tree(target) == expected | {"1/saved_model.pb": "version"}


def test_an_empty_folder_is_replaced(target: pathlib.Path, way: str) -> None:
    target.mkdir(mode=0o705)
    export(target, "new")
    assert tree(target) == artifact("new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o705


def test_a_foreign_file_that_appears_during_the_exchange_is_kept(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(path: str, target: str, flags: int) -> None:
        fill(target, {"late": "foreign"})
        renameat2(path, target, flags)

    renameat2 = publishing._renameat2
    monkeypatch.setattr(publishing, "_renameat2", late)
    fill(target, artifact("old"))
    export(target, "new")
    assert tree(target) == artifact("new") | {"late": "foreign"}


def test_a_file_linked_from_the_old_artifact_stays_whole(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old"))
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        os.unlink(f"{staging.path}/saved_model.pb")
        os.link(target / "saved_model.pb", f"{staging.path}/saved_model.pb")
        staging.commit()
    assert tree(target) == artifact("new") | {"saved_model.pb": "old"}
    assert (target / "saved_model.pb").stat().st_nlink == 1


def test_a_reader_finds_a_complete_artifact_at_each_look_up(target: pathlib.Path) -> None:
    texts, failures, done = [str(n) for n in range(20)], [], threading.Event()

    def read() -> None:
        while not done.is_set():
            for name in ("saved_model.pb", "variables/variables.index", "notes.txt"):
                try:
                    if (target / name).read_text() not in (*texts, "foreign"):
                        failures.append(f"{name} is torn")
                except OSError as error:
                    failures.append(repr(error))

    fill(target, artifact("0") | {"notes.txt": "foreign"})
    reader = threading.Thread(target=read)
    reader.start()
    for text in texts:
        export(target, text)
    done.set()
    reader.join()
    assert not failures
    assert tree(target) == artifact("19") | {"notes.txt": "foreign"}


def test_a_published_directory_has_the_mode_of_any_new_one(target: pathlib.Path) -> None:
    before = os.umask(0o027)
    try:
        export(target, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_a_replaced_directory_keeps_its_mode(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old"))
    target.chmod(0o2705)
    export(target, "new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o2705


def test_everything_is_on_disk_before_the_rename_and_the_rename_before_the_end(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def fsync(descriptor: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def renameat2(path: str, target: str, flags: int) -> None:
        events.append("rename")
        real_renameat2(path, target, flags)

    real_fsync, real_renameat2 = os.fsync, publishing._renameat2
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(publishing, "_renameat2", renameat2)
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        staging.commit()
    published = events.index("rename")
    files = [f"{staging.path}/{name}" for name in artifact("new") if not name.endswith("/")]
    folders = [f"{staging.path}/assets", f"{staging.path}/variables", staging.path]
    assert sorted(events[: len(files)]) == sorted(files)
    assert sorted(events[len(files) : published]) == sorted(folders)
    assert events[published - 1] == staging.path
    assert events[published + 1 :] == [str(target.parent)]


# -- where it is published -------------------------------------------------------------------------


def test_a_symlinked_target_is_resolved(target: pathlib.Path, way: str) -> None:
    link = target.parent.parent / "link"
    link.symlink_to(target)
    fill(target, artifact("old"))
    export(link, "new")
    assert link.is_symlink()
    assert tree(target) == artifact("new")
    assert sorted(os.listdir(link.parent)) == ["link", "models"]


def test_a_symlink_to_nothing_is_resolved(target: pathlib.Path) -> None:
    link = target.parent.parent / "link"
    link.symlink_to(target)
    export(link, "new")
    assert link.is_symlink()
    assert tree(target) == artifact("new")


def test_missing_parents_are_created(target: pathlib.Path) -> None:
    export(target / "a" / "b", "new")
    assert tree(target) == {f"a/b/{name}": text for name, text in artifact("new").items()}


def test_parents_that_were_created_are_removed_on_failure(target: pathlib.Path) -> None:
    with pytest.raises(KeyError), stage(target / "a" / "b"):
        raise KeyError
    assert os.listdir(target.parent) == []


def test_parents_that_others_use_meanwhile_stay(target: pathlib.Path) -> None:
    with pytest.raises(KeyError), stage(target / "a" / "b"):
        fill(target, {"theirs": "foreign"})
        raise KeyError
    assert tree(target.parent) == {"model/theirs": "foreign"}


def test_a_mount_is_filled_from_inside_with_the_model_last(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []

    def replace(path: str, new: str) -> None:
        moved.append(os.path.basename(new))
        real_replace(path, new)

    real_replace = os.replace
    use("inside", target, monkeypatch.setattr)
    monkeypatch.setattr(os, "replace", replace)
    fill(target, artifact("old") | _FOREIGN)
    before = target.stat().st_ino
    with stage(target) as staging:
        assert staging.path.startswith(f"{target}/.keras_export-")
        fill(staging.path, artifact("new"))
        staging.commit()
    assert moved == ["assets", "assets.extra", "fingerprint.pb", "variables", "saved_model.pb"]
    assert target.stat().st_ino == before
    assert tree(target) == artifact("new") | _FOREIGN


def test_where_the_parent_is_not_writable_staging_happens_inside(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: str, mode: int = 0o777) -> None:
        if os.path.dirname(path) == str(target.parent):
            raise PermissionError(errno.EACCES, "denied", path)
        real_mkdir(path, mode)

    real_mkdir = os.mkdir
    fill(target, artifact("old") | _FOREIGN)
    monkeypatch.setattr(os, "mkdir", mkdir)
    with stage(target) as staging:
        assert staging.path.startswith(f"{target}/.keras_export-")
        fill(staging.path, artifact("new"))
        staging.commit()
    assert tree(target) == artifact("new") | _FOREIGN


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY, errno.EPERM])
def test_a_directory_that_turns_out_to_be_immovable_is_filled_from_inside(
    target: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renameat2(path: str, target: str, flags: int) -> None:
        raise OSError(code, os.strerror(code), path)

    immovable = str(target), f"{target}/variables" if code == errno.EXDEV else ""
    monkeypatch.setattr(publishing, "_renameat2", renameat2)
    monkeypatch.setattr(os, "rename", failing(os.rename, *immovable, code=code))
    fill(target, artifact("old") | _FOREIGN)
    before = target.stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | _FOREIGN
    assert target.stat().st_ino == before
    assert os.listdir(target.parent) == ["model"]


def test_a_mount_inside_the_target_is_left_alone(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("inside", target / "eval" / "1", monkeypatch.setattr)
    fill(target, artifact("old") | _FOREIGN)
    before = (target / "eval" / "1").stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | _FOREIGN
    assert (target / "eval" / "1").stat().st_ino == before


def test_a_bind_mount_from_the_same_file_system_is_left_alone(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = target / "eval" / "1"
    monkeypatch.setattr(publishing, "_mount_id", lambda path: "2" if path == str(mount) else "1")
    fill(target, artifact("old") | _FOREIGN)
    before = mount.stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | _FOREIGN
    assert mount.stat().st_ino == before


def test_a_mount_in_the_place_of_the_variables_is_refused(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = target / "variables"
    use("inside", variables, monkeypatch.setattr)
    monkeypatch.setattr(os, "rename", failing(os.rename, str(variables), code=errno.EBUSY))
    fill(target, artifact("old") | _FOREIGN)
    with pytest.raises(TargetError) as caught:
        export(target, "new")
    assert caught.value.errno == errno.EBUSY
    assert tree(target.parent) == prefixed(target, artifact("old") | _FOREIGN)


def test_the_directory_in_which_the_process_stands_is_not_pulled_away(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(target, artifact("old"))
    monkeypatch.chdir(target)
    export(".", "new")
    assert tree(".") == tree(target) == artifact("new")


# -- check_target ----------------------------------------------------------------------------------


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
    code = "import sys, keras_export.publishing as p; p.sweep('.'); p.check_target('x')\n"
    code += "sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_REPOSITORY)


# -- faults ----------------------------------------------------------------------------------------


def test_without_a_commit_the_old_artifact_is_as_it_was(target: pathlib.Path, way: str) -> None:
    fill(target, artifact("old") | _FOREIGN)
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
    assert tree(target) == artifact("old") | _FOREIGN
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
_CALLS += [(os, "unlink"), (publishing, "_renameat2")]


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

    def export(self, target: str | os.PathLike[str], text: str) -> None:
        with self, stage(target) as staging:
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


def prefixed(target: pathlib.Path, files: Tree) -> Tree:
    return {f"{target.name}/{name}": text for name, text in files.items()}


def sweep_around(target: pathlib.Path) -> list[str]:
    return sweep(target.parent) + sweep(target)


@pytest.mark.parametrize("strike", [strike_io_error, strike_interrupt])
@pytest.mark.parametrize("old", [artifact("old") | _FOREIGN, {}], ids=["replaced", "new"])
def test_whichever_call_fails_the_target_is_old_or_new_and_nothing_else_stays(
    target: pathlib.Path, way: str, old: Tree, strike: Callable[[], None]
) -> None:
    new = artifact("new") | (_FOREIGN if old else {})
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


def kill_everywhere(way: str, target: pathlib.Path) -> None:
    """Kills a child at each call that changes the disk; to be run in a process without threads."""
    use(way, target, setattr)
    old, new = artifact("old") | _FOREIGN, artifact("new") | _FOREIGN
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


@pytest.mark.parametrize("way", _WAYS)
def test_whenever_the_process_is_killed_the_artifact_is_old_or_new_after_a_sweep(
    target: pathlib.Path, way: str
) -> None:
    run_here("kill_everywhere(sys.argv[1], pathlib.Path(sys.argv[2]))", way, str(target))
    assert os.listdir(target.parent) == []


def run_here(code: str, *arguments: str) -> None:
    """Runs code in a process of its own, with the names of this module."""
    code = f"import sys, pathlib; from test_publishing import *; {code}"
    paths = os.pathsep.join([str(_REPOSITORY), os.path.dirname(__file__)])
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})


def test_the_old_artifact_comes_back_when_the_second_rename_fails(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("two steps", target, monkeypatch.setattr)
    fill(target, artifact("old") | _FOREIGN)
    with pytest.raises(TargetError) as caught, stage(target) as staging:
        fill(staging.path, artifact("new"))
        monkeypatch.setattr(os, "rename", failing(os.rename, staging.path, code=errno.EIO))
        staging.commit()
    assert caught.value.errno == errno.EIO
    assert tree(target.parent) == prefixed(target, artifact("old") | _FOREIGN)


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


# -- others at the same path -----------------------------------------------------------------------


def test_of_concurrent_exports_all_complete_and_one_remains(target: pathlib.Path, way: str) -> None:
    errors: list[BaseException] = []

    def run(text: str) -> None:
        try:
            for _ in range(8):
                export(target, text)
        except BaseException as error:
            errors.append(error)

    fill(target, artifact("old") | _FOREIGN)
    threads = [threading.Thread(target=run, args=(text,)) for text in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [str(error) for error in errors]
    assert tree(target.parent) in [prefixed(target, artifact(t) | _FOREIGN) for t in "abc"]


def test_a_target_that_appears_during_the_export_is_replaced(target: pathlib.Path) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        fill(target, artifact("theirs") | _FOREIGN)
        staging.commit()
    assert tree(target.parent) == prefixed(target, artifact("new") | _FOREIGN)


@pytest.mark.parametrize("way", _WAYS[:2])
def test_a_target_that_vanishes_just_before_the_rename_is_created(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry(*args: Any) -> None:
        real_carry(*args)
        shutil.rmtree(target, ignore_errors=True)

    use(way, target, monkeypatch.setattr)
    real_carry = publishing._carry
    monkeypatch.setattr(publishing, "_carry", carry)
    fill(target, artifact("old"))
    export(target, "new")
    assert tree(target.parent) == prefixed(target, artifact("new"))


def test_a_file_that_appears_at_the_target_is_not_replaced(target: pathlib.Path) -> None:
    with pytest.raises(TargetError) as caught, stage(target) as staging:
        fill(staging.path, artifact("new"))
        target.write_text("a file")
        staging.commit()
    assert caught.value.errno == errno.ENOTDIR
    assert tree(target.parent) == {"model": "a file"}


@pytest.mark.parametrize("held", [{"saved_model.pb": "old"}, {"notes.txt": "foreign"}, {}])
def test_an_exclusive_commit_refuses_what_exists(
    target: pathlib.Path, way: str, held: Tree
) -> None:
    target.mkdir()
    fill(target, held)
    with pytest.raises(TargetError) as caught:
        export(target, "new", exclusive=True)
    assert caught.value.errno == errno.EEXIST
    assert str(caught.value) == (
        f"Cannot export to {target}: expected nothing there, received something at {target}. "
        "Export to a path of its own."
    )
    assert tree(target.parent) == prefixed(target, held or {"": ""})


@pytest.mark.parametrize("way", _WAYS[:2])
def test_of_concurrent_exclusive_commits_one_succeeds(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(way, target, monkeypatch.setattr)
    with stage(target) as first, stage(target) as second:
        fill(first.path, artifact("first"))
        fill(second.path, artifact("second"))
        first.commit(exclusive=True)
        with pytest.raises(TargetError) as caught:
            second.commit(exclusive=True)
    assert caught.value.errno == errno.EEXIST
    assert tree(target.parent) == prefixed(target, artifact("first"))


# -- sweep -----------------------------------------------------------------------------------------


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
    fill(target, artifact("old") | _FOREIGN)
    export(target, "new")
    assert tree(target.parent) == prefixed(target, artifact("new") | _FOREIGN)
    fill(target.parent, {".keras_export-1-0a/new/": ""})
    assert sweep(target.parent) == []


# -- remote targets (these load TensorFlow) --------------------------------------------------------


@pytest.fixture
def remote(tmp_path: pathlib.Path) -> Iterator[str]:
    import tensorflow as tf

    folder = f"ram://{tmp_path.name}"
    yield f"{folder}/models/model"
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.rmtree(folder)


def fill_remote(folder: str, files: Tree) -> None:
    import tensorflow as tf

    for name, text in files.items():
        tf.io.gfile.makedirs(f"{folder}/{name}".rpartition("/")[0])
        if not name.endswith("/"):
            with tf.io.gfile.GFile(f"{folder}/{name}", "w") as file:
                file.write(text)


def remote_tree(folder: str) -> Tree:
    import tensorflow as tf

    found = {}
    for path, folders, files in tf.io.gfile.walk(folder):
        below = f"{path}/".removeprefix(f"{folder}/")
        # ram:// takes `assets.extra` for a file `.extra` in `assets`.
        files = [name for name in files if tf.io.gfile.exists(f"{path}/{name}")]
        for name in files:
            with tf.io.gfile.GFile(f"{path}/{name}") as file:
                found[f"{below}{name}"] = file.read()
        if not files and not folders:
            found[below] = ""
    return found


def export_remote(target: str, text: str, *, exclusive: bool = False) -> None:
    with stage(target) as staging:
        fill_remote(staging.path, artifact(text))
        staging.commit(exclusive=exclusive)


def around(remote: str) -> str:
    return remote.rpartition("/models")[0]


def test_a_remote_target_is_written(remote: str) -> None:
    export_remote(f"{remote}/", "new")
    expected = {f"models/model/{name}": text for name, text in artifact("new").items()}
    assert remote_tree(around(remote)) == expected


def test_a_remote_artifact_is_replaced_and_foreign_files_stay(remote: str) -> None:
    stale = dict.fromkeys(("variables/shard-2", "assets.extra/digests.json"), "old")
    fill_remote(remote, artifact("old") | stale | _FOREIGN)
    export_remote(remote, "new")
    assert remote_tree(remote) == artifact("new") | _FOREIGN
    assert sweep(around(remote)) == []


def test_a_remote_folder_without_a_model_keeps_its_files(remote: str) -> None:
    fill_remote(remote, {"variables/notes": "foreign"})
    export_remote(remote, "new")
    assert remote_tree(remote) == artifact("new") | {"variables/notes": "foreign"}


def test_of_a_remote_artifact_the_model_comes_last(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    moved: list[str] = []

    def rename(path: str, new: str, overwrite: bool) -> None:
        moved.append(new)
        real_rename(path, new, overwrite=overwrite)

    real_rename = tf.io.gfile.rename
    monkeypatch.setattr(tf.io.gfile, "rename", rename)
    export_remote(remote, "new")
    assert moved[-1] == f"{remote}/saved_model.pb"
    assert remote_tree(remote) == artifact("new")


def test_a_failed_remote_export_leaves_nothing(remote: str) -> None:
    import tensorflow as tf

    with pytest.raises(KeyError), stage(remote) as staging:
        fill_remote(staging.path, artifact("new"))
        raise KeyError
    assert not tf.io.gfile.exists(around(remote))


def test_an_exclusive_remote_commit_refuses_what_exists(remote: str) -> None:
    fill_remote(remote, artifact("old"))
    with pytest.raises(TargetError, match="expected nothing there") as caught:
        export_remote(remote, "new", exclusive=True)
    assert caught.value.errno == errno.EEXIST
    assert remote_tree(remote) == artifact("old")


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_remote_file_at_the_path_or_above_it_is_refused(remote: str, below: str) -> None:
    fill_remote(around(remote), {"models/model": "a file"})
    with pytest.raises(TargetError) as caught:
        check_target(f"{remote}{below}")
    assert caught.value.errno == errno.ENOTDIR
    assert remote_tree(around(remote)) == {"models/model": "a file"}


def test_an_error_of_the_remote_file_system_is_a_target_error(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    def rename(path: str, new: str, overwrite: bool) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "the bucket is full")

    monkeypatch.setattr(tf.io.gfile, "rename", rename)
    with pytest.raises(TargetError, match=r"received the bucket is full.*Free space") as caught:
        export_remote(remote, "new")
    assert caught.value.errno == errno.ENOSPC
    left = {name for name in remote_tree(around(remote)) if not name.endswith("/")}
    assert left == set()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(TargetError, match="File system scheme 'nowhere'") as caught:
        check_target("nowhere://model")
    assert caught.value.errno == errno.ENOTSUP
