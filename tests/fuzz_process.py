"""Looks through mutated files until something else happens than that they are read or refused.

In: a folder with innocent files, how many mutations, the most bytes of memory. Out: exit code 0,
and on stdout how many files were refused. The invariant: the file that is looked through is on
disk, so that one that kills this process can be found. What is looked through in a process of its
own is so here, too; a fork is a process that starts sooner.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peak_memory import peak_bytes

from keras_export import hdf5, quarantine, untrusted
from keras_export.errors import ExportError
from keras_export.sources import SourceFile

_MAX_SECONDS = 20


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Files that differ from an innocent one at a few places."""
    place = st.integers(0, len(content) - 1)
    some = st.binary(min_size=1, max_size=16)
    extreme = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\x80", b"\x01\0\0\0"])
    patches = st.lists(st.tuples(place, some | extreme), min_size=1, max_size=6)
    patched = patches.map(lambda found: _patched(content, found))
    cut = place.map(lambda end: content[:end])
    moved = st.tuples(place, place, st.integers(1, 4096)).map(
        lambda x: content[: x[0]] + content[x[1] : x[1] + x[2]] + content[x[0] :]
    )
    return st.one_of(patched, patched, moved, cut)


def _patched(content: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    result = bytearray(content)
    for place, patch in patches:
        result[place : place + len(patch)] = patch
    return bytes(result)


def forked(work: Callable[[], None]) -> int:
    """Does it in another process; the exit code, negative for the number of a signal."""
    if (process := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def quarantined(arguments: tuple[str, ...], answered: Any, told: Any, _: float) -> int:
    """What stands for `quarantine.run`."""

    def work() -> None:
        os.dup2(told.fileno(), sys.stderr.fileno())
        answered.write(quarantine.found(*arguments).encode())
        answered.flush()

    return forked(work)


def read(opened: SourceFile) -> None:
    """Reads what was let through, as a conversion does."""
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_SECONDS, _MAX_SECONDS))
    try:
        if opened.kind in ("model", "layers"):
            with hdf5.stored_layers(opened.weights) as layers:
                for weights in layers.values():
                    for weight in weights:
                        weight.read()
        elif opened.weights:
            with hdf5.stored_variables(opened.weights) as variables:
                for weight in variables.values():
                    weight.read()
    except Exception:  # the conversion names it
        os._exit(2)


def main(folder: Path, count: int, most_bytes: int) -> None:
    """Runs them all."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    contents = [path.read_bytes() for path in sorted(folder.glob("innocent.*"))]
    path, place = folder / "mutated", folder / "place"
    outcomes: Counter[str] = Counter()

    @seed(2026)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of([mutations(content) for content in contents]))
    def look(content: bytes) -> None:
        path.write_bytes(content)
        place.mkdir()
        # Kills the process, wherever it hangs: seconds of its own, other processes' don't count.
        signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)
        try:
            opened = untrusted.open_source(os.fspath(path), os.fspath(place))
            code = forked(lambda: read(opened))
            assert code in (0, 2), code
            outcomes["unreadable" if code else "read"] += 1
        except ExportError as error:
            assert os.fspath(path) in str(error), error
            outcomes[type(error).__name__] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(place)
        assert sorted(folder.iterdir()) == before

    quarantine.run = quarantined
    quarantine._SECONDS = _MAX_SECONDS / 10  # those that need all of it should not take hours
    path.touch()
    before = sorted(folder.iterdir())
    look()
    of_others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    assert max(peak_bytes(), of_others) < most_bytes, (peak_bytes(), of_others)
    print(dict(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
