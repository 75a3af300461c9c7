"""A training tells what it exported: as a table, a plot, and to TensorBoard."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export.callbacks import SavedModelCheckpoint
from keras_export.errors import ArgumentError, ArgumentTypeError
from keras_export.reports import ExportReport
from keras_export.trainings import TrainingReport


@pytest.fixture(scope="module")
def model():
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y")(x))
    model.compile("sgd", "mse")
    return model


def drive(checkpoint, values, model):
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    for epoch, value in enumerate(values):
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_epoch_end(epoch, {"val_loss": value})
    checkpoint.on_train_end()
    return checkpoint


def export_of(version, value, **facts):
    return ExportReport(
        f"/models/{version}", {}, bytes_written=1500, bytes_shared=2_000_000,
        seconds={"trace": 1.0, "write": 0.25, "publish": 0.05}, version=version, epoch=version,
        logs={"val_loss": value}, stall_seconds=0.012, **facts,
    )  # fmt: skip


REPORT = TrainingReport(
    (export_of(1, 0.5), export_of(2, float("nan")), export_of(3, 0.25, batch=7)),
    frozenset({"/models/1", "/models/3"}), "val_loss", "/models/3", skipped=2,
)  # fmt: skip


def test_a_training_is_told_as_a_table():
    assert str(REPORT) == (
        " epoch   version   val_loss   written   shared   seconds   stall   kept\n"
        " ──────────────────────────────────────────────────────────────────────\n"
        "     1         1        0.5    1.5 kB   2.0 MB      1.30   0.012    yes\n"
        "     2         2        nan    1.5 kB   2.0 MB      1.30   0.012\n"
        "   3/7         3       0.25    1.5 kB   2.0 MB      1.30   0.012   best\n"
        "3 exports, 2 skipped, 2 kept, 4.5 kB written; training waited 0.04 s."
    )


def test_a_notebook_gets_the_same_as_html():
    html = REPORT._repr_html_()
    assert html.startswith("<table><tr><th>epoch</th><th>version</th><th>val_loss</th>")
    assert html.count("<tr>") == 4
    assert "<td>best</td>" in html
    evil = TrainingReport((export_of(1, 0.5),), frozenset(), "<b>")
    assert "<th>&lt;b&gt;</th>" in evil._repr_html_()


def test_a_training_is_drawn(tmp_path):
    figure = REPORT.plot()
    metric, seconds, size = figure.axes
    assert metric.get_ylabel() == "val_loss"
    kept, deleted = metric.collections
    assert kept.get_offsets().tolist() == [[1.0, 0.5], [3.0, 0.25]]
    assert len(deleted.get_offsets()) == 1
    heights = [patch.get_height() for patch in seconds.patches]
    assert heights == pytest.approx([0.012] * 3 + [0.3] * 3)
    assert [patch.get_height() for patch in size.patches] == pytest.approx([0.0015] * 3 + [2.0] * 3)
    figure.savefig(tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 10_000


def test_there_is_nothing_to_draw_without_an_export():
    with pytest.raises(ArgumentError, match="Cannot draw a training: expected an export"):
        TrainingReport((), frozenset(), "loss").plot()


def test_the_callback_tells_its_training(tmp_path, model):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", keep_best=2)
    drive(checkpoint, [3.0, 1.0, 2.0, 4.0], model)
    report = checkpoint.report
    assert isinstance(report, ke.TrainingReport)
    assert list(report.exports) == checkpoint.reports
    assert report.kept == {str(tmp_path / "2"), str(tmp_path / "3")}
    assert report.best == str(tmp_path / "2")
    assert [line.split()[-1] for line in str(report).splitlines()[2:6]][1:3] == ["best", "yes"]


def test_the_table_says_of_a_path_that_only_the_last_export_stands(tmp_path, model):
    checkpoint = drive(SavedModelCheckpoint(tmp_path / "model"), [3.0, 1.0], model)
    rows = str(checkpoint.report).splitlines()[2:4]
    assert not rows[0].endswith(("yes", "best"))
    assert rows[1].endswith(("yes", "best"))


def scalars_in(folder):
    found = {}
    for name in os.listdir(folder):
        for event in tf.compat.v1.train.summary_iterator(os.path.join(folder, name)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_tensorboard_gets_the_facts_of_each_export(tmp_path, model):
    writer = tf.summary.create_file_writer(str(tmp_path / "logs"))
    checkpoint = SavedModelCheckpoint(tmp_path / "models" / "{version}", tensorboard=writer)
    drive(checkpoint, [3.0, 1.0], model)
    found = scalars_in(tmp_path / "logs")
    assert found["export/val_loss"] == {1: 3.0, 2: 1.0}
    for name in ("bytes_written", "bytes_shared", "stall_seconds"):
        expected = [getattr(report, name) for report in checkpoint.reports]
        assert list(found[f"export/{name}"].values()) == pytest.approx(expected)
    assert len(found["export/seconds"]) == 2


def test_tensorboard_counts_batches_where_exports_do(tmp_path, model):
    writer = tf.summary.create_file_writer(str(tmp_path / "logs"))
    checkpoint = SavedModelCheckpoint(
        tmp_path / "models" / "{version}", save_freq=2, tensorboard=writer
    )
    x = np.ones((6, 3), "float32")
    model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, callbacks=[checkpoint])
    assert list(scalars_in(tmp_path / "logs")["export/seconds"]) == [2, 4, 6]


def test_what_is_no_writer_is_refused():
    with pytest.raises(ArgumentTypeError, match="create_file_writer, received tensorboard='logs'"):
        SavedModelCheckpoint("model", tensorboard="logs")
