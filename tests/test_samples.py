"""Inputs come from the files that people have, and outputs go to those that they want."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_export import samples
from keras_export.errors import ArgumentError
from keras_export.inspection import Spec

_SPECS = {
    "x": Spec((None, 2), "float32"),
    "n": Spec((None,), "int32"),
    "s": Spec((None,), "string"),
}
_X = {"x": Spec((None, 2), "float32")}
_ROWS = np.float32([[1, 2], [3, 4.5]])


def _file(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"x": [[1, 2], [3, 4.5]]}'),
        ("b.json", '{"inputs": {"x": [[1, 2], [3, 4.5]]}}'),
        ("c.json", '{"instances": [{"x": [1, 2]}, {"x": [3, 4.5]}]}'),
        ("d.json", '{"instances": [[1, 2], [3, 4.5]]}'),
        ("e.json", "[[1, 2], [3, 4.5]]"),
        ("f.csv", "x_0,x_1\n1,2\n3,4.5\n"),
        ("g.csv", "1,2\n3,4.5\n"),
        ("h.csv", "width,height\n1,2\n3,4.5\n"),
    ],
)
def test_every_text_form_gives_the_same_rows(name: str, content: str, tmp_path: Path) -> None:
    found = samples.read_inputs([_file(tmp_path / name, content)], _X)
    np.testing.assert_array_equal(found["x"], _ROWS)
    assert found["x"].dtype == np.float32


def test_arrays_are_read_by_name_or_for_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=_ROWS, n=[1, 2], s=["a", "ü"])
    found = samples.read_inputs([str(tmp_path / "all.npz")], _SPECS)
    assert found["n"].dtype == np.int32 and list(found["s"]) == [b"a", "ü".encode()]
    np.save(tmp_path / "x.npy", _ROWS)
    for arguments in (([str(tmp_path / "x.npy")], _X), ([f"x={tmp_path}/x.npy"], _SPECS)):
        np.testing.assert_array_equal(samples.read_inputs(*arguments)["x"], _ROWS)
    np.testing.assert_array_equal(
        samples.read_inputs([f"{tmp_path}/x.npy"] * 2, _X)["x"], np.concatenate([_ROWS, _ROWS])
    )


def test_columns_of_a_table_are_the_inputs_of_their_names(tmp_path: Path) -> None:
    table = _file(tmp_path / "t.csv", "s,x_0,n,x_1\nbird,1,7,2\n\"a,b\",3,8,4.5\n")
    found = samples.read_inputs([table], _SPECS)
    np.testing.assert_array_equal(found["x"], _ROWS)
    assert list(found["n"]) == [7, 8] and list(found["s"]) == [b"bird", b"a,b"]


def test_bytes_come_in_base64_as_for_tensorflow_serving(tmp_path: Path) -> None:
    content = json.dumps({"s": [{"b64": "/wA="}, "cat"]})
    found = samples.read_inputs([_file(tmp_path / "s.json", content)], _SPECS)
    assert list(found["s"]) == [b"\xff\x00", b"cat"]


def test_images_are_decoded_sized_and_joined(tmp_path: Path) -> None:
    pixels = np.full([6, 8, 3], 51, np.uint8)
    image = tf.io.encode_png(pixels).numpy()
    files = [_file(tmp_path / name, image) for name in ("a.png", "b.png")]
    floats = {"image": Spec((None, 3, 4, 3), "float32"), "n": Spec((None,), "int32")}
    found = samples.read_inputs(files, floats, scale=1 / 255)["image"]
    assert found.shape == (2, 3, 4, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, 0.2, rtol=1e-6)
    free = samples.read_inputs(files[:1], {"image": Spec((None, None, None, 3), "uint8")})
    np.testing.assert_array_equal(free["image"], pixels[None])
    gray = samples.read_inputs(files[:1], {"image": Spec((None, 6, 8, 1), "float32")})
    assert gray["image"].shape == (1, 6, 8, 1)
    raw = samples.read_inputs(files[:1], {"bytes": Spec((None,), "string")})
    assert list(raw["bytes"]) == [image]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1", "expected one of .npz"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"y": 1, "x": 2}', r"inputs of \['n', 's', 'x'\], received \['y'\]"),
        ("a.json", "[1]", "Write `NAME="),
        ("a.json", '{"x": [[1, 2], [3]]}', "rows differ in length"),
        ("a.json", '{"x": [[1, 2, 3]]}', r"expected float32\[\?, 2\], received shape \[1, 3\]"),
        ("a.json", '{"n": [0.5]}', "expected values of int32, received values of float64"),
        ("a.json", '{"x": ["one"]}', "expected values of float32"),
        ("a.csv", "n,s\n1\n", "rows of one length"),
        ("a.npz", "no zip", "a.npz"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        samples.read_inputs([_file(tmp_path / name, content)], _SPECS)


def test_outputs_are_written_in_every_form(tmp_path: Path) -> None:
    outputs = {"y": _ROWS, "word": np.array([b"cat", b"\xff"], object)}
    samples.write_outputs(str(tmp_path / "y.npz"), outputs)
    with np.load(tmp_path / "y.npz") as file:
        np.testing.assert_array_equal(file["y"], _ROWS)
        assert list(file["word"]) == [b"cat", b"\xff"]
    samples.write_outputs(str(tmp_path / "y.json"), outputs)
    shown = json.loads((tmp_path / "y.json").read_text())
    assert shown == {"y": [[1.0, 2.0], [3.0, 4.5]], "word": ["cat", {"b64": "/w=="}]}
    samples.write_outputs(str(tmp_path / "y.csv"), {"y": _ROWS, "n": np.int32([7, 8])})
    assert (tmp_path / "y.csv").read_text().split() == ["y_0,y_1,n", "1.0,2.0,7", "3.0,4.5,8"]
    samples.write_outputs(str(tmp_path / "y.npy"), {"y": _ROWS})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), _ROWS)
    half = np.full([1, 4, 5, 3], 0.4, np.float32)
    samples.write_outputs(str(tmp_path / "y.png"), {"y": half})
    image = tf.io.decode_png((tmp_path / "y.png").read_bytes()).numpy()
    np.testing.assert_array_equal(image, np.full([4, 5, 3], 102, np.uint8))


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        ("y.npy", {"a": _ROWS, "b": _ROWS}, "expected one output"),
        ("y.csv", {"a": np.zeros([2, 2, 2])}, "rank 2 at most"),
        ("y.csv", {"a": np.zeros(2), "b": np.zeros(3)}, "outputs of one length"),
        ("y.png", {"a": _ROWS[None, None]}, "height, width"),
        ("y.xls", {"a": _ROWS}, "expected one of .npz"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_and_not_written(
    name: str, outputs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        samples.write_outputs(str(tmp_path / name), outputs)
    assert not (tmp_path / name).exists()


def test_infinite_and_missing_numbers_are_valid_json() -> None:
    text = samples.to_json({"y": np.array([np.inf, np.nan, 1.0])})
    assert json.loads(text) == {"y": ["inf", "nan", 1.0]}
