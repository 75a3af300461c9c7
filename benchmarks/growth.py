"""How export time grows with the number of layers, of variables and of bytes.

In: a shape of model and its size. Out: seconds of a trace, of a write and of a first export. The
invariant: all work on the same model, in turns.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contenders
import keras
import numpy as np
from measure import PEERS, Notebook, warm_up

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


class Holder(keras.layers.Layer):
    """Holds variables of which its result needs but one."""

    def __init__(self, count: int, length: int) -> None:
        super().__init__()
        self._shape = (count, length)

    def build(self, input_shape: tuple[int, ...]) -> None:
        count, length = self._shape
        # Not of one value: equal pages could be stored once by a file system.
        values = np.random.default_rng(0).random(length, "float32")
        self.held = [
            self.add_weight(shape=(length,), initializer=lambda *_, **__: values, name=f"w{index}")
            for index in range(count)
        ]

    def call(self, x: Any) -> Any:
        return x + self.held[0][0]


def variables(size: int) -> keras.Model:
    """One layer with that many variables."""
    inputs = keras.Input((_WIDTH,), name="x")
    return keras.Model(inputs, Holder(size, _WIDTH)(inputs))


def megabytes(size: int) -> keras.Model:
    """One layer with that many megabytes, in variables of 32."""
    inputs = keras.Input((_WIDTH,), name="x")
    return keras.Model(inputs, Holder(size // 32, 8_000_000)(inputs))


SHAPES: dict[str, Callable[[int], keras.Model]] = {
    "chain": chain,
    "wide": wide,
    "variables": variables,
    "megabytes": megabytes,
}

# Keras and TensorFlow need minutes for more.
PEERS_UP_TO = {"chain": 300, "wide": 300, "variables": 5000, "megabytes": 1024}


def measure(shape: str, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds by contender, an entry for each round but one of the peers; size of the artifact."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), size * _FRAMES_PER_LAYER))
    warm_up(folder)
    notebook = Notebook(folder)
    model = SHAPES[shape](size)
    for _ in range(rounds):
        notebook.time("seconds", "trace", lambda: contenders.trace(model))
        notebook.time_writing("seconds", "write", lambda x: contenders.save_and_sync(model, x))
        target = notebook.time_writing(
            "seconds", "export", lambda folder: contenders.export_ours(model, folder), keep=True
        )
        notebook.note("bytes", "saved_model.pb", Path(target, "saved_model.pb").stat().st_size)
        shutil.rmtree(target)
    if size <= PEERS_UP_TO[shape]:
        for peer in PEERS:
            _export_by(peer, notebook, model)
    return notebook.series


def _export_by(peer: str, notebook: Notebook, model: keras.Model) -> None:
    export = contenders.EXPORTS[peer]
    notebook.time_writing("seconds", peer, lambda folder: export(model, folder))
