"""What a function writes, and what the export says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import effects, functions, tracking


class Counters(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = tf.Variable(1.0)
        self.direct = tf.Variable(0.0)
        self.called = tf.Variable(0.0)
        self.looped = tf.Variable(0.0)
        self.branched = tf.Variable(0.0)
        self.scattered = tf.Variable([0.0, 0.0])

    @tf.function
    def bump(self) -> Any:
        return self.called.assign_add(1.0)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def nothing(self, x: Any) -> Any:
        return self.read + tf.gather(self.scattered, x)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32)])
    def everything(self, x: Any) -> Any:
        self.direct.assign(self.read)
        self.bump()
        for _ in tf.range(x):
            self.looped.assign_add(1.0)
        if x > 1:
            self.branched.assign(2.0)
        self.scattered.scatter_nd_update([[0]], [1.0])
        return self.read


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("nothing", []),
        ("everything", ["branched", "called", "direct", "looped", "scattered"]),
    ],
)
def test_writes_are_found_in_calls_loops_and_branches(name: str, written: list[str]) -> None:
    module = Counters()
    tracked = tracking.track(module)
    collector = functions.FunctionCollector(tracked)
    bound = collector.add(getattr(module, name).get_concrete_function(), name)
    found = effects.written_by(collector.library, bound)
    assert sorted(node.path[-1] for node in found) == written


def stateful_rnn() -> Any:
    x = keras.Input((5, 4), batch_size=2, name="x")
    return keras.Model(x, keras.layers.LSTM(3, stateful=True, name="rnn")(x))


def test_state_that_a_model_updates_by_design_is_exported_and_reported(tmp_path: Path) -> None:
    notes = ke.export(stateful_rnn(), tmp_path / "a").notes
    assert [note for note in notes if note.startswith("each call updates 'rnn/")]


def test_state_updates_can_be_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one that updates rnn/.*state_updates='report'"):
        ke.export(stateful_rnn(), tmp_path / "a", state_updates="refuse")
    assert list(tmp_path.iterdir()) == []


def test_batch_normalization_in_training_mode_is_refused_by_its_layers_name(
    tmp_path: Path,
) -> None:
    class Careless(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = keras.layers.BatchNormalization(name="norm")

        def call(self, x: Any) -> Any:
            return self.norm(x, training=True)

    model = Careless()
    model(tf.zeros((2, 4)))
    with pytest.raises(ValueError, match="the layer 'norm' updates its batch statistics"):
        ke.export(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_dropout_and_batch_normalization_in_inference_mode_update_nothing(tmp_path: Path) -> None:
    layers = [
        keras.Input((4,), name="x"),
        keras.layers.Dropout(0.5),
        keras.layers.BatchNormalization(name="norm"),
    ]
    notes = ke.export(keras.Sequential(layers), tmp_path / "a", state_updates="refuse").notes
    assert not [note for note in notes if "updates" in note]
