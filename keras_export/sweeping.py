"""Staging directories as they lie on the disk, and the removal of those whose process is dead.

In: a folder. Out: the folder without them. The invariant: what a killed publication had moved away
and not replaced is put back first, and a directory whose process lives is left alone.

    .keras_export-<pid>-<random>/    locked as long as its process lives; its folder is "the place"
        new/      what the caller writes; gone or replaced by the old target when all is done
        whole/    the old target, between two renames; its path from the place, `/` as `%2F`
        parts/    entries of the place that have been replaced one by one
        fresh/    an empty directory for each entry that the place did not have
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from keras_export import directories, locks, targets

NEW, WHOLE, PARTS, FRESH = ROOMS = ("new", "whole", "parts", "fresh")


def sweep(parent: str | os.PathLike[str]) -> list[str]:
    """Removes the staging directories that dead processes of this user left in a folder.

    What such a process had moved away and not replaced is put back. A remote folder has no locks
    that tell the dead from the living: there, nothing is removed.

    Returns:
        The paths of the removed directories, sorted.
    """
    folder = targets.normalised(parent)
    if targets.is_remote(folder) or not _leftovers(folder):
        return []
    with suppress(OSError), locks.local_turn(folder):  # OSError: not ours to write to
        return sweep_local(folder)
    return []


def _leftovers(folder: str) -> list[str]:
    names: list[str] = []
    with suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if name.startswith(locks.PREFIX))
    return [os.path.join(folder, name) for name in names]


def sweep_local(folder: str) -> list[str]:
    """`sweep` for a caller that has its turn in the folder."""
    containers = [
        path for path in _leftovers(folder) if locks.CONTAINER.fullmatch(os.path.basename(path))
    ]
    return [container for container in containers if _sweep_one(container)]


def _sweep_one(container: str) -> bool:
    try:
        lock = locks.hold(container, wait=False)
    except OSError:  # alive, gone, or on a file system that cannot tell
        return False
    if lock < 0:
        return False
    try:
        # In a folder like /tmp, others could lay a trap that `restore` walks into.
        if os.fstat(lock).st_uid == os.geteuid():
            restore(container)
            shutil.rmtree(container)
            return True
    except OSError:
        pass
    finally:
        os.close(lock)
    return False


def restore(container: str) -> None:
    """Puts back what a publication moved away, unless that publication is complete."""
    if not os.path.lexists(os.path.join(container, NEW)):
        return
    for aside, target in _moved(container, WHOLE):
        _restore_whole(aside, _path_of_whole(target))
    for marker, target in _moved(container, FRESH):
        directories.delete(target)
        os.rmdir(marker)
    for aside, target in _moved(container, PARTS):
        if targets.is_folder(aside) or targets.is_folder(target):
            directories.delete(target)
        os.replace(aside, target)


def name_of_whole(target: str, place: str) -> str:
    """What a target is called while it is moved away."""
    return os.path.relpath(target, place).replace("%", "%25").replace("/", "%2F")


def _path_of_whole(named: str) -> str:
    place, name = os.path.split(named)
    return os.path.join(place, name.replace("%2F", "/").replace("%25", "%"))


def _restore_whole(aside: str, target: str) -> None:
    if not os.path.lexists(target):
        os.rename(aside, target)
    else:  # somebody else has published since
        directories.carry(aside, target, directories.ours_in(aside))
        shutil.rmtree(aside)


def _moved(container: str, room: str) -> list[tuple[str, str]]:
    """The entries of a room, each with the path that it belongs to."""
    room, place = os.path.join(container, room), os.path.dirname(container)
    names = sorted(os.listdir(room), key=directories.model_last) if os.path.isdir(room) else []
    return [(os.path.join(room, name), os.path.join(place, name)) for name in names]
