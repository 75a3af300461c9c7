"""Promises of `held_values`: a value is held without a copy and written bit by bit."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_plans import VALUE, entries, module, plan
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import held_values

# -- values of a moment ---------------------------------------------------------------------------


def test_values_are_held_without_a_copy() -> None:
    obj = module(big=np.zeros([1000, 100], "float32"))
    held = entries(held_values.read_values(plan(obj)))[f"big{VALUE}"]
    again = obj.big.read_value()
    address = held.numpy().__array_interface__["data"][0]
    assert address == again.numpy().__array_interface__["data"][0]
    del again
    obj.big.assign_add(tf.ones([1000, 100]))
    assert not held.numpy().any()
    assert obj.big.numpy().all()


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
    values = held_values.read_values(plan(module(a=1.0, b=2.0)))
    held_values.write_bundle(str(tmp_path / "variables"), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "variables.data-00000-of-00001", "variables.index",
    ]  # fmt: skip


def test_groups_are_files_of_their_own_under_one_index(
    tmp_path: Path, consumers: Consumers
) -> None:
    a, b = np.arange(100, dtype="float32"), np.arange(7, dtype="int64")
    obj = module(a=a, b=b)
    (group,) = held_values.read_values(plan(obj)).groups
    values = held_values.Values(tuple((entry,) for entry in group))
    held_values.write_bundle(str(tmp_path / "variables"), values)
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
        held_values.write_bundle(str(tmp_path / name / "v"), held_values.read_values(plan(obj)))
    for suffix in (".index", ".data-00000-of-00001"):
        first, second = ((tmp_path / name / f"v{suffix}").read_bytes() for name in ("1", "2"))
        assert first == second
