"""Versions share on disk what did not change, and each is whole without the others."""

import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_same

from keras_export import exporter, sharing
from keras_export.callbacks import SavedModelCheckpoint

X = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
FROZEN_BYTES = 400_000


def frozen_backbone(dropout=True):
    """A frozen part of 400 kB with statistics, and a head that trains, with a seed."""
    base_input = keras.Input((8,))
    h = keras.layers.Dense(200, name="wide")(base_input)
    h = keras.layers.Dense(480, name="wider")(keras.layers.BatchNormalization()(h))
    base = keras.Model(base_input, h, name="base")
    base.trainable = False
    x = keras.Input((8,), name="x")
    h = base(x)
    h = keras.layers.Dropout(0.1)(h) if dropout else h
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


class Live(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.outputs = []

    def on_epoch_end(self, epoch, logs=None):
        self.outputs.append(self.model(X, training=False).numpy())


def fit(model, *given, epochs=3):
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=list(given))


def disk_use(folder, without=()):
    """Bytes of the files below a folder that no folder in `without` holds, too."""
    inodes = {}
    for top, _, names in os.walk(folder):
        for name in names:
            status = os.stat(os.path.join(top, name))
            inodes[status.st_ino] = status.st_size
    for other in without:
        for inode in inodes_of(other):
            inodes.pop(inode, None)
    return sum(inodes.values())


def inodes_of(folder):
    return {
        os.stat(os.path.join(top, name)).st_ino
        for top, _, names in os.walk(folder)
        for name in names
    }


def trained_bytes(model):
    return sum(v.numpy().nbytes for v in model.trainable_variables)


def assert_each_is_whole(folder, outputs, consumers):
    for version, live in enumerate(outputs, 1):
        found = consumers.everywhere(folder / str(version), x=X)
        assert_same(found, {"y": live})


# --- What is shared -------------------------------------------------------------------------------


def test_a_later_version_costs_what_trains_and_little_more(tmp_path, consumers):
    model, live = frozen_backbone(), Live()
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, live, checkpoint, epochs=4)
    assert disk_use(tmp_path / "1") > FROZEN_BYTES
    for version in (2, 3, 4):
        before = [tmp_path / str(number) for number in range(1, version)]
        cost = disk_use(tmp_path / str(version), before)
        assert cost < 1.1 * trained_bytes(model) + 50_000 < FROZEN_BYTES
        assert checkpoint.reports[version - 1].bytes_written == cost
        shared = checkpoint.reports[version - 1].bytes_shared
        assert shared == disk_use(tmp_path / str(version)) - cost > FROZEN_BYTES
    assert checkpoint.reports[0].bytes_shared == 0
    assert_each_is_whole(tmp_path, live.outputs, consumers)
    assert not np.allclose(live.outputs[0], live.outputs[3])


@pytest.mark.soak
def test_a_later_version_of_resnet50_with_a_new_head_costs_what_trains(tmp_path, consumers):
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    base.trainable = False
    x = keras.Input((64, 64, 3), name="x")
    h = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    model = keras.Model(x, keras.layers.Dense(100, name="y")(keras.layers.Dropout(0.2)(h)))
    model.compile("adam", "mse")
    images, targets = np.ones((2, 64, 64, 3), "float32"), np.ones((2, 100))
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    model.fit(images, targets, epochs=4, verbose=0, callbacks=[checkpoint])
    trained = trained_bytes(model)
    for version in (2, 3, 4):
        before = [tmp_path / str(number) for number in range(1, version)]
        cost = disk_use(tmp_path / str(version), before)
        print(f"version {version}: {cost} bytes, trained: {trained}")
        assert cost <= 1.1 * trained + 256_000
    for version in (1, 3):
        shutil.rmtree(tmp_path / str(version))
    found = consumers.everywhere(tmp_path / "4", x=images)
    assert_same(found, {"y": model(images).numpy()})
    consumers.cpp(tmp_path / "2").signature("serve", x=images)


@pytest.mark.parametrize("deleted", [(1,), (2,), (3,), (1, 2), (2, 3)])
def test_any_version_can_be_deleted_and_the_others_are_whole(tmp_path, deleted, consumers):
    live = Live()
    fit(frozen_backbone(), live, SavedModelCheckpoint(tmp_path / "{version}"))
    for version in deleted:
        shutil.rmtree(tmp_path / str(version))
    for version in {1, 2, 3} - set(deleted):
        found = consumers.tf(tmp_path / str(version)).signature("serve", x=X)
        assert_same(found, {"y": live.outputs[version - 1]})
        reader = tf.train.load_checkpoint(tmp_path / str(version) / "variables" / "variables")
        assert all(reader.has_tensor(key) for key in reader.get_variable_to_shape_map())


def test_a_version_shares_with_one_that_stays_when_the_one_before_is_deleted(tmp_path, consumers):
    model, live = frozen_backbone(), Live()
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", monitor="loss", keep_last=1)
    fit(model, live, checkpoint, epochs=4)
    assert [bool(report.bytes_shared) for report in checkpoint.reports] == [False, True, True, True]
    assert sorted(os.listdir(tmp_path)) == [".keras_export.json", "4"]
    found = consumers.tf(tmp_path / "4").signature("serve", x=X)
    assert_same(found, {"y": live.outputs[3]})


def test_a_copy_elsewhere_works(tmp_path, consumers):
    live = Live()
    fit(frozen_backbone(), live, SavedModelCheckpoint(tmp_path / "models" / "{version}"))
    shutil.copytree(tmp_path / "models" / "3", tmp_path / "copy")
    shutil.rmtree(tmp_path / "models")
    assert_same(consumers.everywhere(tmp_path / "copy", x=X), {"y": live.outputs[2]})


def test_the_graph_is_shared_where_everything_trains(tmp_path, consumers):
    x = keras.Input((8,), name="x")
    model, live = keras.Model(x, keras.layers.Dense(1, name="y")(x)), Live()
    model.compile("sgd", "mse")
    fit(model, live, SavedModelCheckpoint(tmp_path / "{version}"))
    graphs = {os.stat(tmp_path / name / "saved_model.pb").st_ino for name in "123"}
    assert len(graphs) == 1
    for name in "123":
        files = set(os.listdir(tmp_path / name / "variables"))
        assert files == {"variables.index", "variables.data-00000-of-00001"}
    assert_each_is_whole(tmp_path, live.outputs, consumers)


def test_a_vocabulary_is_shared(tmp_path, consumers):
    words = [f"word{number}" for number in range(2000)]
    x = keras.Input((1,), dtype="string", name="x")
    h = keras.layers.StringLookup(vocabulary=words)(x)
    h = keras.layers.Flatten()(keras.layers.Embedding(2001, 4)(h))
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile("sgd", "mse")
    inputs = tf.constant([["word1"], ["word2"]])
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    model.fit(inputs, np.ones((2, 1)), epochs=2, verbose=0, callbacks=[checkpoint])
    expected = model(inputs).numpy()
    found = consumers.tf(tmp_path / "2").signature("serve", x=inputs.numpy())
    assert_same(found, {"y": expected})


def test_each_fit_says_anew_what_is_frozen(tmp_path, consumers):
    model, live = frozen_backbone(), Live()
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, live, checkpoint, epochs=2)
    model.get_layer("base").trainable = True
    model.compile("sgd", "mse")
    fit(model, live, checkpoint, epochs=2)
    model.get_layer("base").trainable = False
    model.compile("sgd", "mse")
    fit(model, live, checkpoint, epochs=2)
    large = [report.bytes_shared > FROZEN_BYTES for report in checkpoint.reports]
    assert large == [False, True, False, False, False, True]
    assert_each_is_whole(tmp_path, live.outputs, consumers)


def test_an_artifact_of_one_path_shares_with_the_one_that_it_replaces(tmp_path, consumers):
    live, checkpoint = Live(), SavedModelCheckpoint(tmp_path / "model")
    fit(frozen_backbone(), live, checkpoint)
    assert checkpoint.reports[2].bytes_shared > FROZEN_BYTES
    assert_same(consumers.everywhere(tmp_path / "model", x=X), {"y": live.outputs[2]})


# --- What is not ----------------------------------------------------------------------------------


class Shaken(keras.callbacks.Callback):
    """Changes a frozen weight by hand in the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            bias = self.model.get_layer("base").get_layer("wide").bias
            bias.assign(bias + 1.0)


def test_a_frozen_weight_that_changes_is_written(tmp_path, consumers):
    live, checkpoint = Live(), SavedModelCheckpoint(tmp_path / "{version}")
    fit(frozen_backbone(), Shaken(), live, checkpoint, epochs=4)
    assert_each_is_whole(tmp_path, live.outputs, consumers)
    large = [report.bytes_shared > 0.9 * FROZEN_BYTES for report in checkpoint.reports]
    assert large == [False, False, True, True]


def test_a_weight_that_is_assigned_the_same_value_is_shared(tmp_path):
    model = frozen_backbone()
    kernel = model.get_layer("base").get_layer("wider").kernel
    again = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kernel.assign(kernel.numpy())
    )
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    fit(model, again, checkpoint, epochs=2)
    assert checkpoint.reports[1].bytes_shared > FROZEN_BYTES


def test_a_file_that_somebody_changed_is_not_shared_any_more(tmp_path, consumers):
    def damage(report):
        (data,) = (tmp_path / "1" / "variables").glob("*.data-00000-of-*")
        content = bytearray(data.read_bytes())
        content[1000] ^= 255
        data.write_bytes(content)

    live = Live()
    checkpoint = SavedModelCheckpoint(
        tmp_path / "{version}", on_export=lambda r: damage(r) if r.version == 1 else None
    )
    fit(frozen_backbone(), live, checkpoint, epochs=3)
    for version in (2, 3):
        found = consumers.tf(tmp_path / str(version)).signature("serve", x=X)
        assert_same(found, {"y": live.outputs[version - 1]})


def test_without_hard_links_each_version_is_written_whole(tmp_path, consumers, monkeypatch):
    def refused(source, destination, **options):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(sharing.os, "link", refused)
    live, checkpoint = Live(), SavedModelCheckpoint(tmp_path / "{version}")
    fit(frozen_backbone(), live, checkpoint)
    assert [report.bytes_shared for report in checkpoint.reports] == [0, 0, 0]
    assert all(disk_use(tmp_path / name) > FROZEN_BYTES for name in "123")
    assert_each_is_whole(tmp_path, live.outputs, consumers)


def test_a_failed_export_is_not_shared_with(tmp_path, consumers, monkeypatch):
    (tmp_path / "e2").write_text("in the way")
    live = Live()
    checkpoint = SavedModelCheckpoint(tmp_path / "e{epoch}", on_error="warn")
    with pytest.warns(UserWarning, match="e2"):
        fit(frozen_backbone(), live, checkpoint, epochs=4)
    for epoch in (1, 3, 4):
        found = consumers.tf(tmp_path / f"e{epoch}").signature("serve", x=X)
        assert_same(found, {"y": live.outputs[epoch - 1]})
    assert checkpoint.reports[2].bytes_shared > FROZEN_BYTES


def test_an_export_by_itself_is_one_data_file(tmp_path):
    exporter.Exporter(frozen_backbone()).write(tmp_path / "model")
    assert set(os.listdir(tmp_path / "model" / "variables")) == {
        "variables.index", "variables.data-00000-of-00001",
    }  # fmt: skip


# --- Gathers and scatters put a variable into copy-on-read ----------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("update", ["scatter_update", "assign"])
def test_a_frozen_table_that_is_gathered_from_and_then_changed_is_written(
    tmp_path, consumers, jit_compile, update
):
    x = keras.Input((2,), dtype="int32", name="x")
    table = keras.layers.Embedding(5000, 8, trainable=False, name="table")
    h = keras.layers.Flatten()(table(x))
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile("sgd", "mse", jit_compile=jit_compile)
    rows = np.array([[1, 2], [3, 4]], "int32")
    outputs = []

    def change(epoch, logs):
        if epoch != 2:
            return
        variable = table.embeddings.value
        if update == "assign":
            variable.assign(variable + 1.0)
        else:
            variable.scatter_update(tf.IndexedSlices(tf.ones([2, 8]), [1, 3]))

    changing = keras.callbacks.LambdaCallback(
        on_epoch_begin=change, on_epoch_end=lambda epoch, logs: outputs.append(model(rows).numpy())
    )
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}")
    model.fit(rows, np.ones((2, 1)), epochs=5, verbose=0, callbacks=[changing, checkpoint])
    shared = [report.bytes_shared > 160_000 for report in checkpoint.reports]
    assert shared[:3] == [False, True, False]
    for version, live in enumerate(outputs, 1):
        found = consumers.tf(tmp_path / str(version)).signature("serve", x=rows)
        assert_same(found, {"y": live})
