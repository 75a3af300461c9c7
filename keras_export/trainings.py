"""What a whole training exported, as a table and a plot.

In: the reports of its exports, and which versions are kept. Out: a `TrainingReport` that prints as
text, renders in a notebook and draws itself. The invariant: it holds facts only, and goes on being
true when the training does.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from keras_export import plots
from keras_export.errors import ArgumentError, failure
from keras_export.reports import ExportReport, format_size, scale

_COLUMNS = ("epoch", "version", "{monitor}", "written", "shared", "seconds", "stall", "kept")
_WIDTH = 120  # characters


@dataclass(frozen=True)
class TrainingReport:
    """The exports of one callback, over all its `fit`s.

    Attributes:
        exports: the report of each.
        kept: paths of the exports that stand.
        monitor: name of the metric that ranks them.
        best: the path of the best that stands, None if none can be ranked.
        skipped: how many were left out because the writer was busy.
    """

    exports: tuple[ExportReport, ...]
    kept: frozenset[str]
    monitor: str
    best: str | None = None
    skipped: int = 0

    def __str__(self) -> str:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in self._header():
            table.add_column(name, justify="right")
        for row in self._rows():
            table.add_row(*row)
        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([*filter(None, lines), self._summary()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self._header())
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        return f"<table><tr>{head}</tr>{rows}</table><p>{html.escape(self._summary())}</p>"

    def plot(self) -> Any:
        """Draws the metric with what is kept, the seconds and the bytes of each export.

        Needs matplotlib: `pip install 'keras_export[plots]'`.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it, `savefig` writes it.

        Raises:
            ArgumentError: nothing was exported, or matplotlib is not installed.
        """
        if not self.exports:
            raise ArgumentError(failure("draw a training", "an export", "none"))
        figure = plots.new_figure(8, 7)
        metric, seconds, size = figure.subplots(3, 1, sharex=True)
        places = range(1, len(self.exports) + 1)
        self._draw_metric(metric, places)
        plots.draw_columns(
            seconds, places, "seconds",
            {
                "training waits": [x.stall_seconds or 0.0 for x in self.exports],
                "writing": [sum(map(x.seconds.get, _WRITING, (0.0, 0.0))) for x in self.exports],
            },
        )  # fmt: skip
        unit, divisor = scale(max(x.bytes_written + x.bytes_shared for x in self.exports))
        plots.draw_columns(
            size, places, unit,
            {
                "written": [x.bytes_written / divisor for x in self.exports],
                "shared": [x.bytes_shared / divisor for x in self.exports],
            },
        )  # fmt: skip
        size.set_xlabel("export")
        plots.count_from_one(size, len(self.exports))
        return figure

    def _draw_metric(self, axes: Any, places: Sequence[int]) -> None:
        values = [report.logs.get(self.monitor, float("nan")) for report in self.exports]
        axes.plot(places, values, color="0.6", zorder=1)
        for stays, label, color in ((True, "kept", "tab:green"), (False, "deleted", "0.8")):
            chosen = [x for x in places if (self.exports[x - 1].export_dir in self.kept) == stays]
            heights = [values[x - 1] for x in chosen]
            axes.scatter(chosen, heights, label=label, color=color, zorder=2)
        axes.set_ylabel(self.monitor)
        plots.legend_beside(axes)

    def _header(self) -> list[str]:
        return [name.format(monitor=self.monitor) for name in _COLUMNS]

    def _rows(self) -> Iterator[list[str]]:
        newest = {report.export_dir: place for place, report in enumerate(self.exports)}
        for place, report in enumerate(self.exports):
            value = report.logs.get(self.monitor)
            stands = report.export_dir in self.kept and newest[report.export_dir] == place
            yield [
                f"{report.epoch}" if report.batch is None else f"{report.epoch}/{report.batch}",
                "" if report.version is None else str(report.version),
                "" if value is None else f"{value:.5g}",
                format_size(report.bytes_written),
                format_size(report.bytes_shared),
                f"{sum(report.seconds.values()):.2f}",
                f"{report.stall_seconds or 0.0:.3f}",
                ("best" if report.export_dir == self.best else "yes") if stands else "",
            ]

    def _summary(self) -> str:
        stall = sum(report.stall_seconds or 0.0 for report in self.exports)
        written = format_size(sum(report.bytes_written for report in self.exports))
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return (
            f"{len(self.exports)} exports{skipped}, {len(self.kept)} kept, {written} written; "
            f"training waited {stall:.2f} s."
        )


_WRITING = ("write", "publish")
