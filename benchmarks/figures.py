"""Makes the figures of the README and of the documentation from the results of a benchmark.

In: `benchmark.json`, which `run.py` wrote. Out: plots in `docs/figures/`, `docs/benchmarks.md`, and
the table between two marks of `README.md`. The invariant: no figure is typed by hand; the results
lie in `benchmarks/published/`, and the suite compares the texts with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from table import KERAS, OURS, TENSORFLOW, markdown

_REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED = _REPOSITORY / "benchmarks" / "published" / "benchmark.json"
README = _REPOSITORY / "README.md"
FIGURES = _REPOSITORY / "docs" / "figures"
PAGE = _REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_MODEL = "EfficientNetB7"
_COLORS = {OURS: "#2e7d32", KERAS: "#c62828", TENSORFLOW: "#ef6c00", "trace": "#757575"}
_QUANTITIES = {
    "first export": "First export",
    "later export": "Later export",
    "stall": "Training waits, per export",
    "saved_model.pb": "Size of `saved_model.pb`",
    "bytes on disk": "Size on disk",
    "load by python, first": "Load by `tf.saved_model.load`",
    "load by cpp, first": "Load by the C++ loader",
}


def main() -> None:
    results = json.loads(PUBLISHED.read_text())
    README.write_text(with_figures(README.read_text(), results))
    PAGE.write_text(page(results))
    FIGURES.mkdir(exist_ok=True)
    # Without these two the file changes with each run.
    with mpl.rc_context({"svg.hashsalt": "keras_export", "font.size": 10}):
        plots = {"ratios": ratios(results)}
        if results.get("growth"):
            plots["growth"] = growth(results)
        for name, figure in plots.items():
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


def with_figures(readme: str, results: Mapping[str, Any]) -> str:
    """The README with the table that belongs to the results."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_table(results)}\n{END}{after}"


def page(results: Mapping[str, Any]) -> str:
    """All results, with the plots above them."""
    plots = ["![Times that others take, by model](figures/ratios.svg)"]
    if results.get("growth"):
        plots.append("![Seconds of a first export, by size](figures/growth.svg)")
    title, _, rest = markdown(results).partition("\n\n")
    return "\n\n".join([f"{title}s", *plots, rest])


def _table(results: Mapping[str, Any]) -> str:
    measured = results["models"][_MODEL]
    machine = results["machine"]
    lines = [
        f"| {_MODEL}, {measured['parameters'] / 1e6:.1f} M parameters "
        f"| keras_export | `{KERAS}` | `{TENSORFLOW}` |",
        "| --- | ---: | ---: | ---: |",
    ]
    for quantity, shown in _QUANTITIES.items():
        values = measured["series"][quantity]
        ours = median(values[OURS])
        cells = [_cell(quantity, ours)]
        for peer in (KERAS, TENSORFLOW):
            found = values.get(peer)
            cells.append(_peer_cell(quantity, median(found), ours) if found else "–")
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Medians of {results['rounds']} rounds with {machine['cores']} cores, TensorFlow "
        f"{machine['tensorflow']} and Keras {machine['keras']}, {machine['date'][:10]}; `make "
        "benchmark` repeats them, `benchmarks/published/benchmark.json` holds each single one.",
    ]
    return "\n".join(lines)


def _peer_cell(quantity: str, value: float, ours: float) -> str:
    return f"{_cell(quantity, value)} ({value / ours:.1f} ×)"


def _cell(quantity: str, value: float) -> str:
    if quantity == "saved_model.pb":
        return f"{value / 1e6:.2f} MB"
    if quantity == "bytes on disk":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.0f} ms"


# -- plots -------------------------------------------------------------------------------------


def ratios(results: Mapping[str, Any]) -> Any:
    """How many times more others take than keras_export, by quantity and model."""
    quantities = [name for name in _QUANTITIES if name not in ("stall", "bytes on disk")]
    figure, axes = pyplot.subplots(
        1, len(quantities), figsize=(12, 1.6 + 0.7 * len(results["models"])), sharey=True,
        layout="constrained",
    )
    names = list(results["models"])
    for axis, quantity in zip(axes, quantities, strict=True):
        for offset, peer in ((-0.2, KERAS), (0.2, TENSORFLOW)):
            times = [_times(results["models"][name]["series"][quantity], peer) for name in names]
            places = [index + offset for index in range(len(names))]
            bars = axis.barh(places, times, 0.38, color=_COLORS[peer], label=peer)
            axis.bar_label(bars, [f" {value:.1f}×" for value in times], fontsize=8)
        axis.axvline(1, color=_COLORS[OURS], linewidth=2)
        axis.set_title(_QUANTITIES[quantity].replace("`", ""), fontsize=9)
        axis.set_yticks(range(len(names)), names)
        axis.margins(x=0.25)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.supxlabel("times keras_export (green line); shorter is better", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=9, frameon=False)
    return figure


def _times(values: Mapping[str, Sequence[float]], peer: str) -> float:
    return median(values[peer]) / median(values[OURS])


_AXES = {"chain": "layers in a chain", "variables": "variables", "megabytes": "megabytes"}


def growth(results: Mapping[str, Any]) -> Any:
    """Seconds of a first export by size, of everybody."""
    figure, axes = pyplot.subplots(1, len(_AXES), figsize=(12, 3.6), layout="constrained")
    for axis, (shape, shown) in zip(axes, _AXES.items(), strict=True):
        found = [x for x in results["growth"] if x["shape"] == shape]
        lines = {OURS: "export", KERAS: KERAS, TENSORFLOW: TENSORFLOW, "trace": "trace"}
        for label, series in lines.items():
            points = [
                (x["size"], median(x["seconds"][series])) for x in found if series in x["seconds"]
            ]
            if points:
                style = "--" if label == "trace" else "-"
                axis.plot(*zip(*points, strict=True), style, marker="o", color=_COLORS[label],
                          label="one trace" if label == "trace" else label)
        axis.set(xscale="log", yscale="log", xlabel=shown)
        sizes = [x["size"] for x in found]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds of a first export")
    axes[0].legend(fontsize=9, frameon=False)
    return figure


if __name__ == "__main__":
    main()
