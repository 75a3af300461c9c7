"""`SavedModelCheckpoint` exports what ModelCheckpoint would save, whole, and at its moment."""

import inspect
import os
import pathlib
import re
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_same

import keras_export as ke
from keras_export import templates
from keras_export.callbacks import MissingMetricWarning, SavedModelCheckpoint
from keras_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    ExportError,
    TargetError,
)

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
FILES = {"saved_model.pb", "fingerprint.pb", "variables/variables.index"}


keras_saves_as_it_does = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


def tiny_model(**compiled):
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y")(x))
    model.compile("sgd", "mse", **compiled)
    return model


def model_that_trains_otherwise():
    """Dropout and batch statistics: its outputs in training are others."""
    x = keras.Input((3,), name="x")
    h = keras.layers.BatchNormalization()(keras.layers.Dense(4)(x))
    y = keras.layers.Dense(1, name="y")(keras.layers.Dropout(0.5)(h))
    model = keras.Model(x, y)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


@keras.saving.register_keras_serializable("test_callbacks")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.dense(x) + (100.0 if training else 0.0)


@keras.saving.register_keras_serializable("test_callbacks")
class OfTwoArguments(keras.Model):
    """Only its own training step knows how it is called."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x, count):
        return self.dense(x) * tf.cast(count, "float32")

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, tf.ones_like(x[:, :1], "int32")) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"loss": loss}


class Outputs(keras.callbacks.Callback):
    """What the live model gave at the end of each epoch, or of each batch."""

    def __init__(self):
        super().__init__()
        self.by_epoch, self.by_batch = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.by_epoch.append(self.model(X, training=False).numpy())

    def on_train_batch_end(self, batch, logs=None):
        self.by_batch.append(self.model(X, training=False).numpy())


def fit(model, *given, epochs=2, batch_size=4, verbose=0, **arguments):
    return model.fit(
        X, Y, batch_size=batch_size, epochs=epochs, verbose=verbose, callbacks=list(given),
        **arguments,
    )  # fmt: skip


def drive(checkpoint, logs_of_epochs, model=None):
    """Tells a callback of epochs with these logs."""
    checkpoint.set_model(model or tiny_model())
    checkpoint.on_train_begin()
    for epoch, logs in enumerate(logs_of_epochs):
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_epoch_end(epoch, logs)
    checkpoint.on_train_end()
    return [report.epoch for report in checkpoint.reports]


def drive_batches(checkpoint, epochs, steps=None):
    """Tells a callback of the last batch of each execution, epoch by epoch."""
    checkpoint.set_model(tiny_model())
    checkpoint.set_params({"steps": steps})
    checkpoint.on_train_begin()
    for epoch, batches in enumerate(epochs):
        checkpoint.on_epoch_begin(epoch)
        for batch in batches:
            checkpoint.on_train_batch_end(batch, {"loss": 1.0})
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
    checkpoint.on_train_end()
    return [(report.epoch, report.batch) for report in checkpoint.reports]


def best_only(folder, monitor="val_loss", **arguments):
    return SavedModelCheckpoint(
        folder / "{epoch}", monitor=monitor, save_best_only=True, **arguments
    )


def names_in(folder):
    """What stands in a folder beside the state of the callback."""
    return sorted(set(os.listdir(folder)) - {".keras_export.json"})


# --- What is exported, and when -------------------------------------------------------------------


def test_each_epoch_becomes_a_version_with_the_weights_of_its_end(tmp_path, consumers):
    outputs, checkpoint = Outputs(), SavedModelCheckpoint(tmp_path / "models" / "{version}")
    fit(model_that_trains_otherwise(), outputs, checkpoint, epochs=4)
    assert names_in(tmp_path / "models") == ["1", "2", "3", "4"]
    for version, live in enumerate(outputs.by_epoch, 1):
        found = consumers.everywhere(tmp_path / "models" / str(version), x=X)
        assert_same(found, {"y": live})
    assert not np.allclose(outputs.by_epoch[0], outputs.by_epoch[3])


def test_each_export_after_some_batches_has_the_weights_of_its_moment(tmp_path, consumers):
    outputs = Outputs()
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}-{batch}", save_freq=3)
    fit(tiny_model(), outputs, checkpoint, epochs=2, batch_size=2)
    assert names_in(tmp_path) == ["1-3", "2-2"]
    for name, batches in {"1-3": 3, "2-2": 6}.items():
        found = consumers.tf(tmp_path / name).signature("serve", x=X)
        assert_same(found, {"y": outputs.by_batch[batches - 1]})


def test_without_a_placeholder_each_export_replaces_the_last(tmp_path, consumers):
    outputs, checkpoint = Outputs(), SavedModelCheckpoint(tmp_path / "model")
    fit(tiny_model(), outputs, checkpoint, epochs=3)
    assert names_in(tmp_path) == ["model"]
    assert len(checkpoint.reports) == 3
    found = consumers.tf(tmp_path / "model").signature("serve", x=X)
    assert_same(found, {"y": outputs.by_epoch[2]})


def test_the_model_is_traced_once_for_the_whole_fit(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(tiny_model(), checkpoint, epochs=4)
    traced = [report.seconds["trace"] + report.seconds["assemble"] for report in checkpoint.reports]
    assert traced[0] > 0.0
    assert traced[1:] == [0.0, 0.0, 0.0]


def test_a_reader_that_polls_during_fit_sees_complete_directories_alone(tmp_path, consumers):
    done, seen, broken = threading.Event(), set(), []

    def poll():
        while not done.is_set():
            for name in filter(str.isdigit, names_in(tmp_path)):
                there = {str(file) for file in FILES if (tmp_path / name / file).exists()}
                seen.add(name)
                if there != FILES or not any((tmp_path / name / "variables").glob("*.data-*")):
                    broken.append((name, there))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        fit(tiny_model(), SavedModelCheckpoint(tmp_path / "{version}"), epochs=15)
    finally:
        done.set()
        reader.join()
    assert not broken
    assert len(seen) > 5
    assert names_in(tmp_path) == sorted(str(version) for version in range(1, 16))
    consumers.cpp(tmp_path / "15").signature("serve", x=X)


def test_a_subclassed_model_is_exported_as_it_was_called(tmp_path, consumers):
    model, outputs = Subclassed(), Outputs()
    model.compile("sgd", "mse")
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, outputs, checkpoint)
    for version, live in enumerate(outputs.by_epoch, 1):
        found = consumers.everywhere(tmp_path / str(version), x=X)
        assert_same(found, {"output_0": live})
    assert checkpoint.reports[1].seconds["trace"] == 0.0


def test_a_model_of_several_arguments_is_exported_as_its_training_called_it(tmp_path, consumers):
    model = OfTwoArguments()
    model.compile("sgd")
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, checkpoint, epochs=1)
    assert str(checkpoint.reports[0].signatures["serve"]) == (
        "(count: int32[?, 1], x: float32[?, 3]) -> (output_0: float32[?, 1])"
    )
    count = np.full([8, 1], 2, "int32")
    found = consumers.everywhere(tmp_path / "1", x=X, count=count)
    assert_same(found, {"output_0": model(X, count).numpy()})


def test_the_model_is_as_it_was_after_training(tmp_path):
    model = Subclassed()
    model.compile("sgd", "mse")
    fit(model, epochs=1)
    before = {name: id(value) for name, value in vars(model).items() if callable(value)}
    fit(model, SavedModelCheckpoint(tmp_path / "model"), epochs=1)
    assert {name: id(value) for name, value in vars(model).items() if callable(value)} == before


def test_a_model_that_records_its_calls_goes_on_to_after_training(tmp_path):
    model = ke.with_export(Subclassed())
    model.compile("sgd", "mse")
    call = model.call
    fit(model, SavedModelCheckpoint(tmp_path / "model"))
    assert model.call is call


@pytest.mark.parametrize("included", [False, True])
def test_the_optimizer_is_left_out_unless_asked_for(tmp_path, consumers, included):
    model = tiny_model()
    fit(model, SavedModelCheckpoint(tmp_path / "model", include_optimizer=included))
    keys = consumers.checkpoint(tmp_path / "model").shapes()
    assert any("optimizer" in key for key in keys) == included
    assert included or len(keys) == len(model.weights)


def test_options_of_export_reach_the_artifact(tmp_path, consumers):
    signature = [tf.TensorSpec([2, 3], tf.float32, name="rows")]
    checkpoint = SavedModelCheckpoint(
        tmp_path / "model", input_signature=signature, output_names=["sum"],
        options=tf.saved_model.SaveOptions(function_aliases={}),
    )  # fmt: skip
    fit(tiny_model(), checkpoint, epochs=1)
    found = consumers.tf(tmp_path / "model").signatures()["serving_default"]
    assert {name: spec.shape for name, spec in found["inputs"].items()} == {"rows": (2, 3)}
    assert list(found["outputs"]) == ["sum"]
    assert str(checkpoint.reports[0].signatures["serve"]) == (
        "(rows: float32[2, 3]) -> (sum: float32[2, 1])"
    )


def test_averages_are_exported_while_the_model_trains_on(tmp_path, consumers):
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    outputs = []

    def note(epoch, logs):
        kernel, bias = (
            average.numpy() for average in model.optimizer._model_variables_moving_average
        )
        outputs.append(X @ kernel + bias)

    noting, live = keras.callbacks.LambdaCallback(on_epoch_end=note), Outputs()
    fit(model, noting, live, SavedModelCheckpoint(tmp_path / "{version}", weights="ema"))
    for version, expected in enumerate(outputs, 1):
        found = consumers.tf(tmp_path / str(version)).signature("serve", x=X)
        assert_same(found, {"y": expected})
    assert not np.allclose(outputs[1], live.by_epoch[1], atol=1e-3)


def test_weights_are_stored_in_half_and_what_is_frozen_once(tmp_path, consumers):
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(2000, trainable=False)(x)
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile("sgd", "mse")
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", variables_dtype="float16")
    fit(model, checkpoint)
    assert [report.bytes_shared > 16_000 for report in checkpoint.reports] == [False, True]
    found = consumers.tf(tmp_path / "2").signature("serve", x=X)
    assert_same(found, {"y": model(X).numpy()}, rtol=1e-2, atol=1e-2)


def test_signatures_replace_the_forward_pass(tmp_path, consumers):
    model = tiny_model()
    doubled = tf.function(
        lambda x: {"twice": 2 * model(x)}, input_signature=[tf.TensorSpec([None, 3], name="x")]
    )
    outputs = Outputs()
    fit(model, outputs, SavedModelCheckpoint(tmp_path / "model", signatures=doubled))
    found = consumers.tf(tmp_path / "model").signature("serving_default", x=X)
    assert_same(found, {"twice": 2 * outputs.by_epoch[1]})


# --- Reports --------------------------------------------------------------------------------------


def test_a_report_tells_epoch_logs_and_stall_of_each_export(tmp_path):
    seen = []
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", on_export=seen.append)
    history = fit(tiny_model(), checkpoint, initial_epoch=3, epochs=5).history
    assert checkpoint.reports == seen
    assert [(report.epoch, report.batch, report.version) for report in seen] == [
        (4, None, 1), (5, None, 2),
    ]  # fmt: skip
    assert [report.logs for report in seen] == [{"loss": loss} for loss in history["loss"]]
    for report in seen:
        assert type(report.logs["loss"]) is float
        assert report.stall_seconds > 0.0
        assert sum(report.seconds.values()) > 0.0
        assert report.export_dir == str(tmp_path / str(report.version))


def test_a_report_without_version_placeholder_has_no_version(tmp_path):
    drive(checkpoint := SavedModelCheckpoint(tmp_path / "{epoch}"), [{"loss": 1.0}])
    assert checkpoint.reports[0].version is None


def test_on_export_is_called_after_the_artifact_is_published(tmp_path):
    found = []
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", on_export=lambda report: found.append(names_in(report.export_dir))
    )
    fit(tiny_model(), checkpoint, epochs=1)
    whole = ["assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables"]
    assert found == [whole]


def test_an_error_of_on_export_ends_the_fit_and_leaves_the_export(tmp_path, consumers):
    def refuse(report):
        raise KeyError("not today")

    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", on_export=refuse)
    with pytest.raises(CheckpointError) as raised:
        fit(tiny_model(), checkpoint, epochs=1)
    assert str(raised.value) == (
        f"Cannot export to {tmp_path / '1'}: expected no error on the way, received KeyError: "
        "'not today'."
    )
    assert isinstance(raised.value.__cause__, KeyError)
    assert names_in(tmp_path) == ["1"]
    assert len(checkpoint.reports) == 1
    consumers.tf(tmp_path / "1").signature("serve", x=X)


def test_log_values_that_are_no_numbers_are_left_out_of_the_report(tmp_path):
    drive(checkpoint := SavedModelCheckpoint(tmp_path / "a"), [{"loss": 1, "by_class": [1, 2]}])
    assert checkpoint.reports[0].logs == {"loss": 1.0}


# --- save_best_only -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, values, exported",
    [
        ("min", [3.0, 4.0, 2.0, 2.0, 1.0], [1, 3, 5]),
        ("max", [3.0, 2.0, 4.0, 4.0, 5.0], [1, 3, 5]),
        ("auto", [3.0, 4.0, 2.0, 2.5, 1.0], [1, 3, 5]),
        ("min", [np.inf, 1.0, -np.inf], [1, 2, 3]),
    ],
)
def test_save_best_only_exports_what_is_better_than_all_before(tmp_path, mode, values, exported):
    checkpoint = best_only(tmp_path, mode=mode)
    assert drive(checkpoint, [{"val_loss": value} for value in values]) == exported
    assert names_in(tmp_path) == list(map(str, exported))
    assert checkpoint.best == values[-1]


@keras_saves_as_it_does
def test_save_best_only_exports_the_epochs_that_modelcheckpoint_saves(tmp_path):
    model = tiny_model(metrics=["mae"])
    theirs = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.keras", monitor="val_mae", save_best_only=True
    )
    ours = best_only(tmp_path, "val_mae")
    shaken = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model.layers[-1].bias.assign([(3.0, 1, 2, 0)[epoch]])
    )
    fit(model, shaken, theirs, ours, epochs=4, validation_data=(X, Y))
    saved = [name.removesuffix(".keras") for name in names_in(tmp_path) if name.endswith(".keras")]
    assert [str(report.epoch) for report in ours.reports] == saved == ["1", "2", "4"]
    assert ours.best == theirs.best


def test_nan_is_never_best(tmp_path):
    values = [np.nan, 2.0, np.nan, 3.0, 1.0]
    assert drive(best_only(tmp_path), [{"val_loss": value} for value in values]) == [2, 5]


def test_the_first_export_must_beat_the_initial_threshold(tmp_path):
    checkpoint = best_only(tmp_path, "val_acc", initial_value_threshold=0.9)
    assert drive(checkpoint, [{"val_acc": value} for value in (0.5, 0.9, 0.95)]) == [3]


def test_without_the_monitored_metric_save_best_only_exports_nothing(tmp_path):
    checkpoint = best_only(tmp_path)
    with pytest.warns(MissingMetricWarning):
        assert drive(checkpoint, [{"loss": 1.0}, {"loss": 1.0, "val_loss": 2.0}]) == [2]


def test_a_monitored_value_that_is_no_number_exports_nothing(tmp_path):
    with pytest.warns(MissingMetricWarning):
        assert drive(best_only(tmp_path), [{"val_loss": np.ones(3)}]) == []


def test_a_missing_metric_is_warned_of_once_and_the_warning_lists_those_there_are(tmp_path):
    checkpoint = best_only(tmp_path, "val_accuracy")
    with pytest.warns(UserWarning) as warned:
        fit(tiny_model(metrics=["mae"]), checkpoint, epochs=3)
    assert [str(warning.message) for warning in warned] == [
        "SavedModelCheckpoint monitors 'val_accuracy', which the logs at the end of an epoch lack; "
        "nothing is exported where it is missing. They have: loss, mae."
    ]


def test_a_missing_metric_that_was_asked_for_is_warned_of_and_the_model_exported(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}", monitor="val_mae")
    with pytest.warns(MissingMetricWarning, match=r"lack\. They have: loss\."):
        assert drive(checkpoint, [{"loss": 1.0}, {"loss": 1.0}]) == [1, 2]


def test_the_default_monitor_is_not_missed_where_nothing_is_ranked(tmp_path):
    assert drive(SavedModelCheckpoint(tmp_path / "{epoch}"), [{"loss": 1.0}]) == [1]


def test_the_warning_says_that_the_end_of_a_batch_lacks_metrics_of_validation(tmp_path):
    with pytest.warns(MissingMetricWarning, match="the logs at the end of a batch lack; nothing"):
        assert drive_batches(best_only(tmp_path, save_freq=1), [[0, 1]]) == []


def test_a_failed_export_does_not_raise_the_bar(tmp_path):
    checkpoint = best_only(tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "1").write_text("in the way")
    with pytest.raises(TargetError):
        drive(checkpoint, [{"val_loss": 1.0}])
    assert checkpoint.best is None
    assert drive(checkpoint, [{"val_loss": np.nan}, {"val_loss": 2.0}]) == [2]


# --- mode="auto" ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "monitor, best",
    [
        ("val_acc", 2.0),
        ("f1_score", 2.0),
        ("val_top_5_accuracy_1", 2.0),
        ("head_mean_io_u", 2.0),
        ("loss", 1.0),
        ("head_loss", 1.0),
        ("val_dice_loss", 1.0),
        ("logloss", 1.0),
        ("word_error_rate", 1.0),
        ("val_RMSE", 1.0),
    ],
)
def test_auto_mode_infers_from_the_name_what_nobody_compiled(tmp_path, monitor, best):
    checkpoint = best_only(tmp_path, monitor)
    drive(checkpoint, [{monitor: 1.5}, {monitor: 1.0}, {monitor: 2.0}])
    assert checkpoint.best == best


@pytest.mark.parametrize(
    "metric, rising",
    [
        (keras.metrics.BinaryAccuracy("loss_of_nothing"), True),
        (keras.metrics.MeanSquaredError("accuracy"), False),
        ("mae", False),
        ("accuracy", True),
    ],
    ids=["up", "down", "mae", "accuracy"],
)
def test_auto_mode_asks_the_compiled_metrics_before_the_name(tmp_path, metric, rising):
    model = tiny_model(metrics=[metric])
    name = next(name for name in fit(model, epochs=1).history if name != "loss")
    checkpoint = best_only(tmp_path, f"val_{name}")
    drive(checkpoint, [{f"val_{name}": value} for value in (1.5, 1.0, 2.0)], model)
    assert checkpoint.best == (2.0 if rising else 1.0)


def test_auto_mode_knows_the_metrics_of_each_of_several_outputs(tmp_path):
    x = keras.Input((3,), name="x")
    heads = {name: keras.layers.Dense(1, name=name)(x) for name in "ab"}
    model = keras.Model(x, heads)
    model.compile("sgd", "mse", metrics={"a": [keras.metrics.BinaryAccuracy("hits")]})
    model.fit(X, {"a": Y, "b": Y}, verbose=0)
    checkpoint = best_only(tmp_path, "val_a_hits")
    drive(checkpoint, [{"val_a_hits": value} for value in (1.0, 2.0)], model)
    assert checkpoint.best == 2.0


def test_auto_mode_refuses_to_guess(tmp_path):
    with pytest.raises(ArgumentError) as raised:
        drive(best_only(tmp_path, "val_wonder"), [{"val_wonder": 1.0}])
    assert str(raised.value) == (
        "Cannot rank models: expected a metric whose better direction is known, received "
        "monitor='val_wonder', mode='auto'. Pass mode='max' if more is better, or mode='min' if "
        "less is."
    )
    assert names_in(tmp_path) == []


# --- save_freq ------------------------------------------------------------------------------------


def test_batches_are_counted_across_epochs(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", save_freq=3)
    assert drive_batches(checkpoint, [range(4), range(4), range(4)]) == [
        (1, 3), (2, 2), (3, 1), (3, 4),
    ]  # fmt: skip


@keras_saves_as_it_does
def test_the_batches_are_those_that_modelcheckpoint_saves_after(tmp_path):
    theirs = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=3)
    ours = SavedModelCheckpoint(tmp_path / "{epoch}-{batch}", save_freq=3)
    fit(tiny_model(), theirs, ours, batch_size=2, epochs=3)
    saved = [name.removesuffix(".keras") for name in names_in(tmp_path) if name.endswith(".keras")]
    assert [os.path.basename(report.export_dir) for report in ours.reports] == saved
    assert saved == ["1-3", "2-2", "3-1", "3-4"]


def test_an_epoch_that_ends_early_is_counted_as_long_as_it_was(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", save_freq=4)
    assert drive_batches(checkpoint, [[0], [2], [2], [2]]) == [(2, 3), (4, 3)]


def test_batches_are_counted_without_the_start_of_an_epoch(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", save_freq=4)
    checkpoint.set_model(tiny_model())
    for batch in (0, 1, 2, 0, 1, 2):
        checkpoint.on_train_batch_end(batch, {})
    checkpoint.on_train_end()
    assert [report.batch for report in checkpoint.reports] == [1]


def test_an_execution_of_several_batches_that_crosses_multiples_exports_once(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", save_freq=2)
    assert drive_batches(checkpoint, [[4, 9]]) == [(1, 5), (1, 10)]


@pytest.mark.skipif(
    int(keras.__version__.split(".")[1]) < 5,
    reason="Keras 3.4 ends an epoch before an execution that is shorter than the others",
)
def test_batches_are_counted_right_with_steps_per_execution(tmp_path):
    model = tiny_model(steps_per_execution=3)
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}-{batch}", save_freq=4)
    fit(model, checkpoint, batch_size=2, epochs=3)  # executions end with batches 3 and 4 of 4
    assert [(report.epoch, report.batch) for report in checkpoint.reports] == [
        (1, 4), (2, 4), (3, 4),
    ]  # fmt: skip


def test_logs_at_a_batch_are_those_of_the_batch(tmp_path):
    seen = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs))
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", save_freq=1)
    fit(tiny_model(), watch, checkpoint, epochs=1)
    assert [report.logs for report in checkpoint.reports] == seen
    assert len(seen) == 2


def test_save_best_only_ranks_batches_too(tmp_path):
    checkpoint = best_only(tmp_path, "loss", save_freq=1)
    checkpoint.set_model(tiny_model())
    checkpoint.on_epoch_begin(0)
    for batch, loss in enumerate([3.0, 4.0, 2.0]):
        checkpoint.on_train_batch_end(batch, {"loss": loss})
    checkpoint.on_train_end()
    assert [report.batch for report in checkpoint.reports] == [1, 3]


# --- Paths ----------------------------------------------------------------------------------------


def test_placeholders_are_filled_with_counts_and_log_values(tmp_path):
    template = tmp_path / "{{run}}" / "{epoch:02d}-{val_loss:.2f}" / "v{version:03d}"
    drive(checkpoint := SavedModelCheckpoint(template), [{"val_loss": 0.125}])
    assert checkpoint.reports[0].export_dir == str(tmp_path / "{run}" / "01-0.12" / "v001")


@pytest.mark.parametrize("kind", [str, pathlib.Path, os.fsencode, "file://{}".format])
def test_a_path_may_come_in_any_form(tmp_path, kind):
    checkpoint = SavedModelCheckpoint(kind(tmp_path / "{version}"))
    drive(checkpoint, [{}, {}])
    assert names_in(tmp_path) == ["1", "2"]


def test_a_relative_path_is_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drive(SavedModelCheckpoint("{version}"), [{}, {}])
    assert names_in(tmp_path) == ["1", "2"]


def test_versions_go_to_any_file_system_of_gfile():
    folder = "ram://test_callbacks/models"
    tf.io.gfile.makedirs(f"{folder}/4")
    drive(SavedModelCheckpoint(f"{folder}/{{version}}"), [{}, {}])
    assert sorted(tf.io.gfile.listdir(folder)) == [".keras_export.json", "4", "5", "6"]
    assert set(tf.io.gfile.listdir(f"{folder}/6")) >= {"saved_model.pb", "variables"}


@pytest.mark.parametrize("taken", ["17", "00017", "+17", " 17"])
def test_versions_are_above_every_integer_in_the_folder(tmp_path, taken):
    for name in (taken, "3", "x18", "18x", "-19", "20.5", str(2**63)):
        (tmp_path / name).mkdir()
    drive(checkpoint := SavedModelCheckpoint(tmp_path / "{version}"), [{}, {}])
    assert [report.version for report in checkpoint.reports] == [18, 19]


def test_a_version_within_a_name_is_above_those_in_such_names(tmp_path):
    for name in ("7", "e1-v4.old", "e1-v5"):
        (tmp_path / name).mkdir()
    drive(checkpoint := SavedModelCheckpoint(tmp_path / "e{epoch}-v{version}"), [{}, {}])
    assert names_in(tmp_path) == ["7", "e1-v4.old", "e1-v5", "e1-v6", "e2-v7"]
    assert [report.version for report in checkpoint.reports] == [6, 7]


def test_versions_are_numbered_in_the_folder_that_other_placeholders_give(tmp_path):
    (tmp_path / "e2" / "5").mkdir(parents=True)
    drive(SavedModelCheckpoint(tmp_path / "e{epoch}" / "{version}" / "model"), [{}, {}])
    assert names_in(tmp_path / "e1") == ["1"]
    assert names_in(tmp_path / "e2") == ["5", "6"]
    assert names_in(tmp_path / "e2" / "6") == ["model"]


def test_a_version_number_is_never_given_out_twice(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    drive(checkpoint, [{}, {}])
    for name in ("1", "2"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    drive(checkpoint, [{}])
    assert names_in(tmp_path) == ["3", "moved-1", "moved-2"]


def test_a_version_that_somebody_takes_at_the_same_moment_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "theirs").touch()
    monkeypatch.setattr(templates, "_names_in", lambda folder: [])
    drive(checkpoint := SavedModelCheckpoint(tmp_path / "{version}"), [{}])
    assert names_in(tmp_path) == ["1", "2"]
    assert names_in(tmp_path / "1") == ["theirs"]
    assert checkpoint.reports[0].version == 2


def test_a_placeholder_that_the_logs_lack_is_named_with_those_there_are(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{epoch}-{val_loss:.2f}")
    with pytest.raises(ArgumentError) as raised:
        fit(tiny_model(), checkpoint)
    assert str(raised.value) == (
        f"Cannot fill in filepath='{tmp_path}/{{epoch}}-{{val_loss:.2f}}': expected the name of a "
        "value that there is (epoch, loss), received {val_loss:.2f}. Metrics of validation need "
        "validation data, and the end of a batch has none."
    )
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "template, message",
    [
        ("{}", r"expected the name of a value in each placeholder, received \{\} in filepath='{}'"),
        ("{0}", r"the name of a value in each placeholder, received \{0\}"),
        ("{epoch", r"placeholders like \{epoch\}, with \{\{ and \}\} for braces, received .*'\}'"),
        ("epoch}", r"placeholders like \{epoch\}, with .* \(Single '\}'"),
        ("{batch}", r"\{batch\} only with an integer save_freq, received \{batch\} in"),
        ("{epoch:02q}", r"a format for an integer, received \{epoch:02q\} in"),
        ("{val_loss:02d}", r"a format for a float, received \{val_loss:02d\} in"),
        ("{version:.1f}", r"a format that gives digits alone, received \{version:.1f\} in"),
        ("{version:x}", r"a format that gives digits alone, received \{version:x\} in"),
        ("{version:,}", r"a format that gives digits alone, received \{version:,\} in"),
        ("{epoch:/>9}", r"a format that gives a part of a name, received \{epoch:/>9\} in"),
        ("{epoch:{batch}}", r"a format for an integer, received \{epoch:\{batch\}\} in"),
    ],
)
def test_a_bad_template_is_refused_at_construction(template, message):
    with pytest.raises(ArgumentError, match=f"^Cannot set up SavedModelCheckpoint: .*{message}"):
        SavedModelCheckpoint(template)


def test_a_bad_target_is_refused_before_training(tmp_path):
    (tmp_path / "models").write_text("in the way")
    for template in ("models", "models/{version}", "models/run-{epoch}/model"):
        model = tiny_model()
        before = model.get_weights()
        with pytest.raises(TargetError, match=f"a file at {re.escape(str(tmp_path / 'models'))}"):
            fit(model, SavedModelCheckpoint(tmp_path / template))
        assert_same(model.get_weights(), before)
    assert names_in(tmp_path) == ["models"]


def test_a_start_without_an_export_leaves_no_folder(tmp_path):
    drive(SavedModelCheckpoint(tmp_path / "models" / "{version}"), [])
    assert names_in(tmp_path) == []


# --- Several fits ---------------------------------------------------------------------------------


def test_one_callback_serves_several_fits(tmp_path, consumers):
    model, outputs = tiny_model(), Outputs()
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, outputs, checkpoint)
    fit(model, outputs, checkpoint, epochs=1)
    assert [(report.epoch, report.version) for report in checkpoint.reports] == [
        (1, 1), (2, 2), (1, 3),
    ]  # fmt: skip
    assert checkpoint.reports[2].seconds["trace"] == 0.0
    found = consumers.tf(tmp_path / "3").signature("serve", x=X)
    assert_same(found, {"y": outputs.by_epoch[2]})


def test_another_model_is_traced_anew(tmp_path, consumers):
    outputs, checkpoint = Outputs(), SavedModelCheckpoint(tmp_path / "{version}")
    fit(tiny_model(), outputs, checkpoint, epochs=1)
    fit(model_that_trains_otherwise(), outputs, checkpoint, epochs=1)
    assert all(report.seconds["trace"] > 0.0 for report in checkpoint.reports)
    for version, live in enumerate(outputs.by_epoch, 1):
        assert_same(consumers.tf(tmp_path / str(version)).signature("serve", x=X), {"y": live})


def test_the_best_value_and_the_batch_count_go_on_in_the_next_fit(tmp_path):
    model, checkpoint = tiny_model(), best_only(tmp_path)
    assert drive(checkpoint, [{"val_loss": 1.0}], model) == [1]
    assert drive(checkpoint, [{"val_loss": 2.0}, {"val_loss": 0.5}], model) == [1, 2]
    counting = SavedModelCheckpoint(tmp_path / "{version}", save_freq=3)
    assert drive_batches(counting, [range(2)]) == []
    assert drive_batches(counting, [range(2)]) == [(1, 1)]


def test_each_fit_warns_once_of_a_missing_metric(tmp_path):
    checkpoint = best_only(tmp_path)
    with pytest.warns(MissingMetricWarning) as warned:
        drive(checkpoint, [{"loss": 1.0}] * 2)
        drive(checkpoint, [{"loss": 1.0}] * 2)
    assert len(warned) == 2


# --- Printing -------------------------------------------------------------------------------------


def test_nothing_is_printed_by_default(tmp_path, capsys):
    fit(tiny_model(), SavedModelCheckpoint(tmp_path / "{version}"))
    assert capsys.readouterr() == ("", "")


def test_verbose_prints_a_line_for_each_export(tmp_path, capsys):
    checkpoint = best_only(tmp_path, verbose=1)
    drive(checkpoint, [{"val_loss": value} for value in (2.0, 3.0, 1.5)])
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch 1: val_loss improved to 2.00000, exported {tmp_path / '1'}",
        f"Epoch 3: val_loss improved from 2.00000 to 1.50000, exported {tmp_path / '3'}",
    ]


def test_verbose_names_batch_and_metric_where_nothing_is_ranked(tmp_path, capsys):
    path = tmp_path / "model"
    drive_batches(SavedModelCheckpoint(path, "loss", verbose=1, save_freq=2), [[0, 1]])
    drive(SavedModelCheckpoint(path, verbose=1), [{"loss": 1.0}])
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch 1, batch 2: loss is 1.00000, exported {path}",
        f"Epoch 1: exported {path}",
    ]


def test_a_line_does_not_run_into_the_progress_bar(tmp_path, capsys):
    fit(tiny_model(), SavedModelCheckpoint(tmp_path / "model", verbose=1), epochs=1, verbose=1)
    assert f"Epoch 1: exported {tmp_path / 'model'}" in capsys.readouterr().out.splitlines()


def test_a_terminal_gets_the_line_in_colour_and_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    path = tmp_path / ("long" * 40)
    drive(SavedModelCheckpoint(path, verbose=1), [{"loss": 1.0}])
    assert capsys.readouterr().out == f"\x1b[32mEpoch 1: exported {path}\x1b[0m\n"


# --- Arguments ------------------------------------------------------------------------------------


def test_the_arguments_of_modelcheckpoint_come_first_in_its_order():
    theirs = inspect.signature(keras.callbacks.ModelCheckpoint.__init__).parameters
    ours = inspect.signature(SavedModelCheckpoint.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default
    more = [ours[name].kind for name in ours if name not in theirs]
    assert set(more) == {inspect.Parameter.KEYWORD_ONLY}


def test_the_callback_takes_every_keyword_of_export():
    theirs = inspect.signature(ke.export).parameters
    ours = inspect.signature(SavedModelCheckpoint.__init__).parameters
    shared = set(theirs) - {"model", "export_dir", "verbose"}
    assert shared <= set(ours)
    assert {name: ours[name].default for name in shared} == {
        name: theirs[name].default for name in shared
    }


def test_each_version_has_its_warm_up_requests_and_fits_its_target(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", warmup=2, target="tensorflow>=2.16")
    fit(tiny_model(), checkpoint, epochs=2)
    for version in ("1", "2"):
        assert names_in(tmp_path / version / "assets.extra") == [
            "keras_export.json", "tf_serving_warmup_requests",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"filepath": 3}, ArgumentTypeError, "a str or os.PathLike, received filepath=3"),
        ({"monitor": None}, ArgumentTypeError, "the name of a metric, received monitor=None"),
        ({"mode": "best"}, ArgumentError, "'auto', 'min' or 'max', received mode='best'"),
        ({"save_freq": 0}, ArgumentError, "a positive number of batches, received save_freq=0"),
        ({"save_freq": -1}, ArgumentError, "received save_freq=-1"),
        ({"save_freq": True}, ArgumentError, "received save_freq=True"),
        ({"save_freq": 2.0}, ArgumentError, "received save_freq=2.0"),
        ({"save_freq": "batch"}, ArgumentError, "received save_freq='batch'"),
        ({"save_weights_only": True}, ArgumentError, "keras.callbacks.ModelCheckpoint writes"),
        ({"initial_value_threshold": "x"}, ArgumentTypeError, "initial_value_threshold='x'"),
        ({"initial_value_threshold": np.nan}, ArgumentError, "initial_value_threshold=nan"),
        ({"on_export": 1}, ArgumentTypeError, "a function of a report, received on_export=1"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name(arguments, kind, message):
    with pytest.raises(kind, match=f"^Cannot set up SavedModelCheckpoint: .*{message}") as raised:
        SavedModelCheckpoint(**{"filepath": "model", **arguments})
    assert isinstance(raised.value, ExportError)


def test_an_integer_of_numpy_is_a_save_freq():
    assert SavedModelCheckpoint("model", save_freq=np.int64(5)).save_freq == 5


def test_the_callback_is_found_in_the_package():
    assert ke.SavedModelCheckpoint is SavedModelCheckpoint
    assert "SavedModelCheckpoint" in ke.__all__
