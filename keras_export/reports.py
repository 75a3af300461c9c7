"""What an export tells its caller.

In: the facts of one export. Out: an `ExportReport` that prints as text and renders in a notebook.
The invariant: a report holds facts only; nothing in it keeps a model or a tensor alive.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Signature:
    """How a client calls a signature.

    Attributes:
        inputs: `tf.TensorSpec` by name.
        outputs: spec by name; `tf.TensorSpec`, or the spec of a composite tensor.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"({_listed(self.inputs)}) -> ({_listed(self.outputs)})"


@dataclass(frozen=True)
class ExportReport:
    """What one export wrote.

    Attributes:
        export_dir: where the artifact is.
        signatures: how to call it, by key.
        bytes_written: bytes of the artifact's files that this export wrote.
        bytes_shared: bytes that it shares with an earlier version by hard links.
        seconds: time by phase: `trace`, `assemble`, `write`, `publish`. An export that reuses the
            plan of an earlier one has 0 for the first two.
        notes: everything that the user should know, a sentence each.
        version: version number, if a callback numbered it.
        epoch: epoch, counted from 1, if a callback exported it.
        batch: batch of the epoch, counted from 1, likewise.
        logs: metrics of the moment, likewise.
        stall_seconds: how long training waited for the export, likewise.
    """

    export_dir: str
    signatures: Mapping[str, Signature]
    bytes_written: int = 0
    bytes_shared: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: int | None = None
    epoch: int | None = None
    batch: int | None = None
    logs: Mapping[str, float] = field(default_factory=dict)
    stall_seconds: float | None = None

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        lines = [f"{self.export_dir}: {format_size(self.bytes_written)} in {total:.2f} s"]
        lines += [f"  {key}{signature}" for key, signature in self.signatures.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(key)}</td><td>{html.escape(_listed(signature.inputs))}</td>"
            f"<td>{html.escape(_listed(signature.outputs))}</td></tr>"
            for key, signature in self.signatures.items()
        )
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<p><b>{html.escape(self.export_dir)}</b>: {format_size(self.bytes_written)}; "
            f"{phases}</p>"
            f"<table><tr><th>signature</th><th>inputs</th><th>outputs</th></tr>{rows}</table>"
            f"<ul>{notes}</ul>"
        )


def _listed(specs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {_spec(spec)}" for name, spec in specs.items())


def _spec(spec: Any) -> str:
    shape = getattr(spec, "shape", None)
    dtype = getattr(spec, "dtype", None)
    if shape is None or dtype is None or isinstance(dtype, str):
        return str(spec)
    dims = "..." if shape.rank is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{dtype.name}[{dims}]"


def format_size(count: int) -> str:
    """Bytes as people read them, in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
