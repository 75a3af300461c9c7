"""What an export tells its caller.

In: the facts of one export. Out: an `ExportReport` that prints as text and renders in a notebook.
The invariant: a report holds facts only; nothing in it keeps a model or a tensor alive.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_export import clients, plots
from keras_export.errors import ArgumentError, failure

# Characters; longer requests are not printed.
_MOST_SHOWN = 400

_WIDTH_INCHES, _HEIGHT_INCHES = 10.0, 2.4


@dataclass(frozen=True)
class Signature:
    """How a client calls a signature.

    Attributes:
        inputs: `tf.TensorSpec` by name.
        outputs: spec by name; `tf.TensorSpec`, or the spec of a composite tensor.
        defaults: the value by name of each input that may be left out, as far as it was written
            from a live function; signatures are compared without them.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        return f"({listed(self.inputs)}) -> ({listed(self.outputs)})"


@dataclass(frozen=True)
class ExportReport:
    """What one export wrote.

    Attributes:
        export_dir: where the artifact is.
        signatures: how to call it, by key.
        bytes_written: bytes of the artifact's files that this export wrote.
        bytes_shared: bytes that it shares with an earlier version by hard links.
        files: the bytes of each of the artifact's files, by path in it.
        seconds: time by phase: `trace`, `assemble`, `write`, `publish`, and `check` where the
            artifact is looked at before it is published. An export that reuses the plan of an
            earlier one has 0 for the first two.
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
    files: Mapping[str, int] = field(default_factory=dict)

    def plot(self) -> Any:
        """Draws where the bytes are and where the time went.

        Needs matplotlib: `pip install 'keras_export[plots]'`.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it, `savefig` writes it.

        Raises:
            ArgumentError: matplotlib is not installed.

        Example:
            >>> files = {"saved_model.pb": 9_000, "variables/variables.index": 1_000}
            >>> report = ExportReport("/models/m", {}, seconds={"trace": 2.0}, files=files)
            >>> [text.get_text() for text in report.plot().axes[0].get_legend().get_texts()]
            ['variables 1.0 kB (10%)', 'graph 9.0 kB (90%)']
        """
        figure = plots.new_figure(_WIDTH_INCHES, _HEIGHT_INCHES)
        top, bottom = figure.subplots(2, 1)
        total = sum(self.seconds.values())
        name = os.path.basename(os.path.normpath(self.export_dir))
        title = f"{name}: {format_size(sum(self.files.values()))} in {total:.2f} s"
        figure.suptitle(title, x=0.01, ha="left", size=13)
        plots.draw_strip(top, self._parts(), format_size, plots.COLOURS)
        plots.draw_strip(bottom, self.seconds, lambda value: f"{value:.2f} s")
        return figure

    def _parts(self) -> dict[str, int]:
        """The bytes of the files by what they are for."""
        sizes = dict.fromkeys(("variables", "graph", "assets", "other"), 0)
        for path, size in self.files.items():
            kind = "graph" if path.startswith("saved_model.") else path.partition("/")[0]
            sizes[kind if kind in sizes else "other"] += size
        return sizes

    def python_call(self, key: str = clients.DEFAULT_KEY) -> str:
        """A line of Python that loads the artifact and calls a signature.

        Args:
            key: of the signature.

        Returns:
            The line; the inputs are zeros of the least size. `tf` is TensorFlow.

        Raises:
            ArgumentError: there is no such signature.

        Example:
            >>> import tensorflow as tf
            >>> x = tf.TensorSpec([None, 3], tf.float32)
            >>> report = ExportReport("/models/m", {"serve": Signature({"x": x}, {"y": x})})
            >>> print(report.python_call("serve"))
            tf.saved_model.load('/models/m').signatures['serve'](x=tf.zeros([1, 3], tf.float32))
        """
        return clients.python_call(self.export_dir, key, self._inputs_of(key))

    def curl(
        self,
        key: str = clients.DEFAULT_KEY,
        *,
        host: str = clients.DEFAULT_HOST,
        model_name: str | None = None,
    ) -> str:
        """A shell command that calls a signature by TensorFlow Serving's REST API.

        Args:
            key: of the signature.
            host: the server's name and port.
            model_name: what it serves the model as; by default the directory's name, or that of
                the directory above a version.

        Returns:
            The command; the inputs are zeros of the least size.

        Raises:
            ArgumentError: there is no such signature, or JSON has no form for its inputs.

        Example:
            >>> import tensorflow as tf
            >>> x = tf.TensorSpec([None, 2], tf.float32)
            >>> report = ExportReport("/models/m/7", {"serve": Signature({"x": x}, {"y": x})})
            >>> print(report.curl("serve").replace(" http", "\\n http"))
            curl -d '{"signature_name": "serve", "inputs": {"x": [[0.0, 0.0]]}}'
             http://localhost:8501/v1/models/m:predict
        """
        command = clients.curl(self.export_dir, key, self._inputs_of(key), host, model_name)
        if command is None:
            raise ArgumentError(
                failure(
                    f"write a request for the signature {key!r}",
                    "inputs that JSON has a form for",
                    f"{self.signatures[key]}",
                    "Use TensorFlow Serving's gRPC API.",
                )
            )
        return command

    def _inputs_of(self, key: str) -> Mapping[str, Any]:
        if key not in self.signatures:
            listed = ", ".join(map(repr, self.signatures)) or "none"
            raise ArgumentError(
                failure("find a signature", f"one of those that there are: {listed}", repr(key))
            )
        return self.signatures[key].inputs

    def _calls(self) -> list[str]:
        """How clients call each signature; one that is there twice is shown once."""
        lines: list[str] = []
        shown: set[str] = set()
        for key, signature in self.signatures.items():
            if str(signature) in shown:
                continue
            shown.add(str(signature))
            lines.append(f"  call: {self.python_call(key)}")
            command = clients.curl(
                self.export_dir, key, signature.inputs, clients.DEFAULT_HOST, None
            )
            if command is not None:
                long = f"{format_size(len(command))} of JSON, see report.curl({key!r})"
                lines.append(f"  curl: {command if len(command) <= _MOST_SHOWN else long}")
        return lines

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        lines = [f"{self.export_dir}: {format_size(self.bytes_written)} in {total:.2f} s"]
        lines += [f"  {key}{signature}" for key, signature in self.signatures.items()]
        lines += self._calls()
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(key)}</td><td>{html.escape(listed(signature.inputs))}</td>"
            f"<td>{html.escape(listed(signature.outputs))}</td></tr>"
            for key, signature in self.signatures.items()
        )
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
        calls = "\n".join(line.strip() for line in self._calls())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f"<p><b>{html.escape(self.export_dir)}</b>: {format_size(self.bytes_written)}; "
            f"{phases}</p>"
            f"<table><tr><th>signature</th><th>inputs</th><th>outputs</th></tr>{rows}</table>"
            f"<pre>{html.escape(calls)}</pre><ul>{notes}</ul>"
        )


def listed(specs: Mapping[str, Any]) -> str:
    """Inputs or outputs as text."""
    return ", ".join(f"{name}: {_spec(spec)}" for name, spec in specs.items())


def _spec(spec: Any) -> str:
    shape = getattr(spec, "shape", None)
    dtype = getattr(spec, "dtype", None)
    if shape is None or dtype is None or isinstance(dtype, str):
        return str(spec)
    dims = "..." if shape.rank is None else ", ".join("?" if d is None else str(d) for d in shape)
    return f"{dtype.name}[{dims}]"


def format_size(count: float) -> str:
    """Bytes as people read them, in decimal units."""
    unit, divisor = scale(count)
    digits = {"B": 0, "GB": 2}.get(unit, 1)
    return f"{count / divisor:.{digits}f} {unit}"


def scale(count: float) -> tuple[str, int]:
    """The decimal unit for a number of bytes, and how many bytes it has."""
    return next(
        ((unit, size) for unit, size in _UNITS.items() if count < 1000 * size), ("GB", 1000**3)
    )


_UNITS = {"B": 1, "kB": 1000, "MB": 1000**2}
