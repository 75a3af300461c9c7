"""Trains in processes that a test may kill at any moment.

`Trainings` keeps one process that has imported TensorFlow and forks for each training: imports take
seconds. It runs no op itself, so no thread of TensorFlow is lost in a fork. A training publishes
versions whose weights are the value that they are ranked by, so a version that is not what it says
can be told.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_TIMEOUT_SECONDS = 300


class Trainings:
    """Starts trainings, each in a process of its own, one at a time."""

    def __init__(self) -> None:
        # Unbuffered, for `select` sees nothing of what has been read ahead.
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._running: int | None = None

    def start(self, folder: str | os.PathLike[str], **request: Any) -> int:
        """Starts one and returns its process id.

        Args:
            folder: where its versions go.
            **request: `epochs`; `seed` of its values; `kill_at`, the number of the call that
                changes files before which it dies; `traced`, to wait for the file
                `<folder>.traced`; all else is for the callback.
        """
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"folder": os.fspath(folder), **request}).encode())
        self._server.stdin.write(b"\n")
        self._running = self._answer()
        return self._running

    def wait(self) -> int:
        """The exit status of the last one, negative for a signal."""
        status = self._answer()
        self._running = None
        return status

    def _answer(self) -> int:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], _TIMEOUT_SECONDS)[0]:
            raise TimeoutError(f"no answer from a training in {_TIMEOUT_SECONDS} seconds")
        return int(self._server.stdout.readline())

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
        self._server.kill()
        self._server.communicate()


def values_of(seed: int, epochs: int) -> list[float]:
    """The values of a training, mostly falling."""
    noise = random.Random(seed)
    return [round(1000 - seed - 0.1 * epoch + noise.random(), 3) for epoch in range(epochs)]


def train(
    folder: str,
    epochs: int,
    seed: int = 0,
    kill_at: int = 0,
    traced: bool = False,
    **options: Any,
) -> None:
    """Runs a training in this process.

    Each version that it announces is a line `number value` in `<folder>.told`.
    """
    import keras
    import numpy as np

    import keras_export as ke

    if traced:
        _wait_for(Path(f"{folder}.traced"))
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


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody made {path}")
        time.sleep(0.01)


def main() -> None:
    """Forks for each request of standard input; tells the process id and then the exit status."""
    import keras  # noqa: F401

    import keras_export.callbacks  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(request: dict[str, Any]) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the other is for the answers
    try:
        train(**request)
    except BaseException as error:
        Path(f"{request['folder']}.error").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
