"""Looks through an HDF5 file in a process of its own, which may be lost.

In: the path of a file that anybody may have made. Out: what `hdf5_walk` finds in it. The
invariant: a damaged file can send the HDF5 library round in circles, make it take all memory or
end the process; here that is the other process, and for a time and in a memory that grow with the
file alone. That process opens no other file where the system has Landlock.

`python -m keras_export.quarantine PATH CALLED SAFE_MODE SECONDS BYTES` is that process: it prints
JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from keras_export import hdf5_walk, isolation
from keras_export.errors import DamagedFileError, ExportError, UnsafeFileError
from keras_export.sources import MEGABYTE, SourceFile

# Of the processor's time. The smallest variables take a second for 4 MB of them, 2026.
_SECONDS = 20.0
_SECONDS_PER_BYTE = 1 / MEGABYTE
# A process that waits for its disk or its turn uses up none of the processor's time.
_PATIENCE = 20
_BYTES = 512 * MEGABYTE
_BYTES_PER_BYTE = 8
_MAX_ANSWER_BYTES = 2048 * MEGABYTE
_MAX_EXIT_CODE = 255
_TOLD_BYTES = 4096
_ERRORS: dict[str, type[ExportError]] = {
    x.__name__: x for x in (DamagedFileError, UnsafeFileError)
}


def examined(path: str, called: str, safe_mode: bool) -> SourceFile:
    """Looks at every member of an HDF5 file.

    Args:
        path: of the file.
        called: what to call it in an error.
        safe_mode: refuse also what a trusted file may have.

    Returns:
        What it is; its configuration as text.

    Raises:
        UnsafeFileError: a member of it may not be read.
        DamagedFileError: it cannot be read in reasonable time and memory, or is no file of Keras.
    """
    size = os.path.getsize(path)
    seconds = _SECONDS + size * _SECONDS_PER_BYTE
    limits = (f"{seconds:.0f}", f"{_BYTES + size * _BYTES_PER_BYTE}")
    arguments = (os.path.abspath(path), called, str(int(safe_mode)), *limits)
    with tempfile.TemporaryFile() as answered, tempfile.TemporaryFile() as told:
        code = _code(arguments, answered, told, seconds, called)
        answer = _answer_in(answered) if code == 0 else None
        if answer is None:
            raise DamagedFileError(f"Cannot read {called}: {_reason(code, told, seconds)}.")
    if error := _ERRORS.get(str(answer.get("error"))):
        raise error(answer["message"])
    return SourceFile(**{**answer, "path": called, "weights": path})


def _code(
    arguments: tuple[str, ...], answered: Any, told: Any, seconds: float, called: str
) -> int | None:
    try:
        return run(arguments, answered, told, seconds * _PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise DamagedFileError(
            f"Cannot look through {called}: this needs another process, and {sys.executable!r} "
            f"cannot be started ({error}). Convert it with a Python that can."
        ) from error


def _answer_in(file: Any) -> dict[str, Any] | None:
    if os.fstat(file.fileno()).st_size > _MAX_ANSWER_BYTES:
        return None
    file.seek(0)
    try:
        found = json.loads(file.read())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _reason(code: int | None, told: Any, seconds: float) -> str:
    """Why there is no answer."""
    if code is None or -code == getattr(signal, "SIGXCPU", 0):
        return (
            f"the HDF5 library did not come to its end in {seconds:.0f} s of the processor's time, "
            "so it is damaged, or made to hold up its readers. Get it again from where it is from"
        )
    if code < 0 or code > _MAX_EXIT_CODE:
        name = signal.Signals(-code).name if code < 0 else f"{code:#x}"
        return (
            f"the HDF5 library crashed on it ({name}), so it is damaged, or made to do that. Get "
            "it again from where it is from"
        )
    told.seek(max(0, os.fstat(told.fileno()).st_size - _TOLD_BYTES))
    lines = told.read().decode(errors="replace").strip().splitlines() or ["without a word"]
    return f"the process that looked through it ended with exit code {code}: {lines[-1]}"


def run(arguments: tuple[str, ...], answered: Any, told: Any, patience: float) -> int:
    """Starts the process and waits for its exit code, negative for the number of a signal.

    Args:
        arguments: of the process.
        answered: a file for what it prints.
        told: a file for what goes wrong.
        patience: seconds.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it did not end and was killed.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    known = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, known] if known else [package]),
        "OPENBLAS_NUM_THREADS": "1",  # each would take memory of its own
    }
    return subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        cwd=package,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=answered,
        stderr=told,
        timeout=patience,
    ).returncode


def found(path: str, called: str, safe_mode: str, seconds: str, most_bytes: str) -> str:
    """What the other process does and prints; it takes limits that it cannot raise."""
    _limit(int(seconds), int(most_bytes))
    if int(safe_mode):
        isolation.restrict([path, *isolation.folders_of_python()], [])
    try:
        return json.dumps(vars(hdf5_walk.examine(path, called, bool(int(safe_mode)))))
    except ExportError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)})


def _limit(seconds: int, most_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows: the other process' patience is the limit
        return
    for name, soft, hard in (
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", seconds, seconds + 5),
        ("RLIMIT_DATA", most_bytes, most_bytes),
    ):
        with suppress(ValueError, OSError):  # a lower limit is in force already
            resource.setrlimit(getattr(resource, name), (soft, hard))


if __name__ == "__main__":
    print(found(*sys.argv[1:6]))
