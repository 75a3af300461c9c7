"""Results as tables: for the terminal, and as Markdown.

In: what `run.py` collected. Out: text. The invariant: a figure is the median of its rounds; a ratio
is the median of the ratios within each round, so that a slow minute of the machine counts for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

OURS, KERAS, TENSORFLOW = "keras_export", "model.export", "tf.saved_model.save"
_RATIOS = ("ours / floor", "Keras / ours", "TF / ours")
_LOADS = ("", OURS, KERAS, TENSORFLOW)
_COLUMNS = ("", OURS, "floor", KERAS, TENSORFLOW, *_RATIOS)

Series = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Rows:
    """A table.

    Attributes:
        title: above it.
        columns: their headings.
        rows: of texts, as many as there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown(results: Mapping[str, Any]) -> str:
    """All results as a Markdown document."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = ["# Benchmark", f"{machine}; {results['rounds']} rounds.", _NOTES]
    for rows in _tables(results):
        parts += [f"## {rows.title}", _markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def show(results: Mapping[str, Any], console: Console) -> None:
    """Prints all results."""
    for rows in _tables(results):
        shown = Table(title=rows.title, title_justify="left", box=box.SIMPLE_HEAD)
        for index, column in enumerate(rows.columns):
            justify = "right" if index else "left"
            shown.add_column(column, justify=justify, no_wrap=True)
        for row in rows.rows:
            shown.add_row(*row)
        console.print(shown)


_NOTES = """\
Medians of the rounds; ratios are medians of the ratios within a round. In a round everybody
works on the same new model and takes turns, with the page cache written back in between;
TensorFlow is warm, for each contender has exported something tiny before. The floor of a first
export is one trace, the registered gradients traced one of each structure (keras_export's own
code: TensorFlow has no call for it), and one `SaveV2`; with fsync, as keras_export does and the
others do not, in the row below. The floor of a later export is `SaveV2` and fsync; that of a
stall and of a snapshot, `read_value()` of each variable. `cold` is the first thing that a
process does. A first load pays for what TensorFlow sets up at its first use; the second one is
in the same process."""


def _tables(results: Mapping[str, Any]) -> Iterator[Rows]:
    for name, measured in results["models"].items():
        millions = measured["parameters"] / 1e6
        title = f"{name}: {millions:.1f} M parameters, {measured['variables']} variables"
        # What was kept of an earlier run says so.
        title += f" ({measured['of']})" if "of" in measured else ""
        yield Rows(title, _COLUMNS, list(_model_rows(measured["series"])))
        yield Rows(f"{name}: parts", ("", "median"), list(_part_rows(measured["series"])))
        yield Rows(f"{name}: phases of a first export", ("", "ms"), _phase_rows(measured["phases"]))
        if "load" in measured:
            yield Rows(f"{name}: a load in Python, profiled", _LOADS, _load_rows(measured["load"]))
    if results.get("growth"):
        yield _growth_table(results["growth"])


# -- one model ---------------------------------------------------------------------------------


def _model_rows(series: Series) -> Iterator[Sequence[str]]:
    lean = _sum(series["floor of first"], "trace", "gradients", "SaveV2")
    durable = _sum(series["floor of first"], "trace", "gradients", "SaveV2 + fsync")
    stall = series["stall"]
    yield _row("first export", _seconds, series["first export"], lean)
    yield _row("… floor with fsync", _seconds, series["first export"], durable)
    yield _row(
        "later export", _seconds, series["later export"], series["floor of later"]["SaveV2 + fsync"]
    )
    yield _row("cold export", _seconds, series["cold export"])
    yield _row("stall, first", _seconds, _without(stall, ", first"), stall["read_value, first"])
    yield _row("stall, later", _seconds, stall, stall["read_value"])
    yield _row("snapshot", _seconds, series["snapshot"], series["snapshot"]["read_value"])
    yield _row("saved_model.pb", _kilobytes, series["saved_model.pb"])
    yield _row("bytes on disk", _megabytes, series["bytes on disk"])
    for loader in ("python", "cpp"):
        for which in ("first", "second"):
            quantity = f"load by {loader}, {which}"
            yield _row(quantity, _seconds, series[quantity])
    peak = series["peak memory"]
    yield _row("peak memory", _megabytes, peak, peak["the model alone"])


def _part_rows(series: Series) -> Iterator[Sequence[str]]:
    """What the floors consist of, and what Keras's own checkpoint of the weights costs."""
    for quantity in ("floor of first", "floor of later"):
        for part, seconds in series[quantity].items():
            yield f"{quantity}: {part}", _seconds(median(seconds))
    for name, seconds in series["stall"].items():
        if name.startswith("ModelCheckpoint"):
            yield f"stall: {name}", _seconds(median(seconds))


def _load_rows(loads: Mapping[str, Mapping[str, float]]) -> list[Sequence[str]]:
    """The parts of a load; those of ours first that take longest."""
    parts = sorted(loads[OURS], key=lambda part: -loads[OURS][part])
    return [
        (part, *(_seconds(loads[contender].get(part, 0.0)) for contender in _LOADS[1:]))
        for part in parts
    ]


def _row(
    name: str,
    shown: Callable[[float], str],
    values: Mapping[str, Sequence[float]],
    floor: Sequence[float] = (),
) -> Sequence[str]:
    ours = values.get(OURS, ())
    columns = (ours, floor, values.get(KERAS, ()), values.get(TENSORFLOW, ()))
    return (
        name,
        *(shown(median(column)) if column else "" for column in columns),
        _ratio(ours, floor),
        _ratio(values.get(KERAS, ()), ours),
        _ratio(values.get(TENSORFLOW, ()), ours),
    )


def _ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The median of the ratios by round; of the medians where turns were not taken alike."""
    if not above or not below:
        return ""
    if len(above) == len(below):
        return f"{median(a / b for a, b in zip(above, below, strict=True)):.2f}"
    return f"{median(above) / median(below):.2f}"


def _sum(series: Mapping[str, Sequence[float]], *names: str) -> list[float]:
    """Sums by round."""
    return [sum(parts) for parts in zip(*(series[name] for name in names), strict=True)]


def _without(series: Mapping[str, Sequence[float]], suffix: str) -> dict[str, Sequence[float]]:
    return {name.removesuffix(suffix): x for name, x in series.items() if name.endswith(suffix)}


def _phase_rows(phases: Mapping[str, Mapping[str, float]]) -> list[Sequence[str]]:
    reported = [(f"report: {name}", _milliseconds(x)) for name, x in phases["report"].items()]
    return [*reported, *((name, _milliseconds(x)) for name, x in phases["steps"].items())]


# -- growth ------------------------------------------------------------------------------------


def _growth_table(growth: Sequence[Mapping[str, Any]]) -> Rows:
    columns = (
        "shape", "size", "trace", "SaveV2 + fsync", "export", "export / trace", "export / both",
        KERAS, TENSORFLOW, "saved_model.pb",
    )  # fmt: skip
    return Rows("Growth of a first export", columns, [_growth_row(x) for x in growth])


def _growth_row(found: Mapping[str, Any]) -> Sequence[str]:
    seconds = found["seconds"]
    peers = (seconds.get(peer) for peer in (KERAS, TENSORFLOW))
    return (
        found["shape"],
        str(found["size"]),
        *(_seconds(median(seconds[name])) for name in ("trace", "write", "export")),
        _ratio(seconds["export"], seconds["trace"]),
        _ratio(seconds["export"], _sum(seconds, "trace", "write")),
        *(_seconds(median(peer)) if peer else "" for peer in peers),
        _kilobytes(median(found["bytes"]["saved_model.pb"])),
    )


# -- figures -----------------------------------------------------------------------------------


def _seconds(value: float) -> str:
    return _milliseconds(value) + " ms" if value < 1 else f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.1f}" if value < 0.1 else f"{1000 * value:.0f}"


def _kilobytes(value: float) -> str:
    return f"{value / 1e3:.0f} kB"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def _markdown_table(rows: Rows) -> str:
    aligned = ["---", *["---:"] * (len(rows.columns) - 1)]
    lines = [rows.columns, aligned, *rows.rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    # Leading spaces say what is inside what.
    inner = cell.lstrip(" ")
    return "&nbsp;" * (len(cell) - len(inner)) + inner
