"""Locks that die with their process: on staging directories, and on the moving of entries.

In: a folder of a local file system. Out: a locked directory with a name of its own, or a turn. The
invariant: no name made here parses as an integer, which TensorFlow Serving would take for a
version, and what is locked belongs to a living process.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from keras_export import targets

PREFIX = ".keras_export-"
TURN = f"{PREFIX}turn"
CONTAINER = re.compile(re.escape(PREFIX) + r"\d+-[0-9a-f]+")


@contextmanager
def turn(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lets one process at a time change what a folder says about itself.

    A remote folder has no locks: there, all may at once.
    """
    path = targets.normalised(folder)
    if targets.is_remote(path):
        yield
        return
    with ExitStack() as stack:
        with targets.explained(path):
            stack.enter_context(local_turn(path))
        yield


@contextmanager
def local_turn(folder: str) -> Iterator[None]:
    """Lets one process at a time move the entries of a folder."""
    # Not with a lock on the folder itself: `flock models python train.py` holds that one.
    path, lock = os.path.join(folder, TURN), -1
    while lock < 0:  # the one before us deletes it
        lock = hold(path, flags=os.O_RDONLY | os.O_CREAT)
    try:
        yield
    finally:
        try:
            with suppress(OSError):
                os.unlink(path)
        finally:
            os.close(lock)


@contextmanager
def container(place: str) -> Iterator[str]:
    """A locked directory that is deleted with all that is in it."""
    path, lock = "", -1
    while lock < 0:  # swept before it was locked
        path = os.path.join(place, container_name())
        os.mkdir(path, 0o700)
        lock = hold(path)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def container_name() -> str:
    """A name for a staging directory: of this process, and its own."""
    return f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"


def hold(path: str, *, wait: bool = True, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> int:
    """Locks a file or directory until the returned descriptor is closed or the process dies.

    Returns -1 if it was deleted meanwhile.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _flock(descriptor, wait)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return -1


def _flock(descriptor: int, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            raise  # whoever waits goes on without a lock where the file system has none
