"""The order of the steps, and what stays as it was around them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import tensorflow as tf

import keras_export as ke


class Scale(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def scale(self, x: tf.Tensor) -> tf.Tensor:
        object.__setattr__(self, "thresholds", gc.get_threshold())
        return x * self.factor


def test_nothing_old_is_collected_during_an_export_and_thresholds_are_then_as_they_were(
    tmp_path: Path,
) -> None:
    module, before = Scale(), gc.get_threshold()
    try:
        gc.set_threshold(701, 11, 12)
        ke.save(module, tmp_path / "a")
        assert gc.get_threshold() == (701, 11, 12)
    finally:
        gc.set_threshold(*before)
    assert module.thresholds[:2] == (701, 11) and module.thresholds[2] > 10**6
    assert gc.isenabled()


def test_thresholds_are_as_they_were_after_a_refused_export(tmp_path: Path) -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="expected a trackable"):
        ke.save(object(), tmp_path / "a")
    module = tf.Module()
    module.signatures = tf.Variable(1.0)
    with pytest.raises(ke.ExportError):
        ke.save(module, tmp_path / "a")
    assert gc.get_threshold() == before and list(tmp_path.iterdir()) == []
