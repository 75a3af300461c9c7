"""A signature is run from the command line, whoever wrote the artifact."""

from __future__ import annotations

import json
from pathlib import Path

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli

_ROWS = np.float32([[1, 2, 3, 4], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, name="out")(x))
    ke.export(model, folder / "ours")
    artifacts.export_with_keras(model, folder / "keras")
    tf.saved_model.save(model, str(folder / "tensorflow"))
    np.save(folder / "expected.npy", model(_ROWS).numpy())
    np.save(folder / "x.npy", _ROWS)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("writer", ["ours", "keras", "tensorflow"])
def test_inputs_go_in_and_outputs_come_out(
    writer: str, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(exports[writer]), "--input", str(exports["x.npy"])]
    expected = np.load(exports["expected.npy"])
    assert cli.main([*arguments, "--output", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5)
    assert capsys.readouterr().out == ""
    assert cli.main(arguments) == 0
    (shown,) = json.loads(capsys.readouterr().out).values()
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--signature", "sreve"], "one of ['serve', 'serving_default'], received 'sreve'"),
        ([], "expected the inputs ['x'], received []"),
        (["--input", "none.npz"], "none.npz"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    exports: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["run", str(exports["ours"]), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_defaults_and_strings_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, twice = tf.Module(), tf.constant(2)
    module.f = tf.function(
        lambda word, times=twice: tf.strings.reduce_join(tf.repeat(word, times)),
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)],
    )
    ke.save(module, tmp_path / "a")
    (tmp_path / "in.json").write_text('{"word": ["a", "b"]}')
    arguments = ["run", str(tmp_path / "a"), "--input", str(tmp_path / "in.json")]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"output_0": "aabb"}
    (tmp_path / "times.json").write_text("3")
    assert cli.main([*arguments, "--input", f"times={tmp_path}/times.json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output_0": "aaabbb"}


def test_ragged_and_sparse_inputs_of_tensorflow_1_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    v1 = tf.compat.v1
    describe = v1.saved_model.utils.build_tensor_info
    with v1.Graph().as_default(), v1.Session() as session:
        words = v1.ragged.placeholder(tf.int64, 1, [])
        weights = v1.sparse_placeholder(tf.float32, [None, 3])
        signature = v1.saved_model.signature_def_utils.build_signature_def(
            {"words": describe(words), "weights": describe(weights)},
            {"twice": describe(words * 2), "weights": describe(weights)},
        )
        builder = v1.saved_model.Builder(str(tmp_path / "v1"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serve": signature})
        builder.save()
    (tmp_path / "in.json").write_text('{"words": [[1, 2], [3, 0]], "weights": [[0, 0, 5]]}')
    assert cli.main(["run", str(tmp_path / "v1"), "--input", str(tmp_path / "in.json")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"twice": [[2, 4], [6, 0]], "weights": [[0.0, 0.0, 5.0]]}
    report = ke.verify(tmp_path / "v1")
    assert report.ok and report.checked["signatures"] == 1


def test_what_the_graph_refuses_is_one_line(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: tf.gather([1.0, 2.0], tf.cast(x, tf.int32)),
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    ke.save(module, tmp_path / "a")
    (tmp_path / "x.json").write_text("[-1.0]")
    assert cli.main(["run", str(tmp_path / "a"), "--input", str(tmp_path / "x.json")]) == 1
    error = capsys.readouterr().err
    assert "Cannot run 'serving_default'" in error and len(error.splitlines()) == 1
