"""Whatever ends a training or keeps it from writing, what was published is whole and counts."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from consumers import assert_same
from training_process import Trainings, train

from keras_export import atomic, held_values, publishing
from keras_export.callbacks import SavedModelCheckpoint
from keras_export.errors import TargetError
from keras_export.outcomes import FailedExportWarning

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
PATIENCE = 60  # seconds until a training has published
STATE = ".keras_export.json"


def versions_in(folder):
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def is_stray(name):
    return not name.isdigit() and name != STATE


@pytest.fixture(scope="module")
def trainings():
    with Trainings() as trainings:
        yield trainings


# --- Killed ---------------------------------------------------------------------------------------


def record_of(version):
    return json.loads((version / "assets.extra" / "keras_export.json").read_text())


def assert_all_is_whole(folder, consumers, loader):
    """Each version loads, is what it says, and none was published after a better one."""
    numbers, values = versions_in(folder), []
    for number in numbers:
        record = record_of(folder / str(number))
        value = record["logs"]["value"]
        assert record["number"] == number
        found = getattr(consumers, loader)(folder / str(number)).signature("serve", x=X[:1, :2])
        expected = X[:1, :2] @ np.full((2, 1), value) + value
        np.testing.assert_allclose(found["y"], expected, rtol=1e-4)
        values.append(value)
    assert values == sorted(set(values), reverse=True)


def told_of(folder):
    """The announced versions; a kill may cut the last line."""
    path = Path(f"{folder}.told")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [int(line.split()[0]) for line in lines]


def kill_and_resume(trainings, folder, kills, consumers, **options):
    """Kills trainings one after the other at random moments; each goes on where the last ended."""
    moments = random.Random(kills)
    options = {"save_best_only": True, "keep_last": 3, "keep_best": 1, **options}
    folder.mkdir()
    for seed in range(kills):
        child = trainings.start(folder, seed=seed, epochs=500, **options)
        before = len(told_of(folder))
        deadline = time.monotonic() + PATIENCE
        while len(told_of(folder)) == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.2)
        os.kill(child, signal.SIGKILL)
        assert trainings.wait() == -signal.SIGKILL, Path(f"{folder}.error").read_text()
        assert_all_is_whole(folder, consumers, "cpp" if seed % 2 else "tf")
    train(str(folder), seed=kills, epochs=3, **options)
    assert_all_is_whole(folder, consumers, "tf")
    assert not list(filter(is_stray, os.listdir(folder)))
    told = told_of(folder)
    assert told == sorted(set(told))
    # One may have been killed after it published and before it told.
    kept = versions_in(folder)
    assert len(kept) == 3
    assert kept[-1] == told[-1]
    assert {version for version in told if version >= kept[0]} <= set(kept)


def test_what_a_killed_training_published_is_whole_and_the_next_goes_on(
    tmp_path, trainings, consumers
):
    kill_and_resume(trainings, tmp_path / "models", 20, consumers)


@pytest.mark.soak
@pytest.mark.parametrize("background", [True, False])
def test_a_hundred_kills_leave_whole_versions(tmp_path, trainings, consumers, background):
    kill_and_resume(trainings, tmp_path / "models", 100, consumers, background=background)


def die_at_each(trainings, folder, numbers, consumers):
    """Kills a training before each of these calls; the next must clean up and go on."""
    options = {"keep_best": 1, "save_best_only": True}
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.told").unlink(missing_ok=True)
        folder.mkdir()
        trainings.start(folder, epochs=4, kill_at=number, **options)
        status = trainings.wait()
        if status == 0:
            return number
        assert status == -signal.SIGKILL, Path(f"{folder}.error").read_text()
        assert_all_is_whole(folder, consumers, "tf")
        before = max([*told_of(folder), *versions_in(folder)], default=0)
        train(str(folder), epochs=1, seed=1, **options)
        assert not list(filter(is_stray, os.listdir(folder)))
        assert_all_is_whole(folder, consumers, "tf")
        assert versions_in(folder) == [before + 1]
    return None


def test_a_kill_before_any_change_of_files_loses_nothing(tmp_path, trainings, consumers):
    assert die_at_each(trainings, tmp_path / "models", (7, 21, 38), consumers) is None


@pytest.mark.soak
def test_a_kill_before_each_change_of_files_loses_nothing(tmp_path, trainings, consumers):
    last = die_at_each(trainings, tmp_path / "models", range(1, 1000), consumers)
    assert last is not None and last > 60


# All that change what is on the disk, on any processor.
_SYSTEM_CALLS = (
    *("write", "pwrite64", "fsync", "link", "linkat", "mkdir", "mkdirat", "rename", "renameat"),
    *("renameat2", "unlink", "unlinkat", "rmdir"),
)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the kills")
@pytest.mark.parametrize("call", _SYSTEM_CALLS)
def test_a_kill_at_each_system_call_loses_nothing(tmp_path, trainings, consumers, call):
    folder = tmp_path / "models"
    # In the background, strace would count the calls of each thread by themselves.
    options = {"save_best_only": True, "keep_best": 1, "background": False}
    for number in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        for ending in ("told", "traced"):
            Path(f"{folder}.{ending}").unlink(missing_ok=True)
        folder.mkdir()
        child = trainings.start(folder, epochs=3, traced=True, **options)
        inject = f"inject=?{call}:signal=KILL:when={number}"
        strace = ["strace", "-f", "-o", "/dev/null", "-e", inject, "-p", str(child)]
        tracer = subprocess.Popen(
            [*strace, "-e", f"trace=?{call}"], stderr=subprocess.PIPE, text=True
        )
        assert "attached" in tracer.stderr.readline()  # else the first calls would not count
        Path(f"{folder}.traced").touch()
        status = trainings.wait()
        tracer.communicate()
        assert tracer.returncode == 0
        if status == 0:
            break
        assert status == -signal.SIGKILL, Path(f"{folder}.error").read_text()
        assert_all_is_whole(folder, consumers, "cpp" if number % 2 else "tf")
        before = max([*told_of(folder), *versions_in(folder)], default=0)
        train(str(folder), epochs=1, seed=1, **options)
        assert not list(filter(is_stray, os.listdir(folder)))
        assert_all_is_whole(folder, consumers, "tf")
        assert versions_in(folder) == [before + 1]
    print(f"{call}: {number - 1} kills")
    assert status == 0


def test_the_staging_directory_of_a_live_training_is_not_swept(tmp_path):
    with publishing.stage(tmp_path / "7") as staging:
        checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
        checkpoint.set_model(large_model())
        checkpoint.on_train_begin()
        checkpoint.on_train_end()
        assert os.path.isdir(staging.path)


# --- Not to be written ----------------------------------------------------------------------------


def large_model():
    """Its variables take 1.2 MB."""
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(100_000, name="wide", trainable=False)(x)
    model = keras.Model(x, keras.layers.Dense(1, name="y", trainable=False)(h))
    model.compile("sgd", "mse")
    return model


@pytest.fixture(scope="module")
def model():
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(50_000, name="wide")(x)
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile("sgd", "mse")
    return model


class LimitedFiles:
    """Files may not be larger than some bytes, as on a disk with no more place."""

    def start(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, self._before[1]))

    def end(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class ReadOnly:
    """Nothing can be made in a folder."""

    def __init__(self, monkeypatch, folder):
        self._patch, self._folder = monkeypatch, str(folder)

    def start(self):
        mkdir = os.mkdir

        def refused(path, *mode):
            if str(path).startswith(self._folder):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return mkdir(path, *mode)

        self._patch.setattr(os, "mkdir", refused)

    def end(self):
        self._patch.undo()


class Vanishing:
    """The folder is removed while a bundle is about to be written there."""

    def __init__(self, monkeypatch, folder):
        self._patch, self._folder = monkeypatch, str(folder)

    def start(self):
        write = held_values.write_bundle

        def removed(prefix, *arguments):
            shutil.rmtree(os.path.dirname(os.path.dirname(prefix)))
            return write(prefix, *arguments)

        self._patch.setattr(held_values, "write_bundle", removed)

    def end(self):
        self._patch.undo()


@pytest.fixture(params=["full disk", "read-only", "removed staging"])
def trouble(request, monkeypatch, tmp_path):
    kinds = {
        "full disk": LimitedFiles,
        "read-only": lambda: ReadOnly(monkeypatch, tmp_path),
        "removed staging": lambda: Vanishing(monkeypatch, tmp_path),
    }
    return kinds[request.param]()


def drive(checkpoint, model, trouble, epochs=5):
    """Epochs of which the second and the third can't be written."""
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch in range(epochs):
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        checkpoint._worker.wait()
        if epoch == 0:
            trouble.start()
        if epoch == 2:
            trouble.end()
    checkpoint.on_train_end()


def test_training_goes_on_with_one_warning_while_nothing_can_be_written(
    tmp_path, model, trouble, consumers
):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", on_error="warn")
    with pytest.warns() as warned:
        drive(checkpoint, model, trouble)
    (warning,) = warned
    assert warning.category is FailedExportWarning
    assert f"Cannot export to {tmp_path / '2'}: expected to write there" in str(warning.message)
    assert [report.epoch for report in checkpoint.reports] == [1, 4, 5]
    assert not list(filter(is_stray, os.listdir(tmp_path)))
    for number in versions_in(tmp_path):
        assert_same(consumers.tf(tmp_path / str(number)).signature("serve", x=X), {"y": model(X)})


def test_training_ends_with_one_error_when_nothing_can_be_written(
    tmp_path, model, trouble, consumers
):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    try:
        with pytest.raises(TargetError, match=f"Cannot export to {tmp_path / '2'}: ") as raised:
            drive(checkpoint, model, trouble)
    finally:
        trouble.end()
    assert raised.value.errno
    assert sorted(os.listdir(tmp_path)) == [STATE, "1"]
    assert_same(consumers.tf(tmp_path / "1").signature("serve", x=X), {"y": model(X)})


def test_a_directory_that_is_removed_during_training_is_made_again(tmp_path, model, consumers):
    folder = tmp_path / "models"
    checkpoint = SavedModelCheckpoint(folder / "{version}", keep_last=2)
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch in range(4):
        checkpoint.on_epoch_end(epoch, {})
        checkpoint._worker.wait()
        if epoch == 1:
            shutil.rmtree(folder)
    checkpoint.on_train_end()
    assert versions_in(folder) == [3, 4]
    consumers.tf(folder / "4").signature("serve", x=X)


def test_a_state_that_cannot_be_written_is_told_and_the_version_stays(tmp_path, model, monkeypatch):
    def refused(path, content):
        raise TargetError(errno.ENOSPC, f"Cannot export to {path}: no place.")

    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", on_error="warn", keep_last=1)
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    monkeypatch.setattr(atomic, "replace_file", refused)
    for epoch in range(2):
        checkpoint.on_epoch_end(epoch, {})
    with pytest.warns(FailedExportWarning, match="no place"):
        checkpoint.on_train_end()
    assert [report.version for report in checkpoint.reports] == [1, 2]
    assert versions_in(tmp_path) == [1, 2]
    monkeypatch.undo()
    checkpoint.on_train_begin()
    checkpoint.on_epoch_end(0, {})
    checkpoint.on_train_end()
    assert versions_in(tmp_path) == [3]
