"""`diff` tells what a client would notice and how far the values moved, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli

_WRITERS = ("ours", "keras", "tensorflow")


def _model(units: int = 5, rate: float = 0.25) -> keras.Model:
    x = keras.Input((4,), name="x")
    y = keras.layers.Dense(units, name="hidden")(x)
    y = keras.layers.LeakyReLU(negative_slope=rate, name="leaky")(y)
    return keras.Model(x, keras.layers.Dense(2, name="out")(y))


def _export(model: keras.Model, folder: Path, writer: str) -> Path:
    if writer == "ours":
        ke.export(model, folder)
    elif writer == "keras":
        artifacts.export_with_keras(model, folder)
    else:
        tf.saved_model.save(model, str(folder))
    return folder


@pytest.mark.parametrize("writer", _WRITERS)
def test_between_two_exports_of_one_model_nothing_differs(
    writer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model()
    a, b = (_export(model, tmp_path / name, writer) for name in "ab")
    found = ke.diff(a, b)
    assert found.same and not found and "no difference" in str(found)
    capsys.readouterr()  # Keras 3.4's own export always prints.
    assert cli.main(["diff", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.to_dict()


@pytest.mark.parametrize("writer", _WRITERS)
def test_it_tells_which_layers_moved_and_how_far(
    writer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model()
    kernel = model.get_layer("hidden").kernel
    a = _export(model, tmp_path / "a", writer)
    before = np.array(kernel)
    step = np.zeros_like(before)
    step[1, 2], step[3, 4] = 0.3, -0.4
    kernel.assign(before + step)
    b = _export(model, tmp_path / "b", writer)
    found = ke.diff(a, b)
    (layer,) = found.layers
    assert (layer.name, layer.moved, layer.variables) == ("hidden", 1, 2)
    assert layer.distance == pytest.approx(0.5, rel=1e-5)
    assert layer.relative == pytest.approx(0.5 / np.linalg.norm(before), rel=1e-5)
    (variable,) = found.variables
    assert (variable.name, variable.change) == ("hidden/kernel", "moved")
    assert variable.largest == pytest.approx(0.4, rel=1e-5)
    assert not found.signatures and not found.ops and not found.attributes
    assert cli.main(["diff", str(a), str(b)]) == 1
    assert "layer hidden: 1 of 2 variables moved by 0.5 (" in capsys.readouterr().out
    assert "<td>hidden</td><td>1 of 2</td><td>0.5</td>" in found._repr_html_()


def test_layers_come_in_the_order_of_how_far_they_moved(tmp_path: Path) -> None:
    model = _model()
    a = _export(model, tmp_path / "a", "ours")
    model.get_layer("hidden").bias.assign(np.ones(5))
    out = model.get_layer("out").kernel
    out.assign(np.array(out) * 1.5)
    found = ke.diff(a, _export(model, tmp_path / "b", "ours")).layers
    assert [(x.name, x.moved) for x in found] == [("hidden", 1), ("out", 1)]
    assert found[0].relative > found[1].relative
    alone = np.linalg.norm(out / 1.5) * 0.5
    assert found[1].distance == pytest.approx(alone, rel=1e-5)


def test_changes_of_a_signature_are_told_one_by_one(tmp_path: Path) -> None:
    def export(name: str, spec: dict[str, tf.TensorSpec], outputs: dict[str, Any]) -> Path:
        module = tf.Module()
        module.f = tf.function(
            lambda **inputs: {
                key: tf.cast(tf.reduce_sum(inputs["x"]), dtype) for key, dtype in outputs.items()
            }
        )
        concrete = module.f.get_concrete_function(**spec)
        ke.save(module, tmp_path / name, {"serve": concrete, name: concrete})
        return tmp_path / name

    a = export("a", {"x": tf.TensorSpec([None, 3]), "y": tf.TensorSpec([])}, {"z": tf.float32})
    b = export(
        "b",
        {"x": tf.TensorSpec([None, 4]), "w": tf.TensorSpec([])},
        {"z": tf.int32, "u": tf.float32},
    )
    found = ke.diff(a, b).signatures
    assert found["serve"] == (
        "input w added: float32[]",
        "input x: float32[?, 3] -> float32[?, 4]",
        "input y removed: float32[]",
        "output u added: float32[]",
        "output z: float32[] -> int32[]",
    )
    assert found["a"][0].startswith("removed: (") and found["b"][0].startswith("added: (")


def test_arguments_in_another_order_are_told(tmp_path: Path) -> None:
    def export(name: str, order: tuple[str, str]) -> Path:
        inputs = {key: keras.Input((2,), name=key) for key in order}
        output = keras.layers.Subtract(name="out")([inputs["a"], inputs["b"]])
        ke.export(keras.Model(list(inputs.values()), output), tmp_path / name)
        return tmp_path / name

    found = ke.diff(export("ab", ("a", "b")), export("ba", ("b", "a")))
    assert found.functions == {
        "serve": "([a: float32[?, 2], b: float32[?, 2]]) -> ([b: float32[?, 2], a: float32[?, 2]])"
    }
    assert not found.signatures  # their inputs have names, and no order


def test_shapes_ops_and_attributes_that_differ_are_told(tmp_path: Path) -> None:
    a = _export(_model(), tmp_path / "a", "ours")
    found = ke.diff(a, _export(_model(units=6), tmp_path / "b", "ours"))
    assert "hidden/kernel reshaped: float32[4, 5] -> float32[4, 6]" in map(str, found.variables)
    # The same ops, one of them with another slope.
    found = ke.diff(a, _export(_model(rate=0.5), tmp_path / "c", "ours"))
    assert found.attributes == {"LeakyRelu": 1} and not found.ops
    x = keras.Input((4,), name="x")
    tall = keras.Model(x, keras.layers.Softmax(name="out")(keras.layers.Dense(2, name="hidden")(x)))
    found = ke.diff(a, _export(tall, tmp_path / "d", "ours"))
    assert found.ops["Softmax"] == (0, 1) and found.ops["MatMul"] == (2, 1)
    assert {x.name for x in found.variables if x.change == "removed"} == {"out/kernel", "out/bias"}


def test_variables_are_matched_across_writers(tmp_path: Path) -> None:
    model = _model()
    a, b = _export(model, tmp_path / "a", "ours"), _export(model, tmp_path / "b", "keras")
    found = ke.diff(a, b)
    assert not found.variables and not found.layers  # Keras stores each twice
    assert found.sizes["values"][1] == 2 * found.sizes["values"][0]


def test_names_that_a_process_counted_up_are_matched_by_place(tmp_path: Path) -> None:
    def export(name: str) -> Path:
        model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)])
        model.set_weights([np.ones([3, 2]), np.zeros(2)])
        ke.export(model, tmp_path / name, output_names=["y"])
        return tmp_path / name

    assert ke.diff(export("a"), export("b")).same


def test_an_asset_that_changed_is_told(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    paths = []
    for text in ("cat\n", "dog\n"):
        file.write_text(text)
        module = tf.Module()
        module.words = tf.saved_model.Asset(str(file))
        ke.save(module, tmp_path / text.strip())
        paths.append(tmp_path / text.strip())
    assert ke.diff(*paths).assets == ("words.txt changed",)


def test_strings_and_integers_are_compared_too(tmp_path: Path) -> None:
    module = tf.Module()
    module.word, module.count = tf.Variable("cat"), tf.Variable([3, 4])
    ke.save(module, tmp_path / "a")
    module.word.assign("dog")
    module.count.assign([0, 4])
    ke.save(module, tmp_path / "b")
    by_name = {x.name: x for x in ke.diff(tmp_path / "a", tmp_path / "b").variables}
    assert by_name["word"].change == "moved" and by_name["word"].distance is None
    assert (by_name["count"].distance, by_name["count"].relative) == (3.0, 0.6)


def test_unreadable_input_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _export(_model(), tmp_path / "a", "ours")
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_artifacts_are_compared_without_tensorflow(tmp_path: Path) -> None:
    model = _model()
    paths = [str(_export(model, tmp_path / writer, writer)) for writer in ("ours", "keras")]
    code = (
        "import sys, keras_export.cli as cli\n"
        "code = cli.main(['diff', *sys.argv[1:]])\n"
        "print('tensorflow' in sys.modules, code)"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False 1", done.stderr
