"""Promises of `variables`: a value is stored once, held without a copy, under its known key."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import tracking, variables
from keras_export.errors import UninitializedError, UnsupportedError
from keras_export.tf_internals import trackable_object_graph_pb2

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def module(**values: Any) -> tf.Module:
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value, name=name))
    return made


def plan(obj: Any) -> variables.CheckpointPlan:
    return variables.plan_checkpoint(tracking.track(obj))


def entries(values: variables.Values) -> dict[str, Any]:
    return {entry.key: entry.tensor for group in values.groups for entry in group}


# -- keys -----------------------------------------------------------------------------------------


def test_each_value_has_one_key_and_the_object_graph_comes_with_them() -> None:
    obj = module(a=1.0, b=[2, 3])
    obj.again = obj.a
    found = entries(variables.read_values(plan(obj)))
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


# -- values of a moment ---------------------------------------------------------------------------


def test_values_are_held_without_a_copy() -> None:
    obj = module(big=np.zeros([1000, 100], "float32"))
    held = entries(variables.read_values(plan(obj)))[f"big{VALUE}"]
    again = obj.big.read_value()
    address = held.numpy().__array_interface__["data"][0]
    assert address == again.numpy().__array_interface__["data"][0]
    del again
    obj.big.assign_add(tf.ones([1000, 100]))
    assert not held.numpy().any()
    assert obj.big.numpy().all()


def test_bytes_are_those_of_the_tensors() -> None:
    obj = module(a=np.zeros([10, 10], "float32"), b=np.zeros([3], "int64"), c=np.float16(1))
    values = variables.read_values(plan(obj))
    assert values.byte_count == 400 + 24 + 2


def test_a_variable_without_a_value_is_refused_by_name() -> None:
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    obj = module(good=1.0)
    obj.late = UninitializedVariable(shape=[], dtype=tf.float32, name="late")
    words = "Cannot export obj.late: expected a variable with a value, received variable='late:0'"
    with pytest.raises(UninitializedError, match=re.escape(words)):
        variables.read_values(plan(obj))


def test_an_empty_variable_is_no_variable_without_a_value(
    tmp_path: Path, consumers: Consumers
) -> None:
    obj = module(empty=np.zeros([0, 3], "float32"), none=np.zeros([0], "int32"))
    ke.save(obj, tmp_path)
    shapes = consumers.checkpoint(tmp_path).shapes()
    assert shapes == {f"empty{VALUE}": (0, 3), f"none{VALUE}": (0,)}
    assert_same(consumers.tf(tmp_path).attribute("empty").value, np.zeros([0, 3], "float32"))


@pytest.mark.parametrize(
    "value",
    [
        np.array([True, False]),
        np.uint8([0, 255]),
        np.int64([-(2**63), 2**63 - 1]),
        np.float64([np.inf, -0.0]),
        np.float32([np.nan]),
        np.float16([0.5]),
        np.array([0.5], ml_dtypes.bfloat16),
        np.complex64([1 + 2j]),
        np.array([b"", b"\x00\xff", b"long" * 100], object),
        np.array(b"scalar", object),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_every_dtype_comes_back_bit_by_bit(
    tmp_path: Path, consumers: Consumers, value: np.ndarray
) -> None:
    ke.save(module(v=value), tmp_path)
    found = consumers.checkpoint(tmp_path).values()[f"v{VALUE}"]
    assert found.shape == value.shape
    if value.dtype == object:
        assert found.tolist() == value.tolist()
    else:
        assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())
    assert consumers.tf(tmp_path).attribute("v").dtype == tf.as_dtype(value.dtype).name


def test_a_variable_of_unknown_shape_keeps_its_freedom(
    tmp_path: Path, consumers: Consumers
) -> None:
    obj = tf.Module()
    obj.v = tf.Variable([1.0, 2.0], shape=tf.TensorShape([None]))
    ke.save(obj, tmp_path)
    loaded = consumers.tf(tmp_path)
    assert_same(loaded.attribute("v").value, np.float32([1, 2]))
    loaded.assign("v", [1.0, 2.0, 3.0])
    assert_same(loaded.attribute("v").value, np.float32([1, 2, 3]))


# -- bundles --------------------------------------------------------------------------------------


def test_one_group_is_one_file(tmp_path: Path) -> None:
    values = variables.read_values(plan(module(a=1.0, b=2.0)))
    variables.write_bundle(str(tmp_path / "variables"), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "variables.data-00000-of-00001", "variables.index",
    ]  # fmt: skip


def test_groups_are_files_of_their_own_under_one_index(
    tmp_path: Path, consumers: Consumers
) -> None:
    a, b = np.arange(100, dtype="float32"), np.arange(7, dtype="int64")
    obj = module(a=a, b=b)
    (group,) = variables.read_values(plan(obj)).groups
    values = variables.Values(tuple((entry,) for entry in group))
    variables.write_bundle(str(tmp_path / "variables"), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"variables.data-{i:05d}-of-00003" for i in range(3)), "variables.index",
    ]  # fmt: skip
    sizes = {path.stat().st_size for path in tmp_path.glob("*.data*")}
    assert {400, 56} <= sizes
    found = consumers.checkpoint(tmp_path / "variables").values()
    assert_same(found, {f"a{VALUE}": a, f"b{VALUE}": b})
    fresh = module(a=0 * a, b=0 * b)
    status = tf.train.Checkpoint(fresh).read(str(tmp_path / "variables"))
    status.assert_consumed()
    assert_same(fresh.a.numpy(), a)


def test_a_bundle_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    obj = module(a=[1.0, 2.0], s=["x", "y"])
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        variables.write_bundle(str(tmp_path / name / "v"), variables.read_values(plan(obj)))
    for suffix in (".index", ".data-00000-of-00001"):
        first, second = ((tmp_path / name / f"v{suffix}").read_bytes() for name in ("1", "2"))
        assert first == second


# -- what is refused --------------------------------------------------------------------


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
