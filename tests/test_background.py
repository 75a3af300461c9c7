"""Exports are written beside training, whole, bounded, and with no error lost."""

import gc
import subprocess
import sys
import textwrap
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_same
from tensorflow.core.protobuf import trackable_object_graph_pb2

from keras_export import exporter
from keras_export.background import Worker
from keras_export.callbacks import SavedModelCheckpoint
from keras_export.errors import ArgumentError, CheckpointError, TargetError
from keras_export.outcomes import FailedExportWarning

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
PATIENCE = 120.0  # seconds until a test fails that would wait forever


def tiny_model():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y")(x))
    model.compile("sgd", "mse")
    return model


def fit(model, *given, epochs=3):
    model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=list(given))


def at_epoch(epoch, action):
    """A callback that acts at the beginning of an epoch, counted from 1."""
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda index, logs: action() if index + 1 == epoch else None
    )


class Gate:
    """Holds every write back until it is opened, and counts those that came to it."""

    def __init__(self, monkeypatch):
        self.opened, self.arrived = threading.Event(), []
        write = exporter.Snapshot.write

        def held(snapshot, export_dir, **options):
            self.arrived.append(threading.current_thread())
            assert self.opened.wait(PATIENCE)
            return write(snapshot, export_dir, **options)

        monkeypatch.setattr(exporter.Snapshot, "write", held)

    def open(self):
        self.opened.set()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


class Live(keras.callbacks.Callback):
    """Outputs of the live model at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def on_epoch_end(self, epoch, logs=None):
        self.outputs.append(self.model(X, training=False).numpy())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".keras_export.json")


def served(path, consumers):
    return consumers.tf(path).signature("serve", x=X)


# --- Training goes on -----------------------------------------------------------------------------


def test_training_goes_on_while_an_export_is_written(tmp_path, gate):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(tiny_model(), at_epoch(2, gate.open), checkpoint, epochs=2)
    assert [report.version for report in checkpoint.reports] == [1, 2]


def test_versions_written_after_training_have_the_weights_of_their_moments(
    tmp_path, gate, consumers
):
    live, checkpoint = Live(), SavedModelCheckpoint(tmp_path / "{version}", max_pending=4)
    fit(tiny_model(), live, checkpoint, at_epoch(4, gate.open), epochs=4)
    for version, outputs in enumerate(live.outputs, 1):
        assert_same(served(tmp_path / str(version), consumers), {"y": outputs})
    assert not np.allclose(live.outputs[0], live.outputs[3])


def test_one_thread_writes_in_the_order_of_training_and_not_the_one_that_trains(tmp_path):
    seen = []
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", save_freq=1, max_pending=3,
        on_export=lambda report: seen.append((report.version, threading.current_thread())),
    )  # fmt: skip
    fit(tiny_model(), checkpoint)
    assert [version for version, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert threading.main_thread() not in {thread for _, thread in seen}


def test_without_background_the_thread_that_trains_writes(tmp_path):
    seen = []
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", background=False,
        on_export=lambda report: seen.append(threading.current_thread()),
    )  # fmt: skip
    fit(tiny_model(), checkpoint, epochs=2)
    assert seen == [threading.main_thread()] * 2
    for report in checkpoint.reports:
        assert report.stall_seconds >= report.seconds["write"] + report.seconds["publish"]


def test_all_is_complete_when_fit_returns(tmp_path):
    announced = []
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", max_pending=5, on_export=announced.append
    )
    fit(tiny_model(), checkpoint, epochs=5)
    assert [report.version for report in announced] == [1, 2, 3, 4, 5]
    assert names_in(tmp_path) == ["1", "2", "3", "4", "5"]
    assert "keras_export" not in {thread.name for thread in threading.enumerate()}


def test_keras_need_not_wait_for_the_events_of_batches(tmp_path):
    assert SavedModelCheckpoint(tmp_path / "model").async_safe
    assert not SavedModelCheckpoint(tmp_path / "model", save_freq=5).async_safe


# --- Never more than agreed -----------------------------------------------------------------------


def test_training_waits_while_as_many_exports_are_pending_as_agreed(tmp_path, gate, monkeypatch):
    pending, most = [], []
    take = exporter.Exporter.snapshot

    def counted(self):
        most.append(sum(1 for _ in pending))
        pending.append(1)
        return take(self)

    monkeypatch.setattr(exporter.Exporter, "snapshot", counted)
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", max_pending=2, on_export=lambda report: pending.pop()
    )
    fit(tiny_model(), at_epoch(3, gate.open), checkpoint, epochs=6)
    assert len(checkpoint.reports) == 6
    assert max(most) == 1  # besides the one that is taken


def test_a_busy_writer_is_skipped_and_counted_if_so_agreed(tmp_path, gate):
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}", when_busy="skip")
    fit(tiny_model(), checkpoint, at_epoch(4, gate.open), epochs=4)
    epochs = [report.epoch for report in checkpoint.reports]
    assert epochs[0] == 1
    assert not {2, 3} & set(epochs)
    assert checkpoint.skipped == 4 - len(epochs)


def test_what_was_skipped_does_not_raise_the_bar(tmp_path, gate):
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}", save_best_only=True, when_busy="skip")
    checkpoint.set_model(tiny_model())
    for epoch, value in enumerate([3.0, 2.0]):
        checkpoint.on_epoch_end(epoch, {"val_loss": value})
    gate.open()
    checkpoint.on_train_end()
    assert checkpoint.best == 3.0
    checkpoint.on_epoch_end(2, {"val_loss": 2.5})
    checkpoint.on_train_end()
    assert [report.epoch for report in checkpoint.reports] == [1, 3]


def test_what_is_still_being_written_must_be_beaten(tmp_path, gate):
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}", save_best_only=True, max_pending=3)
    checkpoint.set_model(tiny_model())
    for epoch, value in enumerate([3.0, 2.0, 2.5]):
        checkpoint.on_epoch_end(epoch, {"val_loss": value})
    gate.open()
    checkpoint.on_train_end()
    assert [report.epoch for report in checkpoint.reports] == [1, 2]
    assert checkpoint.best == 2.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_pending": 0}, "a positive integer, received max_pending=0"),
        ({"max_pending": 1.5}, "a positive integer, received max_pending=1.5"),
        ({"when_busy": "drop"}, "when_busy='wait' or 'skip', received when_busy='drop'"),
        ({"on_error": "ignore"}, "on_error='raise' or 'warn', received on_error='ignore'"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ArgumentError, match=f"^Cannot set up SavedModelCheckpoint: .*{message}"):
        SavedModelCheckpoint("model", **arguments)


# --- Errors ---------------------------------------------------------------------------------------


def wait_for_writer():
    for thread in threading.enumerate():
        if thread.name == "keras_export":
            thread.join(PATIENCE)


def test_an_error_in_the_background_is_raised_at_the_next_event(tmp_path, consumers):
    (tmp_path / "2").write_text("in the way")
    started = []
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}")
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: started.append(epoch))
    waiting = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: wait_for_writer())
    with pytest.raises(TargetError, match=f"Cannot export to {tmp_path / '2'}: .*a file"):
        fit(tiny_model(), checkpoint, waiting, count, epochs=5)
    assert len(started) == 2
    assert names_in(tmp_path) == ["1", "2"]
    served(tmp_path / "1", consumers)


def test_an_error_of_the_last_export_is_raised_when_training_ends(tmp_path):
    (tmp_path / "3").write_text("in the way")
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}")
    with pytest.raises(TargetError, match=str(tmp_path / "3")):
        fit(tiny_model(), checkpoint, epochs=3)
    assert [report.epoch for report in checkpoint.reports] == [1, 2]


def test_an_unforeseen_error_names_the_path_and_keeps_its_cause_through_fit(tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(exporter.Snapshot, "write", broken)
    with pytest.raises(CheckpointError) as raised:
        fit(tiny_model(), SavedModelCheckpoint(tmp_path / "{version}"), epochs=1)
    assert str(raised.value) == (
        f"Cannot export to {tmp_path / '1'}: expected no error on the way, received "
        "ZeroDivisionError: oh."
    )
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_failed_export_lets_the_next_be_better_than_those_before_it(tmp_path):
    (tmp_path / "2").write_text("in the way")
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}", save_best_only=True, on_error="warn")
    checkpoint.set_model(tiny_model())
    for epoch, value in enumerate([3.0, 1.0]):
        checkpoint.on_epoch_end(epoch, {"val_loss": value})
    with pytest.warns(FailedExportWarning):
        checkpoint.on_train_end()
    checkpoint.on_epoch_end(2, {"val_loss": 2.0})
    checkpoint.on_train_end()
    assert [report.epoch for report in checkpoint.reports] == [1, 3]


def test_training_goes_on_with_one_warning_for_errors_that_are_alike(tmp_path, consumers):
    for name in ("2", "3"):
        (tmp_path / name).write_text("in the way")
    live, checkpoint = Live(), SavedModelCheckpoint(tmp_path / "{epoch}", on_error="warn")
    with pytest.warns() as warned:
        fit(tiny_model(), live, checkpoint, epochs=4)
    (warning,) = warned
    assert issubclass(warning.category, FailedExportWarning)
    assert str(warning.message).startswith(f"Training goes on. Cannot export to {tmp_path / '2'}: ")
    assert [report.epoch for report in checkpoint.reports] == [1, 4]
    assert_same(served(tmp_path / "4", consumers), {"y": live.outputs[3]})


def test_an_error_that_comes_back_is_warned_of_again(tmp_path):
    for name in ("1", "3"):
        (tmp_path / name).write_text("in the way")
    with pytest.warns(FailedExportWarning) as warned:
        fit(tiny_model(), SavedModelCheckpoint(tmp_path / "{epoch}", on_error="warn"), epochs=4)
    assert [str(tmp_path / name) in str(w.message) for name, w in zip("13", warned, strict=True)]


def test_a_model_that_cannot_be_exported_is_warned_of_if_so_agreed(tmp_path):
    model = tiny_model()
    model.signatures = "taken"
    with pytest.warns(FailedExportWarning, match="signatures"):
        fit(model, SavedModelCheckpoint(tmp_path / "{version}", on_error="warn"))
    assert list(tmp_path.iterdir()) == []


def test_a_bad_target_is_warned_of_at_the_start_if_so_agreed(tmp_path):
    (tmp_path / "models").write_text("in the way")
    checkpoint = SavedModelCheckpoint(tmp_path / "models" / "{version}", on_error="warn")
    with pytest.warns(FailedExportWarning, match="a file at"):
        fit(tiny_model(), checkpoint)
    assert checkpoint.reports == []


def test_an_error_that_nobody_waited_for_becomes_a_warning(tmp_path):
    (tmp_path / "1").write_text("in the way")
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}")
    checkpoint.set_model(tiny_model())
    checkpoint.on_epoch_end(0, {})
    wait_for_writer()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del checkpoint
        gc.collect()
    ours = [str(w.message) for w in warned if w.category is FailedExportWarning]
    assert len([message for message in ours if str(tmp_path / "1") in message]) == 1


_DYING = """
    import sys, keras, numpy as np
    import keras_export as ke

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("stopped by hand")

    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoint = ke.SavedModelCheckpoint(sys.argv[1] + "/{epoch}")
    model.fit(np.ones((4, 3)), np.ones(4), epochs=2, verbose=0, callbacks=[checkpoint, Stop()])
"""


def died(folder):
    """What a program wrote to stderr that ended in the middle of `fit`."""
    command = [sys.executable, "-c", textwrap.dedent(_DYING), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "stopped by hand" in done.stderr
    return done.stderr


def test_pending_exports_are_finished_when_the_program_ends_early(tmp_path, consumers):
    died(tmp_path)
    assert names_in(tmp_path) == ["1"]
    served(tmp_path / "1", consumers)


def test_an_error_at_the_end_of_the_program_is_told(tmp_path):
    (tmp_path / "1").write_text("in the way")
    assert f"FailedExportWarning: Nobody waited for this export. Cannot export to {tmp_path}" in (
        died(tmp_path)
    )


# --- The snapshot is never torn -------------------------------------------------------------------


class Recorded(keras.callbacks.Callback):
    """Copies of all weights and states, by their paths, at the end of each batch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        held = [*self.model.weights, *self.model.non_trainable_variables]
        self.values.append({v.path: np.array(v.numpy(), copy=True) for v in held})


def stored(export_dir):
    """The values in an artifact by the names of their variables."""
    reader = tf.train.load_checkpoint(f"{export_dir}/variables/variables")
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    attributes = [attribute for node in graph.nodes for attribute in node.attributes]
    return {x.full_name.partition(":")[0]: reader.get_tensor(x.checkpoint_key) for x in attributes}


def model_with_all_kinds_of_updates(optimizer, jit_compile):
    """Dense, gathered and scattered weights, moving statistics, and counters."""
    words = keras.Input((4,), dtype="int32", name="words")
    h = keras.layers.Embedding(50, 8)(words)
    h = keras.layers.GlobalAveragePooling1D()(h)
    h = keras.layers.BatchNormalization()(keras.layers.Dense(16)(h))
    model = keras.Model(words, keras.layers.Dense(1)(keras.layers.Dropout(0.2)(h)))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def assert_no_snapshot_is_torn(folder, optimizer, jit_compile, epochs, gate, **pending):
    recorded = Recorded()
    model = model_with_all_kinds_of_updates(optimizer, jit_compile)
    checkpoint = SavedModelCheckpoint(folder / "{version}", save_freq=1, **pending)
    words = np.random.default_rng(1).integers(0, 50, (24, 4))
    model.fit(
        words, np.ones(24), batch_size=8, epochs=epochs, verbose=0,
        callbacks=[recorded, checkpoint, at_epoch(epochs, gate.open)],
    )  # fmt: skip
    assert len(checkpoint.reports) == 3 * epochs
    for report, live in zip(checkpoint.reports, recorded.values, strict=True):
        assert_same(stored(report.export_dir), live, rtol=0.0, atol=0.0)
    first, second = recorded.values[:2]
    assert all(np.any(first[path] != second[path]) for path in first)


OPTIMIZERS = {
    "sgd": lambda ema: keras.optimizers.SGD(0.05, use_ema=ema),
    "momentum": lambda ema: keras.optimizers.SGD(0.05, momentum=0.9, use_ema=ema),
    "adam": lambda ema: keras.optimizers.Adam(0.05, use_ema=ema, ema_overwrite_frequency=2),
    "rmsprop": lambda ema: keras.optimizers.RMSprop(0.05, use_ema=ema),
    "lion": lambda ema: keras.optimizers.Lion(0.05, use_ema=ema),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name, ema", [("sgd", False), ("adam", True)])
def test_a_version_holds_the_weights_of_its_moment_bit_for_bit(
    tmp_path, gate, name, ema, jit_compile
):
    optimizer = OPTIMIZERS[name](ema)
    assert_no_snapshot_is_torn(tmp_path, optimizer, jit_compile, 2, gate, max_pending=6)


@pytest.mark.soak
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_version_of_a_long_training_is_torn(tmp_path, gate, name, ema, jit_compile):
    optimizer = OPTIMIZERS[name](ema)
    assert_no_snapshot_is_torn(tmp_path, optimizer, jit_compile, 20, gate, max_pending=60)


# --- The worker -----------------------------------------------------------------------------------


def test_a_worker_has_no_thread_without_a_task():
    worker, done = Worker(2), []
    assert not worker.is_busy
    for number in range(5):
        worker.wait_for_place()
        worker.submit(lambda number=number: done.append(number))
    worker.wait()
    wait_for_writer()
    assert done == [0, 1, 2, 3, 4]
    assert "keras_export" not in {thread.name for thread in threading.enumerate()}
