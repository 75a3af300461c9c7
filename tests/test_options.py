"""Promises of `SaveOptions`: each field that is no other module's has its effect in the artifact.

Tags, the skipped saver, namespaces and devices are in `test_metagraph.py`, custom gradients in
`test_gradients.py`, aliases in `test_exporter.py`, replicas in `test_strategies.py`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers, assert_same
from tensorflow.core.framework import graph_debug_info_pb2

import keras_export as ke

X = np.float32([1.0, 2.0])
WRITERS = {"tf": tf.saved_model.save, "ours": ke.save}


class Checking(tf.Module):
    """Checks and prints on its way, and holds variables of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = tf.Variable([2.0, 3.0], name="scale")
        self.table = tf.Variable(tf.reshape(tf.range(60.0), [20, 3]), name="table")

    @tf.function(input_signature=[tf.TensorSpec([2], name="x")])
    def f(self, x: tf.Tensor) -> Any:
        tf.debugging.assert_positive(x)
        tf.print("checking", x)
        x = tf.debugging.check_numerics(x, "no number", name="the_check")
        return {"y": x * self.scale + self.table[0, :2]}


def test_every_field_is_known() -> None:
    """A field that a later TensorFlow adds must get a meaning, and its test."""
    known = {
        "namespace_whitelist", "save_debug_info", "function_aliases", "experimental_debug_stripper",
        "experimental_io_device", "experimental_variable_policy", "experimental_custom_gradients",
        "experimental_image_format", "experimental_skip_saver", "experimental_sharding_callback",
        "extra_tags",
    }  # fmt: skip
    assert set(inspect.signature(tf.saved_model.SaveOptions).parameters) <= known


def test_debug_information_leads_from_nodes_to_lines_of_code(tmp_path: Path) -> None:
    ke.save(Checking(), tmp_path, options=ke.SaveOptions(save_debug_info=True))
    content = (tmp_path / "debug" / "saved_model_debug_info.pb").read_bytes()
    info = graph_debug_info_pb2.GraphDebugInfo.FromString(content)
    (name,) = (x for x in artifacts.library(tmp_path) if "the_check" in _node_names(tmp_path, x))
    keys = {*info.traces, *info.name_to_trace_id}
    assert f"the_check@{name}" in keys
    assert any(file == __file__ for file in info.files)


def _node_names(export_dir: Path, function: str) -> set[str]:
    return {node.name for node in artifacts.library(export_dir)[function].node_def}


def test_without_debug_information_there_is_none(tmp_path: Path) -> None:
    ke.save(Checking(), tmp_path)
    assert not (tmp_path / "debug").exists()


def test_the_io_device_writes_the_variables(tmp_path: Path) -> None:
    """On one machine every device has the same files; one that is not there cannot write."""
    here = ke.SaveOptions(experimental_io_device="/job:localhost/device:CPU:0")
    ke.save(Checking(), tmp_path / "default")
    ke.save(Checking(), tmp_path / "here", options=here)
    assert artifacts.files(tmp_path / "here") == artifacts.files(tmp_path / "default")
    elsewhere = ke.SaveOptions(experimental_io_device="/job:elsewhere")
    with pytest.raises(tf.errors.InvalidArgumentError, match="elsewhere"):
        ke.save(Checking(), tmp_path / "elsewhere", options=elsewhere)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(
    not hasattr(tf.train.experimental, "MaxShardSizePolicy"), reason="TensorFlow has no callbacks"
)
def test_a_sharding_callback_divides_the_variables(tmp_path: Path, consumers: Consumers) -> None:
    for name, save in WRITERS.items():
        policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=100)
        options = tf.saved_model.SaveOptions(experimental_sharding_callback=policy)
        save(Checking(), str(tmp_path / name), options=options)
    ours, theirs = (sorted((tmp_path / name / "variables").iterdir()) for name in ("ours", "tf"))
    assert [file.name for file in ours] == [file.name for file in theirs]
    assert len(ours) > 3
    assert_same(consumers.everywhere(tmp_path / "ours", x=X), {"y": np.float32([2, 7])})
    values = consumers.checkpoint(tmp_path / "ours").values()
    assert_same(values, consumers.checkpoint(tmp_path / "tf").values())
    live = Checking()
    live.table.assign(tf.zeros([20, 3]))
    tf.train.Checkpoint(live).restore(str(tmp_path / "ours/variables/variables")).expect_partial()
    assert_same(live.table.numpy(), np.arange(60, dtype="float32").reshape(20, 3))


def test_the_debug_stripper_takes_checks_and_prints_out(
    tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(Checking(), tmp_path / "whole")
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        with pytest.raises(ConsumerError):
            reader(tmp_path / "whole").signature(x=-X)
    options = ke.SaveOptions(experimental_debug_stripper=True)
    ke.save(Checking(), tmp_path / "stripped", options=options)
    assert not {"Assert", "PrintV2", "CheckNumerics"} & set(artifacts.ops(tmp_path / "stripped"))
    assert_same(consumers.everywhere(tmp_path / "stripped", x=-X), {"y": np.float32([-2, -5])})


def test_options_may_be_used_again(tmp_path: Path) -> None:
    checking = Checking()
    options = ke.SaveOptions(namespace_whitelist=["Mine"], function_aliases={"f": checking.f})
    before = {name: getattr(options, name) for name in options.__slots__}
    for name in ("first", "second"):
        ke.save(checking, tmp_path / name, options=options)
    assert {name: getattr(options, name) for name in options.__slots__} == before
    assert artifacts.files(tmp_path / "first") == artifacts.files(tmp_path / "second")
