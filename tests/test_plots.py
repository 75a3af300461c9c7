"""What is drawn shows what the reports say, and covers nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import pytest

import keras_export as ke
from keras_export.errors import ArgumentError


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ke.ExportReport:
    x = keras.Input((8,), name="x")
    model = keras.Model(x, keras.layers.Dense(4, name="y")(keras.layers.Dense(99, name="h")(x)))
    return ke.export(model, tmp_path_factory.mktemp("plots") / "m")


def test_a_report_knows_the_bytes_of_each_file(report):
    found = {
        str(path.relative_to(report.export_dir)): path.stat().st_size
        for path in Path(report.export_dir).rglob("*")
        if path.is_file()
    }
    assert report.files == found
    assert report.bytes_written == sum(found.values())


def test_warmup_requests_are_among_the_files(tmp_path):
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1)])
    written = ke.export(model, tmp_path / "m", warmup=True)
    place = "assets.extra/tf_serving_warmup_requests"
    assert written.files[place] == (tmp_path / "m" / place).stat().st_size


def test_a_report_is_drawn_with_its_bytes_and_seconds(report, tmp_path):
    figure = report.plot()
    sizes, seconds = figure.axes
    assert sum(patch.get_width() for patch in sizes.patches) == report.bytes_written
    assert sum(patch.get_width() for patch in seconds.patches) == pytest.approx(
        sum(report.seconds.values())
    )
    named = [text.get_text().split(" ")[0] for text in seconds.get_legend().get_texts()]
    assert named == [name for name, value in report.seconds.items() if value]
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5_000


def test_an_artifact_is_drawn_with_its_layers(report):
    info = ke.inspect(report.export_dir)
    parts, layers = info.plot().axes
    assert sum(patch.get_width() for patch in parts.patches) == sum(info.parts().values())
    assert [text.get_text() for text in layers.get_yticklabels()] == ["h", "y"]
    assert [patch.get_width() for patch in layers.patches] == list(info.layers().values())


def test_legends_and_labels_cover_no_bar(report):
    for figure in (report.plot(), ke.inspect(report.export_dir).plot()):
        figure.draw_without_rendering()
        for axes in figure.axes:
            legend = axes.get_legend()
            bars = [patch.get_window_extent() for patch in axes.patches]
            texts = [text.get_window_extent() for text in axes.texts]
            covering = [*texts, *([legend.get_window_extent()] if legend else [])]
            for box in covering:
                assert not any(box.overlaps(bar) for bar in bars)


@pytest.mark.parametrize("kind", ["report", "inspection"])
def test_without_matplotlib_the_extra_is_named(report, monkeypatch, kind):
    drawn: Any = report if kind == "report" else ke.inspect(report.export_dir)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match=r"keras_export\[plots\]"):
        drawn.plot()


def test_a_notebook_shows_a_plot_without_pyplot(report):
    figure = report.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
