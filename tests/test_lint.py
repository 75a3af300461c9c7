"""What may be a trouble elsewhere is said, with its place and a remedy; the rest is quiet."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
import tfjs_ops

import keras_export as ke


class Troubles(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0, name="counter/count")

    @tf.function(input_signature=[tf.TensorSpec([8, None], tf.float32, name="x")])
    def served(self, x: Any) -> Any:
        self.count.assign_add(1)
        words = tf.strings.lower(tf.constant(["/home/me/vocabulary.txt"]))
        noise = tf.random.normal(tf.shape(x))
        return {"sum": x + noise, "words": words}

    @tf.function(input_signature=[])
    def not_served(self) -> Any:
        return tf.random.normal([3])


def test_each_trouble_is_named_with_its_place_and_a_remedy(tmp_path: Path) -> None:
    module = Troubles()
    ke.save(module, tmp_path, signatures=module.served)
    report = ke.check(tmp_path)
    assert report.ok and report.findings == ()
    found = {finding.subject: finding for finding in report.advice}
    assert sorted((x.problem, x.subject) for x in report.advice) == [
        ("path", "Const"),
        ("shape", "'x' of 'serving_default'"),
        ("state", "AssignAddVariableOp"),
        ("state", "RandomStandardNormal"),
        ("text", "StringLower"),
    ]
    assert "batches of 8 only" in found["'x' of 'serving_default'"].message
    assert "'/home/me/vocabulary.txt'" in found["Const"].message
    assert found["AssignAddVariableOp"].layer == "counter"
    assert all(x.remedy and x.effect == "advice" for x in report.advice)
    assert "advice: StringLower works on text" in str(report)
    assert report.to_dict()["advice"][0]["effect"] == "advice"


def test_a_plain_model_gets_no_advice(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    ke.export(model, tmp_path / "ours")
    model.export(tmp_path / "keras")
    assert ke.check(tmp_path / "ours").advice == ke.check(tmp_path / "keras").advice == ()


def test_an_asset_is_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\nb\n")
    lookup = keras.layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))
    model = keras.Sequential([keras.Input((1,), dtype="string"), lookup])
    for name, write in (("ours", ke.export), ("tensorflow", tf.saved_model.save)):
        write(model, str(tmp_path / name))
        assert [x.problem for x in ke.check(tmp_path / name).advice] == []


def test_an_input_that_is_free_or_unknown_in_shape_is_named(tmp_path: Path) -> None:
    ke.export(keras.Sequential([keras.Input((None, 3), name="x"), keras.layers.Dense(1)]), tmp_path)
    advice = ke.check(tmp_path).advice
    assert {x.message for x in advice} == {
        "The input 'x' of 'serve' has free sizes besides the batch: (None, None, 3).",
        "The input 'x' of 'serving_default' has free sizes besides the batch: (None, None, 3).",
    }


class CallsPython(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def served(self, x: Any) -> Any:
        return tf.numpy_function(lambda value: value, [x], tf.float32)


def test_python_that_the_artifact_leaves_behind_is_a_refusal(tmp_path: Path) -> None:
    module = CallsPython()
    ke.save(module, tmp_path, signatures=module.served)
    report = ke.check(tmp_path, "tensorflow>=2.12")
    assert not report.loads and report.oldest is None
    assert "calls Python code" in report.findings[0].message


# -- a target of an export ------------------------------------------------------------------------


class Top(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def served(self, x: Any) -> Any:
        return tf.raw_ops.TopKV2(input=x, k=1, index_type=tf.int64).indices


def test_what_the_target_cannot_load_is_not_published(tmp_path: Path) -> None:
    module = Top()
    exporter = ke.Exporter(module, module.served, target="tensorflow>=2.12")
    with pytest.raises(ke.ExportError, match=r"target='tensorflow>=2.12':\n  refused: .*TopKV2"):
        exporter.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    ke.Exporter(module, module.served, target="tensorflow>=2.13").write(tmp_path / "out")
    assert ke.check(tmp_path / "out").oldest == "2.13"


def test_a_wrong_target_is_refused_before_the_work(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"Cannot check: expected target='tensorflow==2\.15'"):
        ke.export(model, tmp_path / "out", target="tensorflaw==2.15")
    report = ke.export(model, tmp_path / "out", target="tf-serving==2.14")
    assert Path(report.export_dir).is_dir()


# -- converters -----------------------------------------------------------------------------------


def test_litert_names_the_ops_that_it_has_not_and_their_layers(tmp_path: Path) -> None:
    text = keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string", name="x"), text])
    ke.export(model, tmp_path / "text")
    report = ke.check(tmp_path / "text", "tflite")
    assert not report.ok
    subjects = {finding.subject for finding in report.findings}
    assert {"StringLower", "StaticRegexReplace"} <= subjects
    first = next(x for x in report.findings if x.subject == "StringLower")
    assert first.readers == ("litert",) and first.function and "SELECT_TF_OPS" in first.remedy
    ke.export(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), tmp_path / "plain")
    assert ke.check(tmp_path / "plain", "tflite").ok


def test_tensorflow_js_is_judged_by_the_list_of_its_converter(tmp_path: Path) -> None:
    text = keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string", name="x"), text])
    ke.export(model, tmp_path / "text")
    report = ke.check(tmp_path / "text", "tfjs")
    subjects = {finding.subject for finding in report.findings}
    assert not report.ok and "StringLower" in subjects and "StaticRegexReplace" not in subjects
    first = next(x for x in report.findings if x.subject == "StringLower")
    assert first.readers == ("tfjs",) and first.function and "in front" in first.remedy
    layers = [keras.Input((9,), dtype="int32"), keras.layers.Embedding(5, 4),
              keras.layers.Conv1D(3, 2), keras.layers.BatchNormalization(),
              keras.layers.LSTM(4), keras.layers.Dense(1, "sigmoid")]  # fmt: skip
    ke.export(keras.Sequential(layers), tmp_path / "plain")
    assert ke.check(tmp_path / "plain", "tfjs").ok


class Apart(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
        compiled = tf.function(lambda x: x * 2.0, jit_compile=True)
        spec = tf.TensorSpec([None], tf.float32, name="x")
        self.compiled = tf.function(compiled, input_signature=[spec])
        self.looked_up = tf.function(
            lambda x: self.table.lookup(tf.cast(x, tf.int64)), input_signature=[spec]
        )


def test_tensorflow_js_takes_no_compiled_function_no_table_that_changes_and_no_bfloat16(
    tmp_path: Path,
) -> None:
    module = Apart()
    for name in ("compiled", "looked_up"):
        ke.save(module, tmp_path / name, signatures=getattr(module, name))
    dense = keras.layers.Dense(1, dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((3,)), dense, keras.layers.Activation("linear")])
    ke.export(model, tmp_path / "half")
    found = {
        name: "".join(x.message for x in ke.check(tmp_path / name, "tfjs").findings)
        for name in ("compiled", "looked_up", "half")
    }
    assert "the function of PartitionedCall, which is compiled apart" in found["compiled"]
    assert "no op MutableHashTableV2" in found["looked_up"]
    assert "no weights of bfloat16" in found["half"]


def test_the_list_for_tensorflow_js_is_read_from_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "tensorflowjs-9.8.7-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("tensorflowjs/op_list/b.json", '[{"tfOpName": "Mul"}]')
        content.writestr("tensorflowjs/op_list/a.json", '[{"tfOpName": "Sub"}]')
        content.writestr("tensorflowjs/other.json", '[{"tfOpName": "Div"}]')
    tfjs_ops.main(["--wheel", str(wheel), "--out", str(tmp_path / "ops.json")])
    written = json.loads((tmp_path / "ops.json").read_text())
    assert written == {"tensorflowjs": "9.8.7", "ops": ["Mul", "Sub"]}


def test_a_converter_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ke.export(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tf2onnx is not installed"):
        ke.check(tmp_path, "onnx")
