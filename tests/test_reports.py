"""Promises of `reports` and `clients`: a report says how to call what was exported."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers

import keras_export as ke
from keras_export.errors import ArgumentError


def several() -> keras.Model:
    x = keras.Input((2, 2), name="x")
    flag = keras.Input((), dtype="bool", name="flag")
    count = keras.Input((3,), dtype="int64", name="count")
    word = keras.Input((1,), dtype="string", name="word")
    ids = keras.layers.StringLookup(vocabulary=["a"])(word)
    total = keras.ops.sum(x, (1, 2)) + keras.ops.cast(flag, "float32")
    return keras.Model([x, flag, count, word], {"total": total, "ids": ids, "count": count + 1})


def body_of(command: str) -> tuple[dict[str, Any], str]:
    tool, option, body, url = shlex.split(command)
    assert (tool, option) == ("curl", "-d")
    return json.loads(body), url


def test_each_printed_call_runs_as_it_stands(tmp_path: Path, consumers: Consumers) -> None:
    model = several()
    text = keras.layers.TextVectorization(vocabulary=["a"], output_mode="multi_hot", name="t")
    reader = ke.Endpoint(lambda text_in: {"n": text(text_in)}, tf.TensorSpec([None], tf.string))
    signatures = {"text": ke.Endpoint(reader.call, reader.input_signature, uses=[text])}
    report = ke.export(model, tmp_path / "7", signatures=signatures)
    printed = [line.partition(": ") for line in map(str.strip, str(report).splitlines())]
    calls = [rest for kind, _, rest in printed if kind == "call"]
    assert len(calls) == 2  # `serve` and `serving_default` are one
    for call in calls:
        results = eval(call, {"tf": tf})
        assert all(value.shape.rank for value in results.values())
    commands = [rest for kind, _, rest in printed if kind == "curl"]
    assert len(commands) == 2
    cpp = consumers.cpp(tmp_path / "7")
    for command in commands:
        body, url = body_of(command)
        assert url == f"http://localhost:8501/v1/models/{tmp_path.name}:predict"
        specs = report.signatures[body["signature_name"]].inputs
        arrays = {
            name: np.array(value, object if specs[name].dtype == tf.string else None).astype(
                specs[name].dtype.as_numpy_dtype
            )
            for name, value in body["inputs"].items()
        }
        assert cpp.signature(body["signature_name"], **arrays)
    assert report.curl("serve", host="h:1", model_name="m").endswith(
        " http://h:1/v1/models/m:predict"
    )


def test_bytes_are_sent_as_base64(tmp_path: Path) -> None:
    image = keras.Input((4, 4, 3), name="image")
    model = keras.Model(image, keras.layers.Flatten(name="y")(image))
    signatures = {"bytes": ke.from_image_bytes(model), "examples": ke.from_examples(model)}
    report = ke.export(model, tmp_path / "a", signatures=signatures)
    assert body_of(report.curl("bytes"))[0]["inputs"] == {"image_bytes": [{"b64": "AA=="}]}
    assert body_of(report.curl("examples"))[0]["inputs"] == {"examples": [{"b64": "AA=="}]}


def test_a_long_request_is_not_printed(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((300,), name="x"), keras.layers.Dense(2, name="y")])
    report = ke.export(model, tmp_path)
    assert "of JSON, see report.curl('serve')" in str(report)
    assert len(body_of(report.curl())[0]["inputs"]["x"][0]) == 300


def test_names_that_are_no_identifiers_are_quoted(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="class")
    module.f = tf.function(lambda x: {"y": x}, input_signature=[spec])
    report = ke.save(module, tmp_path)
    call = "**{'class': tf.zeros([1], tf.float32)}"
    assert report.python_call().endswith(f".signatures['serving_default']({call})")


def test_what_json_cannot_say_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.complex64, name="x")
    module.f = tf.function(lambda x: {"y": x}, input_signature=[spec])
    report = ke.save(module, tmp_path)
    assert "call: " in str(report) and "curl: " not in str(report)
    with pytest.raises(ArgumentError, match="inputs that JSON has a form for"):
        report.curl()
    with pytest.raises(ArgumentError, match="one of those that there are: 'serving_default'"):
        report.python_call("serve")


def test_a_report_renders_in_a_notebook(tmp_path: Path) -> None:
    report = ke.export(several(), tmp_path)
    page = report._repr_html_()
    assert "<td>serve</td>" in page and "tf.saved_model.load" in page
    assert "curl -d" in page
