"""Promises of `publishing` and of the steps below it: what a target holds, where, and for whom."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import stat
import threading
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
    tree,
    use,
)

from keras_export import directories, targets
from keras_export.errors import TargetError
from keras_export.publishing import stage

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
    fill(target, artifact("old") | FOREIGN | {"empty/": "", "assets.extra/digests.json": "old"})
    (target / "link").symlink_to("../elsewhere")
    export(target, "new")
    expected = artifact("new") | FOREIGN | {"empty/": "", "link": "-> ../elsewhere"}
    assert tree(target) == expected


def test_a_foreign_file_keeps_its_inode_and_a_foreign_folder_its_mode(
    target: pathlib.Path, way: str
) -> None:
    fill(target, artifact("old") | FOREIGN)
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

    fill(target, artifact("old") | FOREIGN)
    (target / "link").symlink_to("../elsewhere")
    monkeypatch.setattr(os, "link", link)
    export(target, "new")
    assert tree(target) == artifact("new") | FOREIGN | {"link": "-> ../elsewhere"}


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

    renameat2 = directories.renameat2
    monkeypatch.setattr(directories, "renameat2", late)
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

    real_fsync, real_renameat2 = os.fsync, directories.renameat2
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(directories, "renameat2", renameat2)
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
    fill(target, artifact("old") | FOREIGN)
    before = target.stat().st_ino
    with stage(target) as staging:
        assert staging.path.startswith(f"{target}/.keras_export-")
        fill(staging.path, artifact("new"))
        staging.commit()
    assert moved == ["assets", "assets.extra", "fingerprint.pb", "variables", "saved_model.pb"]
    assert target.stat().st_ino == before
    assert tree(target) == artifact("new") | FOREIGN


def test_where_the_parent_is_not_writable_staging_happens_inside(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: str, mode: int = 0o777) -> None:
        if os.path.dirname(path) == str(target.parent):
            raise PermissionError(errno.EACCES, "denied", path)
        real_mkdir(path, mode)

    real_mkdir = os.mkdir
    fill(target, artifact("old") | FOREIGN)
    monkeypatch.setattr(os, "mkdir", mkdir)
    with stage(target) as staging:
        assert staging.path.startswith(f"{target}/.keras_export-")
        fill(staging.path, artifact("new"))
        staging.commit()
    assert tree(target) == artifact("new") | FOREIGN


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY, errno.EPERM])
def test_a_directory_that_turns_out_to_be_immovable_is_filled_from_inside(
    target: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renameat2(path: str, target: str, flags: int) -> None:
        raise OSError(code, os.strerror(code), path)

    immovable = str(target), f"{target}/variables" if code == errno.EXDEV else ""
    monkeypatch.setattr(directories, "renameat2", renameat2)
    monkeypatch.setattr(os, "rename", failing(os.rename, *immovable, code=code))
    fill(target, artifact("old") | FOREIGN)
    before = target.stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | FOREIGN
    assert target.stat().st_ino == before
    assert os.listdir(target.parent) == ["model"]


def test_a_mount_inside_the_target_is_left_alone(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("inside", target / "eval" / "1", monkeypatch.setattr)
    fill(target, artifact("old") | FOREIGN)
    before = (target / "eval" / "1").stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | FOREIGN
    assert (target / "eval" / "1").stat().st_ino == before


def test_a_bind_mount_from_the_same_file_system_is_left_alone(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = target / "eval" / "1"
    monkeypatch.setattr(targets, "_mount_id", lambda path: "2" if path == str(mount) else "1")
    fill(target, artifact("old") | FOREIGN)
    before = mount.stat().st_ino
    export(target, "new")
    assert tree(target) == artifact("new") | FOREIGN
    assert mount.stat().st_ino == before


def test_a_mount_in_the_place_of_the_variables_is_refused(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = target / "variables"
    use("inside", variables, monkeypatch.setattr)
    monkeypatch.setattr(os, "rename", failing(os.rename, str(variables), code=errno.EBUSY))
    fill(target, artifact("old") | FOREIGN)
    with pytest.raises(TargetError) as caught:
        export(target, "new")
    assert caught.value.errno == errno.EBUSY
    assert tree(target.parent) == prefixed(target, artifact("old") | FOREIGN)


def test_the_directory_in_which_the_process_stands_is_not_pulled_away(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(target, artifact("old"))
    monkeypatch.chdir(target)
    export(".", "new")
    assert tree(".") == tree(target) == artifact("new")


# -- staged further above --------------------------------------------------------------------------


def export_below(target: pathlib.Path, text: str, above: pathlib.Path) -> None:
    with stage(target, above=above) as staging:
        assert os.path.dirname(os.path.dirname(staging.path)) == str(above)
        fill(staging.path, artifact(text))
        staging.commit()


def test_folders_that_are_missing_appear_with_the_target_in_one_step(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def look(path: str, new: str, flags: int) -> None:
        seen.append(sorted(tree(target)))
        real(path, new, flags)
        seen.append(sorted(tree(target)))

    real = directories.renameat2
    monkeypatch.setattr(directories, "renameat2", look)
    export_below(target / "1" / "model", "new", target.parent)
    whole = sorted(f"1/model/{name}" for name in artifact("new"))
    assert seen == [[], whole]
    assert os.listdir(target.parent) == ["model"]


def test_folders_that_appear_meanwhile_are_used(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def appear(*arguments: Any) -> Any:
        fill(target, {"1/theirs": "foreign"})
        return real(*arguments)

    real = directories.rename_new
    monkeypatch.setattr(directories, "rename_new", appear)
    export_below(target / "1" / "model", "new", target)
    expected = {f"1/model/{name}": text for name, text in artifact("new").items()}
    assert tree(target) == {"1/theirs": "foreign"} | expected


@pytest.mark.parametrize("way", WAYS[:2])
def test_what_is_there_already_is_replaced_from_above(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(way, target, monkeypatch.setattr)
    fill(target / "1" / "100%", artifact("old") | FOREIGN)
    export_below(target / "1" / "100%", "new", target)
    assert tree(target / "1" / "100%") == artifact("new") | FOREIGN
    assert os.listdir(target) == ["1"]


def test_where_a_rename_is_impossible_staging_stays_beside_the_target(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "can_rename", lambda above, path: False)
    with stage(target / "1" / "model", above=target) as staging:
        assert os.path.dirname(os.path.dirname(staging.path)) == str(target / "1")
        fill(staging.path, artifact("new"))
        staging.commit()
    assert tree(target / "1" / "model") == artifact("new")


def test_a_folder_that_is_not_above_the_target_is_not_used(target: pathlib.Path) -> None:
    elsewhere = target.parent.parent / "elsewhere"
    with stage(target, above=elsewhere) as staging:
        assert staging.path.startswith(f"{target.parent}/.keras_export-")
    assert not elsewhere.exists()


# -- others at the same path -----------------------------------------------------------------------


def test_of_concurrent_exports_all_complete_and_one_remains(target: pathlib.Path, way: str) -> None:
    errors: list[BaseException] = []

    def run(text: str) -> None:
        try:
            for _ in range(8):
                export(target, text)
        except BaseException as error:
            errors.append(error)

    fill(target, artifact("old") | FOREIGN)
    threads = [threading.Thread(target=run, args=(text,)) for text in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [str(error) for error in errors]
    assert tree(target.parent) in [prefixed(target, artifact(t) | FOREIGN) for t in "abc"]


def test_a_target_that_appears_during_the_export_is_replaced(target: pathlib.Path) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact("new"))
        fill(target, artifact("theirs") | FOREIGN)
        staging.commit()
    assert tree(target.parent) == prefixed(target, artifact("new") | FOREIGN)


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_target_that_vanishes_just_before_the_rename_is_created(
    target: pathlib.Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry(*args: Any) -> None:
        real_carry(*args)
        shutil.rmtree(target, ignore_errors=True)

    use(way, target, monkeypatch.setattr)
    real_carry = directories.carry
    monkeypatch.setattr(directories, "carry", carry)
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


@pytest.mark.parametrize("way", WAYS[:2])
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
