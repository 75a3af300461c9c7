"""A picture of where the bytes of an artifact are: as PNG, or as a page of its own.

In: what `inspect` found. Out: the bytes of a file. The invariant: a page needs no other file and
no network.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence

from keras_export.inspection import MAX_LAYERS, SavedModelInfo
from keras_export.plots import COLOURS
from keras_export.reports import format_size, listed
from keras_export.weights import WeightStatistics

_MAX_ROWS = 500


def png(info: SavedModelInfo) -> bytes:
    """A picture: what the artifact consists of, and its largest layers.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    content = io.BytesIO()
    info.plot().savefig(content, format="png", dpi=120)
    return content.getvalue()


def page(info: SavedModelInfo, weights: Sequence[WeightStatistics] = ()) -> str:
    """A page of HTML: signatures, where the bytes are, variables, ops.

    Args:
        info: what `inspect` found.
        weights: adds what the values look like.
    """
    name = html.escape(os.path.basename(os.path.normpath(info.export_dir)))
    sizes = info.parts()
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
        f'<div style="width:{size / total:.4%};background:{COLOURS[name]}"></div>'
        for name, size in sizes.items()
    )
    keys = "".join(
        f'<i class="key" style="background:{COLOURS[name]}"></i>'
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
    bars = info.largest_layers()
    largest = max([size for _, size in bars], default=1) or 1
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{format_size(size)}</td>"
        f'<td style="width:50%"><div class="bar" style="width:{size / largest:.2%};'
        f'background:{COLOURS["other" if place == MAX_LAYERS else "variables"]}"></div></td></tr>'
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
