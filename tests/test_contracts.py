"""With a signature lock, clients of one version can call the next in the same way."""

import os
import threading
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import contracts, held_values
from keras_export.callbacks import SavedModelCheckpoint
from keras_export.errors import CheckpointError, SignatureError
from keras_export.outcomes import FailedExportWarning


def model_of(width=3, output="y"):
    x = keras.Input((width,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name=output)(x))
    model.compile("sgd", "mse")
    return model


def fit(model, *given, epochs=1):
    x = np.ones((2, model.inputs[0].shape[1]), "float32")
    model.fit(x, np.ones(2), epochs=epochs, verbose=0, callbacks=list(given))


def locked(folder, **arguments):
    return SavedModelCheckpoint(folder / "{version}", signature_lock=True, **arguments)


def versions_in(folder):
    return sorted(name for name in os.listdir(folder) if name.isdigit())


def test_a_version_that_clients_could_not_call_is_not_published(tmp_path):
    fit(model_of(), locked(tmp_path), epochs=2)
    with pytest.raises(SignatureError) as raised:
        fit(model_of(width=4, output="z"), locked(tmp_path))
    assert str(raised.value) == (
        f"Cannot export to {tmp_path / '3'}: expected the signatures of {tmp_path / '2'}, received "
        "others: serve has input x as float32[?, 4], not float32[?, 3]; serve lacks output y "
        "(float32[?, 1]); serve has a new output z (float32[?, 1]); serving_default has input x as "
        "float32[?, 4], not float32[?, 3]; serving_default lacks output y (float32[?, 1]); "
        "serving_default has a new output z (float32[?, 1]). Export to another folder, or leave "
        "out signature_lock to publish it."
    )
    assert versions_in(tmp_path) == ["1", "2"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".keras_export-")]


def test_the_same_signature_passes_with_other_weights_and_layers(tmp_path):
    fit(model_of(), locked(tmp_path))
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(5, activation="relu")(x)
    deeper = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    deeper.compile("sgd", "mse")
    fit(deeper, locked(tmp_path), epochs=2)
    assert versions_in(tmp_path) == ["1", "2", "3"]


def test_without_a_lock_the_signature_may_change(tmp_path):
    fit(model_of(), SavedModelCheckpoint(tmp_path / "{version}"))
    fit(model_of(width=4), SavedModelCheckpoint(tmp_path / "{version}"))
    assert versions_in(tmp_path) == ["1", "2"]


def test_training_can_go_on_without_what_the_lock_refuses(tmp_path):
    fit(model_of(), locked(tmp_path))
    with pytest.warns(FailedExportWarning, match="expected the signatures of"):
        fit(model_of(output="z"), locked(tmp_path, on_error="warn"), epochs=3)
    assert versions_in(tmp_path) == ["1"]


def test_the_newest_version_counts_whoever_wrote_it(tmp_path):
    class Adder(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
        def add(self, x):
            return x + x

    tf.saved_model.save(Adder(), str(tmp_path / "9"))
    with pytest.raises(SignatureError, match=f"the signatures of {tmp_path / '9'}"):
        fit(model_of(), locked(tmp_path))
    ke.export(model_of(), tmp_path / "10")
    fit(model_of(), locked(tmp_path))
    assert versions_in(tmp_path) == ["10", "11", "9"]


def test_an_artifact_of_one_path_is_replaced_only_by_one_of_the_same_signature(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "model", signature_lock=True)
    fit(model_of(), checkpoint, epochs=2)
    with pytest.raises(SignatureError, match="serve has a new output z"):
        fit(model_of(output="z"), checkpoint)
    assert list(ke.inspect(tmp_path / "model").signatures["serve"].outputs) == ["y"]


# --- What the model gives -------------------------------------------------------------------------


def test_a_version_that_gives_what_the_model_gives_is_published(tmp_path):
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", verify=True)
    fit(model_of(), checkpoint, epochs=2)
    assert versions_in(tmp_path) == ["1", "2"]
    for report in checkpoint.reports:
        assert report.seconds["check"] > 0.0


def shifted(monkeypatch):
    """Each value that is written is one more than it was."""
    write = held_values.write_bundle

    def wrong(prefix, values, *arguments):
        groups = [
            [e if e.tensor.dtype == tf.string else replace(e, tensor=e.tensor + 1) for e in group]
            for group in values.groups
        ]
        return write(prefix, held_values.Values(tuple(map(tuple, groups))), *arguments)

    monkeypatch.setattr(held_values, "write_bundle", wrong)


def test_a_version_that_gives_something_else_is_not_published(tmp_path, monkeypatch):
    shifted(monkeypatch)
    with pytest.raises(CheckpointError) as raised:
        fit(model_of(), SavedModelCheckpoint(tmp_path / "{version}", verify=True))
    assert str(raised.value).startswith(
        f"Cannot export to {tmp_path / '1'}: expected an artifact that is whole and gives what the "
        "model gives, received signature 'serve': it gives "
    )
    assert versions_in(tmp_path) == []


def test_outputs_are_compared_with_those_of_the_moment_of_the_weights(tmp_path, monkeypatch):
    """Training goes on while an older version is looked at."""
    opened = threading.Event()
    refuse = contracts.refuse_unsound

    def held(*arguments):
        assert opened.wait(120)
        return refuse(*arguments)

    monkeypatch.setattr(contracts, "refuse_unsound", held)
    opening = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: opened.set() if epoch == 1 else None
    )
    checkpoint = SavedModelCheckpoint(tmp_path / "{version}", verify=True, max_pending=2)
    model = model_of()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    fit(model, checkpoint, opening, epochs=2)
    assert versions_in(tmp_path) == ["1", "2"]


@pytest.mark.parametrize(
    "dtype, shape", [("int32", (4,)), ("string", (1,)), ("float32", (None, 3))]
)
def test_a_batch_is_made_for_any_input(dtype, shape):
    x = keras.Input(shape, dtype=dtype, name="x")
    kinds = {
        "int32": lambda x: keras.layers.Embedding(5, 2)(x),
        "string": lambda x: keras.layers.StringLookup(vocabulary=["a"])(x),
        "float32": lambda x: keras.layers.GRU(2)(x),
    }
    model = keras.Model(x, {"y": kinds[dtype](x)})
    live = contracts.probe(ke.Exporter(model).snapshot().functions)
    for key in ("serve", "serving_default"):
        expected = model(live.inputs[key]["x"])["y"]
        np.testing.assert_allclose(live.outputs[key]["y"], expected, rtol=1e-5)
