"""Objects that save their values in ways of their own: registered savers, `SaveableObject`s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers
from tensorflow.python.saved_model.registration import registration
from tensorflow.python.training.saving import saveable_object

import keras_export as ke


class Pair(tf.Module):
    """Two variables that a registered saver stores as one tensor."""

    def __init__(self, a: float = 0.0, b: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(a, name="a"), tf.Variable(b, name="b")


def _is_pair(obj: Any) -> bool:
    return isinstance(obj, Pair)


def _save_pairs(trackables: dict[str, Any], file_prefix: Any) -> Any:
    pairs = {name: obj for name, obj in trackables.items() if isinstance(obj, Pair)}
    tf.raw_ops.SaveV2(
        prefix=file_prefix,
        tensor_names=[f"{name}/both" for name in pairs],
        shape_and_slices=[""] * len(pairs),
        tensors=[tf.stack([pair.a, pair.b]) for pair in pairs.values()],
    )
    return file_prefix


def _restore_pairs(trackables: dict[str, Any], merged_prefix: Any) -> None:
    for name, pair in trackables.items():
        if isinstance(pair, Pair):
            (both,) = tf.raw_ops.RestoreV2(
                prefix=merged_prefix,
                tensor_names=[f"{name}/both"],
                shape_and_slices=[""],
                dtypes=[tf.float32],
            )
            # Not what the variables themselves are stored with: it shows who restored last.
            pair.a.assign(10.0 * both[0])
            pair.b.assign(10.0 * both[1])


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    registry = registration._saver_registry
    registration.register_checkpoint_saver(
        "KerasExportTest", "pairs", _is_pair, _save_pairs, _restore_pairs
    )
    registration.register_serializable("KerasExportTest", "Pair")(Pair)
    yield
    for known in (registry, registration._class_registry):
        for name in [x for x in known._registered_names if x.startswith("KerasExportTest.")]:
            known._registered_names.remove(name)
            del known._registered_map[name], known._registered_predicates[name]


class WithPair(tf.Module):
    def __init__(self, a: float, b: float, scale: float) -> None:
        super().__init__()
        self.pair, self.scale = Pair(a, b), tf.Variable(scale, name="scale")

    @tf.function(input_signature=[tf.TensorSpec([])])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": (x + self.pair.a - self.pair.b) * self.scale}


def test_a_registered_saver_is_run_by_readers_without_python(
    tmp_path: Path, consumers: Consumers
) -> None:
    obj = WithPair(7.0, 2.0, 3.0)
    ke.save(obj, tmp_path / "m")
    values = consumers.checkpoint(tmp_path / "m").values()
    np.testing.assert_array_equal(values["pair/both"], [7.0, 2.0])
    x = np.float32(1)
    for artifact in (consumers.v1(tmp_path / "m"), consumers.cpp(tmp_path / "m")):
        assert artifact.signature("serving_default", x=x)["y"] == 153.0


def test_a_registered_saver_restores_in_python_and_in_a_training_checkpoint(
    tmp_path: Path,
) -> None:
    ke.save(WithPair(7.0, 2.0, 3.0), tmp_path / "m")
    loaded = tf.saved_model.load(tmp_path / "m")
    assert loaded.f(1.0)["y"] == 153.0
    fresh = WithPair(0.0, 0.0, 0.0)
    tf.train.Checkpoint(fresh).read(str(tmp_path / "m/variables/variables")).assert_consumed()
    assert fresh.f(1.0)["y"] == 153.0


def test_a_v1_saver_saves_again_what_a_registered_saver_stored(
    tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(WithPair(7.0, 2.0, 3.0), tmp_path / "m")
    again = consumers.v1(tmp_path / "m").save(tmp_path / "again")
    before, after = (consumers.checkpoint(x).values() for x in (tmp_path / "m", again))
    assert before.keys() == after.keys()
    for key, value in before.items():
        times = 10.0 if key.startswith("pair/") else 1.0
        np.testing.assert_array_equal(after[key], times * value)


def test_a_snapshot_holds_what_a_registered_saver_wrote(tmp_path: Path) -> None:
    obj = WithPair(7.0, 2.0, 3.0)
    snapshot = ke.Exporter(obj).snapshot()
    obj.pair.a.assign(100.0)
    snapshot.write(tmp_path / "m")
    loaded = tf.saved_model.load(tmp_path / "m")
    assert loaded.f(1.0)["y"] == 153.0


class _CounterSaveable(saveable_object.SaveableObject):
    def __init__(self, variable: tf.Variable, name: str) -> None:
        spec = saveable_object.SaveSpec(variable.read_value(), "", name + "-count")
        super().__init__("count", [spec], name)
        self._variable = variable

    def restore(self, restored_tensors: Any, restored_shapes: Any) -> Any:
        return self._variable.assign(restored_tensors[0])


class Legacy(tf.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.hidden = [tf.Variable(value, name="hidden")]
        self.holder = Holder(self.hidden[0])

    @tf.function(input_signature=[tf.TensorSpec([])])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + self.hidden[0]}


class Holder(tf.Module):
    def __init__(self, variable: tf.Variable) -> None:
        super().__init__()
        object.__setattr__(self, "_held", lambda: variable)

    def _gather_saveables_for_checkpoint(self) -> dict[str, Any]:
        return {"count": lambda name: _CounterSaveable(self._held(), name)}


def test_an_object_with_saveables_keeps_its_names_and_is_restored_everywhere(
    tmp_path: Path, consumers: Consumers
) -> None:
    obj = Legacy(5.0)
    ke.save(obj, tmp_path / "m")
    checkpoint = tf.train.Checkpoint(obj).write(str(tmp_path / "checkpoint"))
    keys = [sorted(consumers.checkpoint(x).values()) for x in (tmp_path / "m", checkpoint)]
    assert keys[0] == keys[1]
    assert "holder/.ATTRIBUTES/count-count" in keys[0]
    saved = artifacts.object_at(tmp_path / "m", "holder").saveable_objects
    assert list(saved) == ["count"]
    served = consumers.everywhere(tmp_path / "m", "serving_default", x=np.float32(1))
    assert served["y"] == 6.0
    fresh = Legacy(0.0)
    tf.train.Checkpoint(fresh).read(str(tmp_path / "m/variables/variables")).assert_consumed()
    assert fresh.f(1.0)["y"] == 6.0


def test_a_table_has_the_checkpoint_keys_of_a_training_checkpoint(
    tmp_path: Path, consumers: Consumers
) -> None:
    obj = tf.Module()
    obj.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)
    obj.table.insert("a", 2.0)
    ke.save(obj, tmp_path / "m")
    prefix = tf.train.Checkpoint(obj).write(str(tmp_path / "ckpt"))
    assert consumers.checkpoint(tmp_path / "m").shapes() == consumers.checkpoint(prefix).shapes()
    obj.table.insert("a", 9.0)
    tf.train.Checkpoint(obj).read(str(tmp_path / "m/variables/variables")).assert_consumed()
    assert obj.table.lookup(tf.constant("a")) == 2.0


class State(tf.train.experimental.PythonState):
    def __init__(self, text: str) -> None:
        self.text = text

    def serialize(self) -> str:
        return self.text

    def deserialize(self, string_value: str) -> None:
        self.text = tf.compat.as_str(string_value)


def test_python_state_is_in_the_checkpoint(tmp_path: Path) -> None:
    obj = tf.Module()
    obj.state = State("twelve")
    ke.save(obj, tmp_path / "m")
    obj.state.text = "other"
    tf.train.Checkpoint(obj).read(str(tmp_path / "m/variables/variables")).assert_consumed()
    assert obj.state.text == "twelve"
    tf.saved_model.load(tmp_path / "m")
