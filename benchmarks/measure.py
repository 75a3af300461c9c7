"""Times one model inside a process of its own.

In: a model's name, the number of rounds, a folder to write into. Out: seconds and bytes, by
quantity and contender, a list in the order of the rounds. The invariant: within a round everybody
works on the same model, takes turns, and starts with a clean heap and nothing to write back:
nobody's dirty pages are synced on another's time.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
import keras
import models
import phases
import stalls
from contenders import KERAS, OURS, TENSORFLOW

import keras_export as ke

PEERS = (KERAS, TENSORFLOW)

Series = dict[str, dict[str, list[float]]]


class Notebook:
    """Collects numbers by quantity and contender.

    Args:
        folder: where the contenders write, on the disk that is to be measured.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.series: Series = {}

    def note(self, quantity: str, contender: str, value: float) -> None:
        self.series.setdefault(quantity, {}).setdefault(contender, []).append(value)

    def time(self, quantity: str, contender: str, action: Callable[[], Any]) -> Any:
        """Notes the seconds that an action takes, and returns what it returns."""
        settle()
        started = time.perf_counter()
        result = action()
        self.note(quantity, contender, time.perf_counter() - started)
        return result

    def time_writing(
        self, quantity: str, contender: str, action: Callable[[str], Any], keep: bool = False
    ) -> str:
        """Like `time`, for an action that writes into a new folder, which it is given."""
        folder = tempfile.mkdtemp(dir=self.folder)
        self.time(quantity, contender, lambda: action(folder))
        if not keep:
            shutil.rmtree(folder)
        return folder


def settle() -> None:
    """Collects garbage and writes back what others left in the page cache."""
    gc.collect()
    os.sync()


def warm_up(folder: Path) -> None:
    """Lets every contender export something tiny, so that nobody pays for TensorFlow's start."""
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(2, "silu")])
    for export in contenders.EXPORTS.values():
        target = tempfile.mkdtemp(dir=folder)
        export(model, target)
        shutil.rmtree(target)
    concrete = contenders.trace(model)
    contenders.gradient_tracer(model, concrete)()


def measure(name: str, rounds: int, folder: Path, artifacts: Path) -> dict[str, Any]:
    """Measures exports, floors, stalls and sizes of one model; leaves one artifact of each kind.

    Args:
        name: of the model.
        rounds: how often everybody has a turn.
        folder: for what is written and deleted again.
        artifacts: the artifacts stay here, in folders named by `slug`.

    Returns:
        `series`, and `phases`: seconds of the parts of a first export.
    """
    warm_up(folder)
    notebook = Notebook(folder)
    for number in range(rounds):
        _round(notebook, models.build(name), floor_first=number % 2 == 1)
    model = models.build(name)
    for contender, export in contenders.EXPORTS.items():
        target = artifacts / slug(contender)
        export(model, str(target))
        _note_sizes(notebook, contender, target)
    measured_phases = phases.of_export(model, folder)
    notebook.series["stall"] = stalls.measure(models.build(name), rounds, folder)
    return {
        "series": notebook.series,
        "phases": measured_phases,
        "variables": len(model.variables),
        "parameters": model.count_params(),
    }


def _round(notebook: Notebook, model: keras.Model, floor_first: bool) -> None:
    """One turn of everybody, each fast one beside the floor that it is compared with.

    The first to trace a new model may pay for something, so that place changes from round to round.
    """
    if floor_first:
        _floor_of_first(notebook, model)
    _peer(notebook, "first export", OURS, model)
    if not floor_first:
        _floor_of_first(notebook, model)
    exporter = ke.Exporter(model)
    for contender in PEERS:
        _peer(notebook, "first export", contender, model)
    for contender in PEERS:
        notebook.time_writing("later export", OURS, exporter.write)
        _write_floor(notebook, "floor of later", "SaveV2 + fsync", model)
        _peer(notebook, "later export", contender, model)
    notebook.time("snapshot", OURS, exporter.snapshot)
    notebook.time("snapshot", "read_value", lambda: contenders.read(model))


def _peer(notebook: Notebook, quantity: str, contender: str, model: keras.Model) -> None:
    export = contenders.EXPORTS[contender]
    notebook.time_writing(quantity, contender, lambda folder: export(model, folder))


def _floor_of_first(notebook: Notebook, model: keras.Model) -> None:
    quantity = "floor of first"
    concrete = notebook.time(quantity, "trace", lambda: contenders.trace(model))
    tracer = contenders.gradient_tracer(model, concrete)
    notebook.time(quantity, "gradients", tracer)
    for name in contenders.WRITES:
        _write_floor(notebook, quantity, name, model)


def _write_floor(notebook: Notebook, quantity: str, name: str, model: keras.Model) -> None:
    write = contenders.WRITES[name]
    notebook.time_writing(quantity, name, lambda folder: write(model, folder))


def _note_sizes(notebook: Notebook, contender: str, artifact: Path) -> None:
    sizes = {path: path.stat().st_size for path in artifact.rglob("*") if path.is_file()}
    notebook.note("saved_model.pb", contender, sizes[artifact / "saved_model.pb"])
    notebook.note("bytes on disk", contender, sum(sizes.values()))


def peak_of(name: str, contender: str | None, folder: Path) -> dict[str, float]:
    """Exports once, in a process that has done nothing else.

    Args:
        name: of the model.
        contender: who exports; None for the model alone.
        folder: to write into.

    Returns:
        `peak`: most bytes that the process ever held; `built`: the same before the export;
        `seconds` of the export, with everything that a first use of TensorFlow costs.
    """
    model = models.build(name)
    built = peak_bytes()
    settle()
    started = time.perf_counter()
    if contender is not None:
        contenders.EXPORTS[contender](model, str(folder / "artifact"))
    seconds = time.perf_counter() - started
    return {"peak": peak_bytes(), "built": built, "seconds": seconds}


def peak_bytes() -> int:
    """The most memory that this process ever had (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slug(contender: str) -> str:
    """A contender's name as the name of a folder."""
    return contender.replace(".", "_")

