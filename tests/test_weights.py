"""`show --weights` tells what the values look like, as NumPy computes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli, weights


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = tf.Module()
    module.big = tf.Variable(np.random.default_rng(5).normal(3, 2, [700, 3000]).astype("f4"))
    module.some = tf.Variable([0.0, 4.0, np.inf, np.nan])
    module.half = tf.Variable(tf.constant([1.5, -2.5], tf.bfloat16))
    module.ids = tf.Variable([[7, 0], [0, 1]])
    module.none = tf.Variable(tf.constant([np.nan, np.nan]))
    module.empty = tf.Variable(tf.zeros([0, 3]))
    module.word = tf.Variable("cat")
    path = tmp_path_factory.mktemp("weights") / "a"
    ke.save(module, path)
    np.save(path.parent / "big.npy", module.big.numpy())
    return path


def test_the_numbers_are_those_of_numpy(export_dir: Path) -> None:
    found = {x.name: x for x in weights.statistics(export_dir)}
    big, expected = found["big"], np.load(export_dir.parent / "big.npy").astype("f8")
    assert next(iter(found)) == "big" and big.spec == "float32[700, 3000]"
    assert big.mean == pytest.approx(expected.mean(), rel=1e-9)
    assert big.deviation == pytest.approx(expected.std(), rel=1e-9)
    assert big.norm == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert (big.smallest, big.largest) == (expected.min(), expected.max())
    assert (big.zeros, big.not_finite) == (0, 0)


def test_what_is_not_finite_is_counted_and_left_out(export_dir: Path) -> None:
    found = {x.name: x for x in weights.statistics(export_dir)}
    assert (found["some"].mean, found["some"].zeros, found["some"].not_finite) == (2.0, 1, 2)
    assert (found["none"].mean, found["none"].not_finite) == (None, 2)
    assert (found["ids"].mean, found["ids"].zeros, found["ids"].largest) == (2.0, 2, 7.0)
    assert (found["half"].smallest, found["half"].largest) == (-2.5, 1.5)
    assert found["word"].mean is None and found["empty"].mean is None


def test_the_command_shows_them_as_text_and_as_json(
    export_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(export_dir), "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in lines if line.startswith("ids "))
    assert row == ["ids", "int32[2,", "2]", "2", "2.915", "0", "7", "2", "0"]
    assert cli.main(["show", str(export_dir), "--weights", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["weights"]
    assert {x["name"]: x["zeros"] for x in shown}["ids"] == 2
