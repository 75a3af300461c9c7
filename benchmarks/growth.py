"""How export time grows with the number of layers.

In: a shape of model and its size. Out: seconds of a trace and of a first export. The invariant:
both work on the same model, in turns.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
import keras
from measure import Notebook, warm_up

_WIDTH = 4

# Keras and TensorFlow recurse once per layer, several frames deep.
_FRAMES_PER_LAYER = 40


def chain(size: int) -> keras.Model:
    """Layers one after the other, each second one without variables."""
    x = inputs = keras.Input((_WIDTH,), name="x")
    for index in range(size):
        x = keras.layers.Dense(_WIDTH)(x) if index % 2 else keras.layers.Activation("relu")(x)
    return keras.Model(inputs, x)


def wide(size: int) -> keras.Model:
    """Layers side by side."""
    inputs = keras.Input((_WIDTH,), name="x")
    branches = [keras.layers.Dense(_WIDTH)(inputs) for _ in range(size)]
    return keras.Model(inputs, keras.layers.Add()(branches))


SHAPES: dict[str, Callable[[int], keras.Model]] = {"chain": chain, "wide": wide}


def measure(shape: str, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of `trace` and `export`, an entry for each round, and the size of the artifact."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), size * _FRAMES_PER_LAYER))
    warm_up(folder)
    notebook = Notebook(folder)
    model = SHAPES[shape](size)
    for _ in range(rounds):
        notebook.time("seconds", "trace", lambda: contenders.trace(model))
        target = notebook.time_writing(
            "seconds", "export", lambda folder: contenders.export_ours(model, folder), keep=True
        )
        notebook.note("bytes", "saved_model.pb", Path(target, "saved_model.pb").stat().st_size)
        shutil.rmtree(target)
    return notebook.series
