"""Drawings of bytes and seconds, as reports show them.

In: numbers by name. Out: a matplotlib figure. The invariant: matplotlib is imported when something
is drawn, and no window and no global state of it is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_export.errors import ArgumentError

COLOURS = {
    "variables": "#3b6fb6",
    "graph": "#e08a2e",
    "assets": "#5a9e5a",
    "other": "#9aa5b1",
}
_PHASES = ("#3b6fb6", "#e08a2e", "#5a9e5a", "#8a63b0", "#b0566b", "#9aa5b1")
_MAX_LABEL = 44
_SCREEN_DPI = 80

Format = Callable[[float], str]


def new_figure(width: float, height: float) -> Any:
    """A figure that belongs to no window.

    Args:
        width: in inches, like `height`.
        height: likewise.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(
            "Cannot draw: matplotlib is not installed. Install `keras_export[plots]`, or use "
            "HTML, which needs nothing."
        ) from error

    class NotebookFigure(Figure):
        """A notebook shows a plain one only after pyplot was imported."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png", dpi=_SCREEN_DPI, bbox_inches="tight")
            return content.getvalue()

    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_strip(
    axes: Any, values: Mapping[str, float], show: Format, colours: Mapping[str, str] | None = None
) -> None:
    """One bar of all values, which are named above it.

    Args:
        axes: where to draw.
        values: by name.
        show: a value as text.
        colours: by name; those of phases if None.
    """
    start, total = 0.0, sum(values.values()) or 1.0
    for place, (name, value) in enumerate(values.items()):
        if value:
            colour = colours[name] if colours else _PHASES[min(place, len(_PHASES) - 1)]
            label = f"{name} {show(value)} ({value / total:.0%})"
            axes.barh([0], [value], left=start, color=colour, label=label)
            start += value
    axes.set_xlim(0, total)
    axes.axis("off")
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}
    axes.legend(**above, ncols=len(values), frameon=False, fontsize=10)


def draw_bars(
    axes: Any, bars: Sequence[tuple[str, float]], total: float, show: Format, others: int
) -> None:
    """A bar for each value, the first on top.

    Args:
        axes: where to draw.
        bars: name and value.
        total: of which each is told its part.
        show: a value as text.
        others: the place of a bar that stands for several, which gets another colour.
    """
    sizes = [size for _, size in bars]
    places = list(range(len(bars)))
    colours = [COLOURS["other" if place == others else "variables"] for place in places]
    axes.barh(places, sizes, color=colours, height=0.7)
    axes.set_yticks(places, [_shortened(name) for name, _ in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(
            f"{show(size)}  {size / max(total, 1):.1%}", (size, place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(0, max([*sizes, 1]) * 1.2)


def draw_columns(
    axes: Any, places: Sequence[int], unit: str, series: Mapping[str, Sequence[float]]
) -> None:
    """Stacked columns, one for each place; what they are stands beside them."""
    bottom = [0.0] * len(places)
    for label, heights in series.items():
        axes.bar(places, heights, bottom=bottom, label=label)
        bottom = [x + y for x, y in zip(bottom, heights, strict=True)]
    axes.set_ylabel(unit)
    legend_beside(axes)


def legend_beside(axes: Any) -> None:
    """A legend that covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def count_from_one(axes: Any, last: int) -> None:
    """Whole numbers on the lower axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.4, last + 0.6)


def _shortened(name: str) -> str:
    """The end of a path says more than its beginning."""
    return name if len(name) <= _MAX_LABEL else f"…{name[1 - _MAX_LABEL :]}"
