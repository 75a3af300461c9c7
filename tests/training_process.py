"""Trains in processes that a test may kill at any moment.

`Trainings` keeps a process in reserve that has imported TensorFlow and waits: imports take seconds.
A training publishes versions whose weights are the value that they are ranked by, so a version that
is not what it says can be told.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_TIMEOUT_SECONDS = 60
_SPARES = 2


class Trainings:
    """Starts trainings, each in a process of its own that is used once."""

    def __init__(self) -> None:
        self._spares = [_spare() for _ in range(_SPARES)]
        self._running: subprocess.Popen[str] | None = None

    def start(self, folder: str | os.PathLike[str], **request: Any) -> int:
        """Starts one and returns its process id.

        Args:
            folder: where its versions go.
            **request: `epochs`; `seed` of its values; `kill_at`, the number of the call that
                changes files before which it dies; all else is for the callback.
        """
        self._running = self._spares.pop(0)
        self._spares.append(_spare())
        assert self._running.stdin is not None
        self._running.stdin.write(json.dumps({"folder": os.fspath(folder), **request}) + "\n")
        self._running.stdin.flush()
        return self._running.pid

    def wait(self) -> int:
        """The exit status of the last one, negative for a signal."""
        assert self._running is not None
        self._running.communicate(timeout=_TIMEOUT_SECONDS)
        return self._running.returncode

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in (*self._spares, self._running):
            if process is not None:
                process.kill()
                process.communicate()


def _spare() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True)


def values_of(seed: int, epochs: int) -> list[float]:
    """The values of a training, mostly falling."""
    noise = random.Random(seed)
    return [round(1000 - seed - 0.1 * epoch + noise.random(), 3) for epoch in range(epochs)]


def train(folder: str, epochs: int, seed: int = 0, kill_at: int = 0, **options: Any) -> None:
    """Runs a training in this process.

    Each version that it announces is a line `number value` in `<folder>.told`.
    """
    import keras
    import numpy as np

    import keras_export as ke

    if kill_at:
        _die_before(kill_at)
    values = values_of(seed, epochs)
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])
    model.compile("sgd", "mse")

    class Told(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["value"] = values[epoch]
            model.set_weights([np.full((2, 1), values[epoch]), np.full(1, values[epoch])])

    def tell(report: Any) -> None:
        with open(f"{folder}.told", "a") as file:
            file.write(f"{report.version} {report.logs['value']}\n")

    checkpoint = ke.SavedModelCheckpoint(
        f"{folder}/{{version}}", "value", mode="min", on_export=tell, **options
    )
    x = np.ones((2, 2))
    model.fit(x, np.ones(2), epochs=epochs, verbose=0, callbacks=[Told(), checkpoint])


def _die_before(number: int) -> None:
    """Kills this process before its nth call that changes files."""
    from keras_export import directories

    left = [number]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "link"):
        setattr(os, name, counted(getattr(os, name)))
    directories.renameat2 = counted(directories.renameat2)


def main() -> None:
    import keras  # noqa: F401

    import keras_export.callbacks  # noqa: F401

    line = sys.argv[1] if len(sys.argv) > 1 else sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    try:
        train(**request)
    except BaseException as error:
        Path(f"{request['folder']}.error").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
