"""The figures that readers see are those of the published benchmark."""

from __future__ import annotations

import json
from typing import Any

import figures
import pytest

_COMMAND = "run `make figures`"


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(figures.PUBLISHED.read_text())


def test_the_readme_shows_the_published_benchmark(results):
    readme = figures.README.read_text()
    assert figures.with_figures(readme, results) == readme, _COMMAND


def test_the_page_of_benchmarks_shows_the_published_benchmark(results):
    assert figures.PAGE.read_text() == figures.page(results), _COMMAND


def test_every_plot_of_the_page_is_there(results):
    shown = [line for line in figures.page(results).splitlines() if line.startswith("![")]
    assert shown
    for line in shown:
        path = line.rpartition("(")[2].rstrip(")")
        assert (figures.PAGE.parent / path).read_text().startswith("<?xml")


def test_a_stale_readme_is_noticed(results):
    changed = {**results, "rounds": results["rounds"] + 1}
    readme = figures.README.read_text()
    assert figures.with_figures(readme, changed) != readme
