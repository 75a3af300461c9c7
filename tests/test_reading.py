"""Promises of `reading`: many variables are read as one is, in less time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from consumers import assert_same
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

import keras_export as ke
from keras_export import reading
from keras_export.errors import UninitializedError


def _many() -> list[tf.Variable]:
    made: list[tf.Variable] = []
    for index in range(70):
        made.append(tf.Variable(tf.fill([index % 3, index % 5], float(index)), name=f"v{index}"))
        made.append(tf.Variable([index], dtype=tf.int64))
        made.append(tf.Variable(str(index)))
    return made


def test_values_come_in_the_order_of_the_variables() -> None:
    variables = _many()
    for variable, value in zip(variables, reading.read(variables), strict=True):
        assert value.dtype == variable.dtype
        assert_same(value.numpy(), variable.numpy())


def test_nothing_is_read_of_nothing() -> None:
    assert reading.read([]) == []


def test_most_variables_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[object] = []
    monkeypatch.setattr(reading, "read_one", alone.append)
    reading.read([tf.Variable(1.0) for _ in range(65)])
    assert len(alone) == 1  # 32 and 32 and the last


def test_a_value_stays_when_its_variable_changes() -> None:
    dense, rows = tf.Variable(tf.zeros([4, 2])), tf.Variable(tf.zeros([4, 2]))
    held = reading.read([dense, rows])
    dense.assign_add(tf.ones([4, 2]))
    rows.scatter_nd_update([[1]], [[5.0, 5.0]])
    # From the first update of rows on, TensorFlow changes the buffer in place.
    then = reading.read([dense, rows])
    rows.scatter_nd_update([[2]], [[7.0, 7.0]])
    assert not held[0].numpy().any()
    assert not held[1].numpy().any()
    assert_same(then[1].numpy(), np.float32([[0, 0], [5, 5], [0, 0], [0, 0]]))


def test_a_variable_that_cannot_be_read_does_not_keep_others_from_it() -> None:
    lost = UninitializedVariable(shape=[2], dtype=tf.float32, name="lost")
    good = tf.Variable([1.0, 2.0])
    try:
        values = reading.read([good, lost])
    except tf.errors.FailedPreconditionError as error:
        assert "lost" in str(error)
    else:
        assert_same(values[0].numpy(), np.float32([1, 2]))
        assert values[1].shape == [0]


def test_one_without_a_value_among_many_is_refused_by_name(tmp_path: Path) -> None:
    obj = tf.Module()
    obj.all = _many()
    obj.late = UninitializedVariable(shape=[2], dtype=tf.float32, name="late")
    with pytest.raises(UninitializedError, match=r"obj\.late"):
        ke.save(obj, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_graph_gives_tensors_of_its_own() -> None:
    with tf.Graph().as_default() as graph:
        variables = [tf.compat.v1.get_variable(f"v{i}", initializer=float(i)) for i in range(3)]
        values = reading.read(variables)
        with tf.compat.v1.Session(graph=graph) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            assert session.run(values) == [0.0, 1.0, 2.0]
