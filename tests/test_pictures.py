"""A picture of an artifact shows where its bytes are, and a page needs nothing else."""

from __future__ import annotations

import html.parser
import re
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_export as ke
from keras_export import cli

_VOID = {"meta", "!doctype"}


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = keras.Input((8,), name="<x>")
    y = x
    for i in range(30):
        y = keras.layers.Dense(8 + i, name=f"layer_{i:02d}")(y)
    path = tmp_path_factory.mktemp("pictures") / "a&b"
    ke.export(keras.Model(x, y), path)
    return path


class _Balance(html.parser.HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "another file"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def test_the_picture_is_a_png_with_a_row_for_each_of_the_largest_layers(
    export_dir: Path, tmp_path: Path
) -> None:
    assert cli.main(["show", str(export_dir), "--quiet", "--png", str(tmp_path / "a.png")]) == 0
    pixels = tf.io.decode_png((tmp_path / "a.png").read_bytes(), 3).numpy().astype(int)
    blue = np.abs(pixels - [0x3B, 0x6F, 0xB6]).sum(-1) < 30
    # The strip on top and 24 bars: runs of rows in the column right of the axis.
    first = np.flatnonzero(blue.any(0))[0] + 4
    column = blue[:, first].astype(int)
    assert np.count_nonzero(np.diff(column) == 1) == 25
    gray = np.abs(pixels - [0x9A, 0xA5, 0xB1]).sum(-1) < 30
    assert gray.any(), "the other layers"


def test_the_bytes_of_the_parts_are_those_of_the_files(export_dir: Path) -> None:
    parts = ke.inspect(export_dir).parts()
    assert parts["graph"] == (export_dir / "saved_model.pb").stat().st_size
    assert parts["assets"] == 0
    stored = (export_dir / "variables/variables.data-00000-of-00001").stat().st_size
    assert 0 < parts["variables"] <= stored


def test_the_page_is_whole_and_says_everything(export_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.html"
    assert cli.main(["show", str(export_dir), "--quiet", "--weights", "--html", str(target)]) == 0
    page = _Balance()
    content = target.read_text()
    page.feed(content)
    assert page.open == [] and "http" not in re.sub("<!doctype html>", "", content)
    for text in ("a&b", "layer_29/kernel", "6 other layers", "serving_default", "MatMul", "mean"):
        assert text in page.text
    largest = max(ke.inspect(export_dir).layers().values())
    assert content.count("width:100.00%") == 1 and largest > 0


def test_without_matplotlib_the_mend_is_told(
    export_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["show", str(export_dir), "--png", str(tmp_path / "a.png")]) == 2
    assert "Install `keras_export[plots]`" in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_every_result_renders_in_a_notebook(export_dir: Path) -> None:
    for result in (
        ke.inspect(export_dir),
        ke.verify(export_dir, run=False),
        ke.diff(export_dir, export_dir),
        ke.check(export_dir),
    ):
        page = _Balance()
        page.feed(result._repr_html_())
        assert page.open == [] and "<x>" not in result._repr_html_()
