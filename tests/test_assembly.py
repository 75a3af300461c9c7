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
        object.__setattr__(self, "collecting", gc.isenabled())
        return x * self.factor


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_during_an_export_and_is_then_as_it_was(
    enabled: bool, tmp_path: Path
) -> None:
    module = Scale()
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        ke.save(module, tmp_path / "a")
        assert gc.isenabled() == enabled and not module.collecting
    finally:
        gc.enable() if before else gc.disable()


def test_the_collector_runs_again_after_a_refused_export(tmp_path: Path) -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="expected a trackable"):
        ke.save(object(), tmp_path / "a")
    module = tf.Module()
    module.signatures = tf.Variable(1.0)
    with pytest.raises(ke.ExportError):
        ke.save(module, tmp_path / "a")
    assert gc.isenabled() and list(tmp_path.iterdir()) == []
