"""Promises of `remote_staging`; these load TensorFlow."""

from __future__ import annotations

import contextlib
import errno
import pathlib
from collections.abc import Iterator

import pytest
from publications import (
    FOREIGN,
    Tree,
    artifact,
)

from keras_export.errors import TargetError
from keras_export.publishing import stage
from keras_export.sweeping import sweep
from keras_export.targets import check_target


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
    fill_remote(remote, artifact("old") | stale | FOREIGN)
    export_remote(remote, "new")
    assert remote_tree(remote) == artifact("new") | FOREIGN
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
