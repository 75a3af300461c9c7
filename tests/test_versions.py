"""Versions are numbered, ranked and retired right, whatever ended the runs before."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from consumers import ConsumerError, assert_same

from keras_export import publishing
from keras_export.callbacks import MissingMetricWarning, SavedModelCheckpoint
from keras_export.errors import ArgumentError
from keras_export.outcomes import FailedExportWarning

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
STATE = ".keras_export.json"
FILES = {"assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables"}


def tiny_model():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y")(x))
    model.compile("sgd", "mse")
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def drive(checkpoint, values, model, metric="val_loss"):
    """Tells a callback of epochs with these values."""
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch, value in enumerate(values):
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_epoch_end(epoch, {} if value is None else {metric: value})
    checkpoint.on_train_end()
    return checkpoint


def names_in(folder):
    return sorted(set(os.listdir(folder)) - {STATE})


def versions(folder, **arguments):
    return SavedModelCheckpoint(folder / "{version}", **arguments)


def state_of(folder, template="{version}"):
    return json.loads((folder / STATE).read_text())["templates"][template]


# --- Retention ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, values, kept",
    [
        ({"keep_last": 2}, [1.0, 2.0, 3.0, 4.0], ["3", "4"]),
        ({"keep_best": 2}, [4.0, 1.0, 3.0, 2.0], ["2", "4"]),
        ({"keep_best": 1, "mode": "max"}, [1.0, 3.0, 2.0], ["2"]),
        ({"keep_last": 1, "keep_best": 1}, [2.0, 1.0, 3.0, 4.0], ["2", "4"]),
        ({"keep_best": 1}, [1.0, 1.0], ["1"]),
        ({"keep_best": 1}, [np.nan, 5.0, np.nan], ["2"]),
        ({"keep_best": 2}, [np.nan, 5.0, np.nan], ["1", "2"]),
        ({"keep_best": 2, "save_best_only": True}, [4.0, 3.0, 5.0, 2.0], ["2", "3"]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, model, arguments, values, kept):
    checkpoint = drive(versions(tmp_path, **arguments), values, model)
    assert names_in(tmp_path) == kept
    for name in kept:
        assert set(os.listdir(tmp_path / name)) == FILES
    reported = [report.version for report in checkpoint.reports]
    assert reported == list(range(1, len(reported) + 1))


def test_what_stays_can_be_loaded(tmp_path, consumers):
    model, outputs = tiny_model(), []
    live = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: outputs.append(model(X).numpy())
    )
    checkpoint = versions(tmp_path, keep_last=2)
    model.fit(X, X[:, :1], epochs=4, verbose=0, callbacks=[live, checkpoint])
    for name, expected in {"3": outputs[2], "4": outputs[3]}.items():
        assert_same(consumers.everywhere(tmp_path / name, x=X), {"y": expected})


def test_a_version_without_the_metric_is_worse_than_all(tmp_path, model):
    with pytest.warns(MissingMetricWarning):
        drive(versions(tmp_path, keep_best=1), [None, 3.0, None], model)
    assert names_in(tmp_path) == ["2"]


def test_only_versions_of_this_template_are_deleted(tmp_path, model):
    for name in ("1", "2", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs").touch()
    drive(SavedModelCheckpoint(tmp_path / "e{epoch}"), [1.0, 1.0], model)
    drive(versions(tmp_path, keep_last=1), [1.0, 1.0, 1.0], model)
    assert names_in(tmp_path) == ["1", "2", "5", "e1", "e2", "notes"]


def test_a_copy_of_a_version_under_another_name_is_never_deleted(tmp_path, model):
    drive(versions(tmp_path), [1.0, 1.0], model)
    shutil.copytree(tmp_path / "1", tmp_path / "7")
    drive(versions(tmp_path, keep_last=1), [1.0], model)
    assert names_in(tmp_path) == ["7", "8"]


def test_versions_of_earlier_runs_are_retired_too(tmp_path, model):
    drive(versions(tmp_path), [3.0, 1.0, 2.0], model)
    drive(versions(tmp_path, keep_best=2), [4.0], model)
    assert names_in(tmp_path) == ["2", "3"]


def test_retention_works_with_any_placeholder_and_removes_empty_folders(tmp_path, model):
    checkpoint = SavedModelCheckpoint(tmp_path / "e{epoch}" / "model", keep_last=1)
    drive(checkpoint, [1.0, 1.0], model)
    assert names_in(tmp_path) == ["e2"]
    drive(checkpoint, [1.0], model)
    assert names_in(tmp_path) == ["e1"]
    assert names_in(tmp_path / "e1") == ["model"]


@pytest.mark.parametrize("name", ["keep_last", "keep_best"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_bad_count_is_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=f"a positive integer, received {name}="):
        SavedModelCheckpoint("{version}", **{name: value})


@pytest.mark.parametrize("name", ["keep_last", "keep_best"])
def test_retention_without_a_placeholder_is_refused(name):
    with pytest.raises(ArgumentError, match=f"a placeholder in filepath, received {name}=2"):
        SavedModelCheckpoint("model", **{name: 2})


def test_a_version_that_is_deleted_vanishes_in_one_step(tmp_path, model):
    done, torn = threading.Event(), []

    def poll():
        while not done.is_set():
            for name in filter(str.isdigit, os.listdir(tmp_path)):
                try:
                    descriptor = os.open(tmp_path / name, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                found = set(os.listdir(descriptor))
                # What is deleted meanwhile no longer stands at its path.
                if os.path.exists(tmp_path / name) and found != FILES:
                    torn.append((name, found))
                os.close(descriptor)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        drive(versions(tmp_path, keep_last=1), [1.0] * 30, model)
    finally:
        done.set()
        reader.join()
    assert torn == []


def poll_while_exporting(folder, exports, model, consumers):
    """Loads each version over and over by the C++ loader, as TensorFlow Serving does."""
    done, broken, loads = threading.Event(), [], []

    def poll():
        while not done.is_set():
            for name in filter(str.isdigit, os.listdir(folder)):
                try:
                    consumers.cpp(folder / name).signature("serve", x=X)
                    loads.append(name)
                except ConsumerError as error:
                    if (folder / name).exists():
                        broken.append((name, str(error)))
            time.sleep(0.001)

    reader = threading.Thread(target=poll)
    reader.start()
    checkpoint = versions(folder, keep_last=3)
    try:
        drive(checkpoint, [1.0] * exports, model)
        # Each of those that stay is loaded once more.
        seen = len(loads)
        while len(loads) < seen + 3 and not broken:
            time.sleep(0.01)
    finally:
        done.set()
        reader.join()
    assert broken == []
    assert len(checkpoint.reports) == exports
    assert len(loads) > 3


def test_a_reader_that_polls_during_a_hundred_exports_never_fails_to_load(
    tmp_path, model, consumers
):
    poll_while_exporting(tmp_path, 100, model, consumers)


def test_a_version_above_the_model_appears_with_the_model_and_goes_with_it(tmp_path, model):
    done, torn = threading.Event(), []

    def poll():
        while not done.is_set():
            for name in filter(str.isdigit, os.listdir(tmp_path)):
                with contextlib.suppress(FileNotFoundError):
                    found = os.listdir(tmp_path / name)
                    if found not in (["model"], []):  # empty: on its way out
                        torn.append((name, found))

    reader = threading.Thread(target=poll)
    reader.start()
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}" / "model", keep_last=2)
    try:
        drive(checkpoint, [1.0] * 20, model)
    finally:
        done.set()
        reader.join()
    assert torn == []
    assert names_in(tmp_path) == ["19", "20"]
    assert set(os.listdir(tmp_path / "20" / "model")) == FILES


def test_a_version_above_the_model_is_staged_in_the_folder_of_the_versions(tmp_path, model):
    with publishing.stage(tmp_path / "7" / "model", above=tmp_path) as staging:
        assert os.listdir(tmp_path) == [Path(staging.path).parts[-2]]
        checkpoint = SavedModelCheckpoint(tmp_path / "{version}" / "model")
        drive(checkpoint, [1.0], model)
        assert [report.version for report in checkpoint.reports] == [1]
        assert os.path.isdir(staging.path)
    assert names_in(tmp_path) == ["1"]


# --- Pointers -------------------------------------------------------------------------------------


def test_pointers_beside_the_folder_lead_to_the_newest_and_the_best(tmp_path, model, consumers):
    folder = tmp_path / "digits"
    seen = []
    checkpoint = versions(
        folder, pointers=True, keep_last=1, keep_best=1,
        on_export=lambda r: seen.append([os.readlink(f"{folder}-{x}") for x in ("latest", "best")]),
    )  # fmt: skip
    drive(checkpoint, [3.0, 1.0, 2.0, np.nan], model)
    assert seen == [
        ["digits/1", "digits/1"], ["digits/2", "digits/2"], ["digits/3", "digits/2"],
        ["digits/4", "digits/2"],
    ]  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["digits", "digits-best", "digits-latest"]
    assert names_in(folder) == ["2", "4"]
    consumers.tf(f"{folder}-best").signature("serve", x=X)


def test_a_pointer_always_leads_somewhere(tmp_path, model):
    folder, done, lost = tmp_path / "models", threading.Event(), []

    def poll():
        while not done.is_set():
            for name in ("latest", "best"):
                link = f"{folder}-{name}"
                # Between the look at the link and that at its end, it may lead elsewhere already.
                if os.path.lexists(link) and not any(os.path.exists(link) for _ in range(20)):
                    lost.append(name)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        drive(versions(folder, pointers=True, keep_last=1), [1.0] * 30, model)
    finally:
        done.set()
        reader.join()
    assert lost == []


def test_only_what_is_a_pointer_is_replaced(tmp_path, model):
    (tmp_path / "models-latest").mkdir()
    (tmp_path / "models-latest" / "theirs").touch()
    checkpoint = versions(tmp_path / "models", pointers=True, on_error="warn")
    with pytest.warns(FailedExportWarning, match="models-latest"):
        drive(checkpoint, [1.0], model)
    assert names_in(tmp_path / "models") == ["1"]
    assert os.listdir(tmp_path / "models-latest") == ["theirs"]


def test_a_file_points_where_there_are_no_symlinks(tmp_path, model, monkeypatch):
    def refused(source, link, *arguments, **options):
        raise PermissionError(1, "no symlinks here")

    monkeypatch.setattr(os, "symlink", refused)
    drive(versions(tmp_path / "models", pointers=True), [2.0, 1.0, 3.0], model)
    assert (tmp_path / "models-latest").read_text() == "models/3"
    assert (tmp_path / "models-best").read_text() == "models/2"


def test_without_a_metric_there_is_no_best(tmp_path, model):
    drive(versions(tmp_path / "models", pointers=True), [None, None], model)
    assert sorted(os.listdir(tmp_path)) == ["models", "models-latest"]


def test_pointers_without_a_placeholder_are_refused():
    with pytest.raises(ArgumentError, match="a placeholder in filepath, received pointers=True"):
        SavedModelCheckpoint("model", pointers=True)


# --- Memory ---------------------------------------------------------------------------------------

_WEIGHTS_BYTES = 4_000_000


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_memory_is_flat(folder, exports):
    x = keras.Input((1000,), name="x")
    model = keras.Model(x, keras.layers.Dense(1000)(x))
    model.compile("sgd", "mse")
    sizes = []
    checkpoint = versions(
        folder, save_freq=1, keep_last=1, on_export=lambda report: sizes.append(resident_bytes())
    )
    model.fit(
        np.ones((exports, 1000)), np.ones((exports, 1000)), batch_size=1, verbose=0,
        callbacks=[checkpoint],
    )  # fmt: skip
    assert len(sizes) == exports
    # The allocator keeps a few sets of weights; a leak would keep one for each export.
    assert max(sizes[-3:]) - max(sizes[2:5]) < 8 * _WEIGHTS_BYTES


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_memory_is_flat_over_a_hundred_exports(tmp_path):
    assert_memory_is_flat(tmp_path, 100)


# --- Restart --------------------------------------------------------------------------------------


def test_a_resumed_run_must_beat_the_best_of_the_run_before(tmp_path, model):
    drive(versions(tmp_path, save_best_only=True), [3.0, 2.0], model)
    resumed = drive(versions(tmp_path, save_best_only=True), [2.5, 1.0], model)
    assert [report.epoch for report in resumed.reports] == [2]
    assert [report.version for report in resumed.reports] == [3]


def test_the_best_value_outlives_its_version(tmp_path, model):
    drive(versions(tmp_path, save_best_only=True), [2.0], model)
    shutil.rmtree(tmp_path / "1")
    resumed = drive(versions(tmp_path, save_best_only=True), [3.0, 1.0], model)
    assert [(report.epoch, report.version) for report in resumed.reports] == [(2, 2)]


@pytest.mark.parametrize("threshold, exported", [(1.0, []), (4.0, [2]), (None, [2])])
def test_the_better_of_threshold_and_stored_value_must_be_beaten(
    tmp_path, model, threshold, exported
):
    drive(versions(tmp_path, save_best_only=True), [2.0], model)
    checkpoint = versions(tmp_path, save_best_only=True, initial_value_threshold=threshold)
    assert [report.epoch for report in drive(checkpoint, [3.0, 1.5], model).reports] == exported


def test_another_metric_has_a_best_value_of_its_own(tmp_path, model):
    drive(versions(tmp_path, save_best_only=True), [2.0], model)
    checkpoint = versions(tmp_path, monitor="val_acc", save_best_only=True)
    assert len(drive(checkpoint, [0.5, 0.7], model, "val_acc").reports) == 2
    again = drive(versions(tmp_path, save_best_only=True), [2.5, 1.5], model)
    assert [report.epoch for report in again.reports] == [2]


def test_a_resumed_run_without_placeholder_replaces_only_by_better(tmp_path, model):
    def run(values):
        checkpoint = SavedModelCheckpoint(tmp_path / "model", save_best_only=True)
        return [report.epoch for report in drive(checkpoint, values, model).reports]

    assert run([2.0]) == [1]
    assert run([3.0, 1.0]) == [2]
    os.remove(tmp_path / STATE)
    assert run([1.5, 0.5]) == [2]
    assert names_in(tmp_path) == ["model"]


def test_a_deleted_version_number_does_not_come_back(tmp_path, model):
    drive(versions(tmp_path, keep_best=1), [1.0, 2.0, 3.0], model)
    assert names_in(tmp_path) == ["1"]
    drive(versions(tmp_path), [1.0], model)
    assert names_in(tmp_path) == ["1", "4"]


DAMAGE = {
    "missing": lambda text: None,
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "cut at its end": lambda text: text[:-3],
    "a list": lambda text: "[]",
    "no templates": lambda text: "{}",
    "binary": lambda text: "\0\udcff" * 100,
    "nested": lambda text: "[" * 100_000,
    "other types": lambda text: (
        '{"templates": {"{version}": {"last": "x", "best": 3, '
        '"versions": [1, {"path": "../x", "number": 1, "epoch": 1}, {"path": 4}]}}}'
    ),
    "huge": lambda text: '{"templates": {"{version}": {"last": 1' + "0" * 40 + "}}}",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_made_again_from_the_versions(tmp_path, model, damage):
    drive(versions(tmp_path, save_best_only=True), [3.0, np.nan, 2.0], model)
    damaged = damage((tmp_path / STATE).read_text())
    os.remove(tmp_path / STATE)
    if damaged is not None:
        (tmp_path / STATE).write_bytes(damaged.encode("utf-8", "surrogateescape"))
    resumed = versions(tmp_path, save_best_only=True, keep_best=1)
    drive(resumed, [2.5, 1.0], model)
    assert [(report.epoch, report.version) for report in resumed.reports] == [(2, 3)]
    assert names_in(tmp_path) == ["3"]
    state = state_of(tmp_path)
    assert state["last"] == 3
    assert state["best"] == {"val_loss": 1.0}
    assert [version["path"] for version in state["versions"]] == ["3"]


def test_a_damaged_state_does_not_bring_a_number_back_that_it_still_tells(tmp_path, model):
    drive(versions(tmp_path, keep_best=1), [1.0, 2.0, 3.0], model)
    text = (tmp_path / STATE).read_text()
    (tmp_path / STATE).write_text(text[: text.index('"last": 3') + len('"last": 3')])
    drive(versions(tmp_path), [1.0], model)
    assert names_in(tmp_path) == ["1", "4"]


def test_a_version_that_the_state_does_not_know_yet_counts(tmp_path, model):
    """A run was killed between its publication and the state."""
    drive(versions(tmp_path, save_best_only=True), [3.0], model)
    before = (tmp_path / STATE).read_text()
    drive(versions(tmp_path, save_best_only=True), [1.0], model)
    (tmp_path / STATE).write_text(before)
    resumed = drive(versions(tmp_path, save_best_only=True, keep_best=1), [2.0, 0.5], model)
    assert [(report.epoch, report.version) for report in resumed.reports] == [(2, 3)]
    assert names_in(tmp_path) == ["3"]


def test_a_version_says_itself_what_it_is_ranked_by(tmp_path, model):
    drive(versions(tmp_path), [np.inf], model)
    record = json.loads((tmp_path / "1" / "assets.extra" / "keras_export.json").read_text())
    assert record == {
        "template": "{version}", "path": "1", "number": 1, "epoch": 1, "batch": None,
        "logs": {"val_loss": "inf"},
    }  # fmt: skip


def test_the_state_is_strict_json(tmp_path, model):
    drive(versions(tmp_path), [np.nan, np.inf], model)

    def refuse(name):
        raise AssertionError(name)

    json.loads((tmp_path / STATE).read_text(), parse_constant=refuse)


# --- Several trainings ----------------------------------------------------------------------------

_TRAINING = """
    import sys, keras, numpy as np, json
    import keras_export as ke
    folder, name, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
    model.compile("sgd", "mse")
    print("ready", flush=True)
    sys.stdin.readline()

    class Told(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            model.set_weights([np.full((3, 1), epoch), np.full(1, int(name))])

        def on_epoch_end(self, epoch, logs=None):
            logs["value"] = 100.0 - epoch
            model.set_weights([np.full((3, 1), epoch), np.full(1, int(name))])

    checkpoint = ke.SavedModelCheckpoint(
        folder + "/{version}", monitor="value", mode="min",
        on_export=lambda r: print(r.version, r.epoch, flush=True), **options
    )
    x = np.ones((4, 3))
    model.fit(x, np.ones(4), epochs=epochs, verbose=0, callbacks=[Told(), checkpoint])
"""


def start_training(folder, name, epochs, **options):
    command = [sys.executable, "-c", textwrap.dedent(_TRAINING), str(folder), str(name)]
    process = subprocess.Popen(
        [*command, str(epochs), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def told(process):
    """Versions that a training announced, with their epochs."""
    text, _ = process.communicate("\n", timeout=300)
    lines = [line.split() for line in text.splitlines() if len(line.split()) == 2]
    return {int(version): int(epoch) for version, epoch in lines}


def weights_in(export_dir, consumers):
    return {
        name: float(np.ravel(value)[0])
        for name, value in consumers.checkpoint(export_dir).values().items()
        if "OBJECT_GRAPH" not in name
    }


def test_two_trainings_interleave_without_loss(tmp_path, consumers):
    first, second = start_training(tmp_path, 1, 6), start_training(tmp_path, 2, 6)
    first.stdin.write("\n")
    first.stdin.flush()
    ours, theirs = told(second), told(first)
    assert sorted([*ours, *theirs]) == list(range(1, 13))
    assert names_in(tmp_path) == sorted(str(n) for n in range(1, 13))
    assert [x["number"] for x in state_of(tmp_path)["versions"]] == list(range(1, 13))
    for name, versions_of in ((2, ours), (1, theirs)):
        for version, epoch in versions_of.items():
            found = weights_in(tmp_path / str(version), consumers)
            assert sorted(found.values()) == sorted([epoch - 1.0, float(name)])
