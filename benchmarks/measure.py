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
from contenders import OURS

import keras_export as ke

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
    for _ in range(rounds):
        _round(notebook, models.build(name))
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


def _round(notebook: Notebook, model: keras.Model) -> None:
    """One turn of everybody, each fast one beside the floor that it is compared with."""
    exporter = _first_export(notebook, model)
    _floor(notebook, model)
    for export in (contenders.export_keras, contenders.export_tensorflow):
        _peer(notebook, "first export", export, model)
    notebook.time_writing("later export", OURS, exporter.write)
    _floor_of_writing(notebook, model)
    _peer(notebook, "later export", contenders.export_keras, model)
    notebook.time_writing("later export", OURS, exporter.write)
    _floor_of_writing(notebook, model)
    _peer(notebook, "later export", contenders.export_tensorflow, model)
    notebook.time("snapshot", OURS, exporter.snapshot)
    notebook.time("snapshot", "read_value", lambda: contenders.read(model))


def _first_export(notebook: Notebook, model: keras.Model) -> ke.Exporter:
    made = []

    def export(folder: str) -> None:
        made.append(ke.Exporter(model))
        made[0].write(folder)

    notebook.time_writing("first export", OURS, export)
    return made[0]


def _peer(notebook: Notebook, quantity: str, export: Callable[..., None], model: Any) -> None:
    (contender,) = (name for name, known in contenders.EXPORTS.items() if known is export)
    notebook.time_writing(quantity, contender, lambda folder: export(model, folder))


def _floor(notebook: Notebook, model: keras.Model) -> None:
    concrete = notebook.time("floor", "trace", lambda: contenders.trace(model))
    tracer = contenders.gradient_tracer(model, concrete)
    notebook.time("floor", "gradients", tracer)
    _floor_of_writing(notebook, model)


def _floor_of_writing(notebook: Notebook, model: keras.Model) -> None:
    for name, save in (("SaveV2", contenders.save), ("SaveV2 + fsync", contenders.save_and_sync)):
        notebook.time_writing("floor", name, lambda folder, save=save: save(model, folder))


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

