"""How long `fit` waits for an export at the end of an epoch.

In: a model. Out: seconds by callback, an entry for each epoch. The invariant: all callbacks hang on
the same `fit`, and each is timed inside its event: `fit` itself may end late for other reasons.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import contenders
import keras
import models

import keras_export as ke

WEIGHTS = "ModelCheckpoint(save_weights_only)"
READS = "read_value"


class Timed(keras.callbacks.Callback):
    """Times a function of the epoch's number."""

    def __init__(self, action: Callable[[int], Any]) -> None:
        super().__init__()
        self.action = action
        self.seconds: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        started = time.perf_counter()
        self.action(epoch)
        self.seconds.append(time.perf_counter() - started)


class TimedWeights(keras.callbacks.ModelCheckpoint):
    """Keras's own, timed."""

    def __init__(self, path: str) -> None:
        super().__init__(path, save_weights_only=True)
        self.seconds: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        started = time.perf_counter()
        super().on_epoch_end(epoch, logs)
        self.seconds.append(time.perf_counter() - started)


def measure(model: keras.Model, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Trains for one epoch more than there are rounds; the first export is told apart.

    Args:
        model: is compiled and trained.
        rounds: how many later epochs are timed.
        folder: to write into; emptied of it again.

    Returns:
        Seconds of the later epochs by contender, and those of the first as `<contender>, first`.
    """
    place = tempfile.mkdtemp(dir=folder)
    ours = ke.SavedModelCheckpoint(os.path.join(place, "ours", "{version}"))
    keras_export_ = Timed(
        lambda epoch: contenders.export_keras(model, os.path.join(place, "keras", str(epoch)))
    )
    weights = TimedWeights(os.path.join(place, "{epoch}.weights.h5"))
    reads = Timed(lambda _: contenders.read(model))
    settling = Timed(lambda _: _settle())
    models.compile_model(model)
    x, y = models.batch(model)
    callbacks = [ours, settling, reads, weights, settling, keras_export_, settling]
    model.fit(x, y, epochs=rounds + 1, verbose=0, callbacks=callbacks)
    shutil.rmtree(place)
    return _split(
        {
            contenders.OURS: [report.stall_seconds for report in ours.reports],
            contenders.KERAS: keras_export_.seconds,
            WEIGHTS: weights.seconds,
            READS: reads.seconds,
        }
    )


def _settle() -> None:
    """Waits until nothing is written any more: what comes next is timed by itself."""
    while any(thread.name == "keras_export" for thread in threading.enumerate()):
        time.sleep(0.001)
    os.sync()


def _split(series: Mapping[str, list[float]]) -> dict[str, list[float]]:
    later = {name: seconds[1:] for name, seconds in series.items()}
    first = {f"{name}, first": seconds[:1] for name, seconds in series.items()}
    return {**later, **first}
