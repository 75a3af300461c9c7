"""One measurement in a process of its own: `python task.py NAME ARGUMENTS RESULT`.

In: the name of a task, a JSON list of its arguments, and the file for the result. Out: that file,
as JSON. The invariant: a process does one task, so that memory, caches and trace counters of one
do not show in another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def model(name: str, rounds: int, folder: str, artifacts: str) -> dict[str, Any]:
    import measure

    return measure.measure(name, rounds, Path(folder), Path(artifacts))


def peak(name: str, contender: str | None, folder: str) -> dict[str, float]:
    import measure

    return measure.peak_of(name, contender, Path(folder))


def load(loader: str, export_dir: str) -> dict[str, float]:
    import loaders

    return loaders.measure(loader, export_dir)


def load_profile(export_dir: str) -> dict[str, float]:
    import loaders

    return loaders.profile(export_dir)


def growth(shape: str, size: int, rounds: int, folder: str) -> dict[str, Any]:
    import growth

    return growth.measure(shape, size, rounds, Path(folder))


# Imports are inside: a process that loads an artifact must not know what exported it.
TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (model, peak, load, load_profile, growth)
}


def main(name: str, arguments: str, result: str) -> None:
    found = TASKS[name](*json.loads(arguments))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
