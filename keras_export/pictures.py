"""A picture of where the bytes of an artifact are: as PNG, or as a page of its own.

In: what `inspect` found. Out: the bytes of a file. The invariant: a page needs no other file and
no network.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from typing import Any

from keras_export.bundles import is_file, size_of
from keras_export.errors import ArgumentError
from keras_export.inspection import SavedModelInfo
from keras_export.reports import format_size, listed
from keras_export.weights import WeightStatistics

_MAX_BARS = 24
_MAX_ROWS = 500
_COLOURS = {"variables": "#3b6fb6", "graph": "#e08a2e", "assets": "#5a9e5a"}
_OTHERS = "#9aa5b1"
_WIDTH_INCHES, _HEAD_INCHES, _STRIP_INCHES, _ROW_INCHES = 10.0, 1.6, 0.3, 0.3
_MAX_LABEL = 44


def parts(info: SavedModelInfo) -> dict[str, int]:
    """The bytes of the variables, of `saved_model.pb` and of the assets."""
    assets = [os.path.join(info.export_dir, "assets", name) for name in info.assets]
    return {
        "variables": info.stored_bytes,
        "graph": info.graph_bytes,
        "assets": sum(size_of(path) for path in assets if is_file(path)),
    }


def png(info: SavedModelInfo) -> bytes:
    """A picture: what the artifact consists of, and its largest layers.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(
            "Cannot draw a PNG: matplotlib is not installed. Install `keras_export[plots]`, or "
            "use --html, which needs nothing."
        ) from error
    bars = _bars(info)
    rows = max(len(bars), 1) * _ROW_INCHES
    figure = Figure(figsize=(_WIDTH_INCHES, _HEAD_INCHES + rows), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=(_STRIP_INCHES, rows))
    sizes = parts(info)
    name = os.path.basename(os.path.normpath(info.export_dir))
    figure.suptitle(f"{name}: {format_size(sum(sizes.values()))}", x=0.01, ha="left", size=13)
    _draw_parts(top, sizes)
    _draw_bars(bottom, bars, info.stored_bytes)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _bars(info: SavedModelInfo) -> list[tuple[str, int]]:
    layers = list(info.layers().items())
    shown, rest = layers[:_MAX_BARS], layers[_MAX_BARS:]
    if rest:
        shown.append((f"{len(rest)} other layers", sum(size for _, size in rest)))
    return shown


def _draw_parts(axes: Any, sizes: dict[str, int]) -> None:
    start, total = 0, sum(sizes.values()) or 1
    for name, size in sizes.items():
        if size:
            label = f"{name} {format_size(size)} ({size / total:.0%})"
            axes.barh([0], [size], left=start, color=_COLOURS[name], label=label)
            start += size
    axes.set_xlim(0, total)
    axes.axis("off")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=10)


def _draw_bars(axes: Any, bars: Sequence[tuple[str, int]], total: int) -> None:
    names = [_shortened(name) for name, _ in bars]
    sizes = [size for _, size in bars]
    colours = [
        _OTHERS if place == _MAX_BARS else _COLOURS["variables"] for place in range(len(bars))
    ]
    places = list(range(len(bars)))
    axes.barh(places, sizes, color=colours, height=0.7)
    axes.set_yticks(places, names, fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)  # the largest on top
    axes.set_title("variables by layer", loc="left", fontsize=10)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(
            f"{format_size(size)}  {size / max(total, 1):.1%}", (size, place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(0, max([*sizes, 1]) * 1.2)


def _shortened(name: str) -> str:
    """The end of a path says more than its beginning."""
    return name if len(name) <= _MAX_LABEL else f"…{name[1 - _MAX_LABEL :]}"


def page(info: SavedModelInfo, weights: Sequence[WeightStatistics] = ()) -> str:
    """A page of HTML: signatures, where the bytes are, variables, ops.

    Args:
        info: what `inspect` found.
        weights: adds what the values look like.
    """
    name = html.escape(os.path.basename(os.path.normpath(info.export_dir)))
    sizes = parts(info)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>{name}</h1><p>{html.escape(info.export_dir)}: {format_size(sum(sizes.values()))}, "
        f"tags {html.escape(', '.join(info.tags))}, written by TensorFlow "
        f"{html.escape(info.producer)}</p>"
        f"{_stacked(sizes)}"
        f"<h2>Signatures</h2>{_signatures(info)}"
        f"<h2>Variables by layer</h2>{_layers(info)}"
        f"<h2>Variables</h2>{_variables(info, weights)}"
        f"<h2>Ops</h2>{_table(('op', 'nodes'), _most(info))}"
        f"{_assets(info)}"
        "</body></html>"
    )


_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top;overflow-wrap:anywhere}"
    "th{border-bottom:1px solid #8888}td+td{font-variant-numeric:tabular-nums}"
    ".parts{display:flex;height:1.6rem;border-radius:.3rem;overflow:hidden}"
    ".bar{height:.9rem;border-radius:.2rem;min-width:2px}"
    ".key{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin:0 .4rem 0 0}"
    ".keys span+.key{margin-left:1.2rem}"
)


def _stacked(sizes: dict[str, int]) -> str:
    total = sum(sizes.values()) or 1
    bars = "".join(
        f'<div style="width:{size / total:.4%};background:{_COLOURS[name]}"></div>'
        for name, size in sizes.items()
    )
    keys = "".join(
        f'<i class="key" style="background:{_COLOURS[name]}"></i>'
        f"<span>{name} {format_size(size)} ({size / total:.1%})</span>"
        for name, size in sizes.items()
        if size
    )
    return f'<div class="parts">{bars}</div><p class="keys">{keys}</p>'


def _signatures(info: SavedModelInfo) -> str:
    rows = [
        (key, listed(signature.inputs), listed(signature.outputs))
        for key, signature in info.signatures.items()
    ]
    return _table(("key", "inputs", "outputs"), rows)


def _layers(info: SavedModelInfo) -> str:
    bars = _bars(info)
    largest = max([size for _, size in bars], default=1) or 1
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{format_size(size)}</td>"
        f'<td style="width:50%"><div class="bar" style="width:{size / largest:.2%};'
        f'background:{_OTHERS if place == _MAX_BARS else _COLOURS["variables"]}"></div></td></tr>'
        for place, (name, size) in enumerate(bars)
    )
    return f"<table>{rows}</table>"


def _variables(info: SavedModelInfo, weights: Sequence[WeightStatistics]) -> str:
    head: Sequence[str] = ("name", "shape", "bytes")
    rows: list[Sequence[str]] = [
        (name, spec, format_size(size)) for name, spec, size in info.by_size()
    ]
    if weights:
        head = (*head, "mean", "deviation", "least", "greatest", "zeros", "not finite")
        rows = [
            (
                x.name,
                x.spec,
                format_size(x.bytes),
                *map(number, (x.mean, x.deviation, x.smallest, x.largest)),
                str(x.zeros),
                str(x.not_finite),
            )
            for x in weights
        ]
    left = len(rows) - _MAX_ROWS
    return _table(head, rows[:_MAX_ROWS]) + (f"<p>and {left} smaller ones</p>" if left > 0 else "")


def number(value: float | None) -> str:
    """A statistic as text; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def _most(info: SavedModelInfo) -> list[tuple[str, str]]:
    most = sorted(info.ops.items(), key=lambda item: (-item[1], item[0]))
    return [(op, str(count)) for op, count in most]


def _assets(info: SavedModelInfo) -> str:
    items = "".join(f"<li>{html.escape(name)}</li>" for name in info.assets)
    return f"<h2>Assets</h2><ul>{items}</ul>" if items else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{titles}</tr>{body}</table>"
