"""Promises of `variables`: a value is stored once, under its known key."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from checkpoint_plans import VALUE, entries, module, plan
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import held_values, variables
from keras_export.errors import UninitializedError, UnsupportedError
from keras_export.tf_internals import trackable_object_graph_pb2

# -- keys -----------------------------------------------------------------------------------------


def test_each_value_has_one_key_and_the_object_graph_comes_with_them() -> None:
    obj = module(a=1.0, b=[2, 3])
    obj.again = obj.a
    found = entries(held_values.read_values(plan(obj)))
    assert sorted(found) == [variables.OBJECT_GRAPH_KEY, f"a{VALUE}", f"b{VALUE}"]
    assert_same(found[f"b{VALUE}"].numpy(), np.int32([2, 3]))


def test_a_lone_variable_is_its_own_root(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(tf.Variable([1.0, 2.0]), tmp_path)
    assert list(consumers.checkpoint(tmp_path).values()) == [VALUE[1:]]


def test_the_object_graph_leads_to_values_alone() -> None:
    obj = module(a=1.0)
    obj.empty = tf.Module()
    obj.empty.also_empty = [tf.Module()]
    obj.f = tf.function(lambda: obj.a + 1.0, input_signature=[])
    proto = trackable_object_graph_pb2.TrackableObjectGraph.FromString(plan(obj).object_graph)
    names = [child.local_name for node in proto.nodes for child in node.children]
    assert names == ["a"]
    (attribute,) = (a for node in proto.nodes for a in node.attributes)
    assert (attribute.name, attribute.checkpoint_key) == ("VARIABLE_VALUE", f"a{VALUE}")
    assert attribute.full_name == "a"


def test_the_same_object_gives_the_same_plan() -> None:
    obj = module(b=1.0, a=[2, 3])
    assert plan(obj).object_graph == plan(obj).object_graph


# -- what is refused ------------------------------------------------------------------------------


def test_a_variable_without_a_value_is_refused_by_name() -> None:
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    obj = module(good=1.0)
    obj.late = UninitializedVariable(shape=[], dtype=tf.float32, name="late")
    words = "Cannot export obj.late: expected a variable with a value, received variable='late:0'"
    with pytest.raises(UninitializedError, match=re.escape(words)):
        variables.refuse_uninitialized(plan(obj))


def test_saveables_that_cannot_be_made_are_refused_with_their_path(
    tmp_path: Path,
) -> None:
    class Old(tf.Module):
        def _gather_saveables_for_checkpoint(self) -> dict[str, Any]:
            return {"value": lambda name: tf.constant(1.0)}

    obj = tf.Module()
    obj.deep = [Old()]
    with pytest.raises(UnsupportedError) as caught:
        ke.save(obj, tmp_path / "a")
    assert str(caught.value).startswith(
        "Cannot export obj.deep[0]: expected `_gather_saveables_for_checkpoint` to give "
        "SaveableObjects or variables, received Old"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_asked_for_its_tensors_once_to_trace_and_once_for_each_write(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Counting(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked: dict[str, int] = collections.Counter()

        def _serialize_to_tensors(self) -> dict[str, Any]:
            self.asked["eager" if tf.executing_eagerly() else "traced"] += 1
            # In another order when it is traced: the names must tell.
            names = ["a", "b/c"] if tf.executing_eagerly() else ["b/c", "a"]
            return {name: tf.constant(name) for name in names}

        def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
            pass

    obj = tf.Module()
    obj.held = Counting()
    ke.save(obj, tmp_path / "saved")
    assert obj.held.asked == {"traced": 1, "eager": 1}
    exporter = ke.Exporter(obj)
    for number in range(3):
        exporter.write(tmp_path / str(number))
    assert obj.held.asked == {"traced": 2, "eager": 4}
    assert consumers.checkpoint(tmp_path / "saved").values() == {
        "held/.ATTRIBUTES/a": b"a",
        "held/.ATTRIBUTES/b..Sc": b"b/c",
    }


def test_an_object_that_serializes_itself_is_restored_by_itself(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Custom(tf.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.inner = tf.Variable(value)

        def _serialize_to_tensors(self) -> dict[str, Any]:
            return {"half": self.inner / 2.0, "other": tf.constant([7])}

        def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
            self.inner.assign(tensors["half"] * 2.0)

    obj = tf.Module()
    obj.custom = Custom(6.0)
    ke.save(obj, tmp_path)
    expected = tf.train.Checkpoint(obj).write(tmp_path / "checkpoint")
    ours = consumers.checkpoint(tmp_path).values()
    assert_same(ours, consumers.checkpoint(expected).values())
    fresh = tf.Module()
    fresh.custom = Custom(0.0)
    tf.train.Checkpoint(fresh).read(str(tmp_path / "variables/variables"))
    assert float(fresh.custom.inner) == 6.0


def test_bytes_are_those_of_the_variables() -> None:
    obj = module(a=np.zeros([10, 10], "float32"), b=np.zeros([3], "int64"), c=np.float16(1))
    obj.free = tf.Variable([1.0], shape=tf.TensorShape(None))
    assert plan(obj).byte_count == 400 + 24 + 2
