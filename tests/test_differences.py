"""What `DIFFERENCES.md` says: each deliberate difference from TensorFlow's `save`, shown once."""

from __future__ import annotations

from pathlib import Path

import artifacts
import pytest
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

import keras_export as ke

_LISTED = Path(__file__).with_name("DIFFERENCES.md")
_MOST_ALLOWED = 25


def _adder() -> tf.Module:
    obj = tf.Module()
    obj.f = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec([], name="A-b")])
    return obj


def test_there_are_few_differences_and_each_has_its_line_of_the_specification() -> None:
    rows = [x for x in _LISTED.read_text().splitlines() if x.startswith("| `")]
    assert 0 < len(rows) <= _MOST_ALLOWED
    assert all(row.split("|")[-2].strip()[0].isdigit() for row in rows)


def test_save_returns_a_report(tmp_path: Path) -> None:
    report = ke.save(_adder(), tmp_path / "m")
    assert isinstance(report, ke.ExportReport)
    assert list(report.signatures) == ["serving_default"]


def test_an_untraced_function_is_a_note_of_the_report(tmp_path: Path) -> None:
    obj = _adder()
    obj.untraced = tf.function(lambda x: x)
    report = ke.save(obj, tmp_path / "m")
    assert any("obj.untraced" in note for note in report.notes)


def test_aliases_and_fingerprints_do_not_depend_on_the_process(tmp_path: Path) -> None:
    for name in ("first", "second"):  # the process's function counter is another each time
        obj = _adder()
        options = tf.saved_model.SaveOptions(function_aliases={"alias": obj.f})
        ke.save(obj, tmp_path / name, options=options)
    assert artifacts.files(tmp_path / "first") == artifacts.files(tmp_path / "second")


def test_unnamed_tensors_of_one_argument_are_refused(tmp_path: Path) -> None:
    spec = [tf.TensorSpec([]), tf.TensorSpec([])]
    function = tf.function(lambda xs: xs[0] + xs[1], input_signature=[spec])
    with pytest.raises(ValueError, match="a name for each tensor"):
        ke.save(tf.Module(), tmp_path / "m", signatures=function)


def test_an_uninitialized_variable_is_refused(tmp_path: Path) -> None:
    obj = tf.Module()
    obj.v = UninitializedVariable(dtype=tf.float32, shape=[])
    with pytest.raises(ValueError, match=r"obj\.v"):
        ke.save(obj, tmp_path / "m")
