"""Deletes old versions below a folder that a server watches.

In: the folder, and how many versions stay. Out: what went, what stayed and why. The invariant:
only a complete version is ever deleted, and never one that is among the newest, that a link leads
to, or that is being written.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_export import atomic
from keras_export.errors import ArgumentError, ArgumentTypeError, failure
from keras_export.reports import format_size

_VERSION = re.compile("[0-9]+")
_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")


@dataclass(frozen=True)
class Pruning:
    """What `prune` did.

    Attributes:
        base: the folder of the versions.
        kept: names of the versions that stay, by number.
        removed: names of those that went; with `dry_run`, that would go.
        notes: why a version stays beside those that were asked for.
        freed_bytes: of files that no other version shares.
        dry_run: whether nothing was deleted.
    """

    base: str
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    freed_bytes: int = 0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        lists = {name: list(getattr(self, name)) for name in ("kept", "removed", "notes")}
        return {**vars(self), **lists}

    def __str__(self) -> str:
        verb = "would remove" if self.dry_run else "removed"
        size = format_size(self.freed_bytes)
        lines = [f"{self.base}: {verb} {len(self.removed)} versions, {size}"]
        lines += [f"  {verb}: {', '.join(self.removed)}"] if self.removed else []
        lines += [f"  kept: {', '.join(self.kept)}"] if self.kept else []
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *lines = str(self).splitlines()
        items = "".join(f"<li>{html.escape(line.strip())}</li>" for line in lines)
        return f"<p>{html.escape(head)}</p><ul>{items}</ul>"


def prune(base: str | os.PathLike[str], keep_last: int, *, dry_run: bool = False) -> Pruning:
    """Deletes all versions but the newest.

    A version is a directory whose name is an integer, as TensorFlow Serving reads it. Each one
    vanishes for readers in one step. What else is in the folder is left alone.

    Args:
        base: the folder, local or at any URL of `tf.io.gfile`.
        keep_last: how many complete versions stay, at least 1.
        dry_run: tell what would go, and delete nothing.

    Returns:
        What went and what stayed.

    Raises:
        ArgumentError, ArgumentTypeError: there is no such folder, or `keep_last` is no such number.
        TargetError: a version cannot be deleted; older ones may be gone.

    Example:
        >>> import tempfile, tensorflow as tf, keras_export as ke
        >>> base = tempfile.mkdtemp()
        >>> for version in (1, 2, 10):
        ...     report = ke.save(tf.Module(), f"{base}/{version}")
        >>> prune(base, keep_last=2).removed
        ('1',)
    """
    _check_number(keep_last)
    folder = _Folder(os.fspath(base))
    complete, notes = [], []
    for name in folder.versions():
        reason = folder.reason_to_stay(name)
        if reason is None:
            complete.append(name)
        else:
            notes.append(f"{name} stays: {reason}")
    removed = [name for name in complete[:-keep_last] if name not in folder.targets]
    notes += [f"{x} stays: a link leads to it" for x in complete[:-keep_last] if x not in removed]
    freed = sum(folder.own_bytes(name) for name in removed)
    if not dry_run:
        for name in removed:
            atomic.remove(folder.path_of(name), above=folder.path)
    kept = tuple(name for name in complete if name not in removed)
    return Pruning(folder.path, kept, tuple(removed), tuple(notes), freed, dry_run)


def _check_number(keep_last: Any) -> None:
    if not isinstance(keep_last, int) or isinstance(keep_last, bool):
        received = f"keep_last={keep_last!r}"
        raise ArgumentTypeError(failure("prune", "an integer for keep_last", received))
    if keep_last < 1:
        raise ArgumentError(
            failure(
                "prune",
                "keep_last of 1 or more",
                f"keep_last={keep_last}",
                "To delete all versions, delete the folder.",
            )
        )


class _Folder:
    """A folder of versions, here or elsewhere."""

    def __init__(self, path: str) -> None:
        self.path = path if "://" in path else os.path.abspath(path)
        self._remote = "://" in path
        if not self._is_folder(self.path):
            raise ArgumentError(failure(f"prune {path}", "a folder", "none at that path"))
        self.targets = frozenset() if self._remote else frozenset(self._linked())

    def versions(self) -> list[str]:
        """Names of directories that a server takes for versions, by number."""
        names = [name.rstrip("/") for name in self._names(self.path)]
        found = [x for x in names if _VERSION.fullmatch(x) and self._is_folder(self.path_of(x))]
        return sorted(found, key=lambda name: (int(name), name))

    def path_of(self, name: str) -> str:
        return f"{self.path}/{name}"

    def reason_to_stay(self, name: str) -> str | None:
        """Why a directory is never deleted; None for a complete version."""
        path = self.path_of(name)
        if not self._remote and os.path.islink(path):
            return "it is a link"
        if not any(self._exists(f"{path}/{file}") for file in _MODEL_FILES):
            return "it has no saved_model.pb, so it may be being written"
        return None

    def own_bytes(self, name: str) -> int:
        """Bytes of the files that vanish with a version: none that it shares by a hard link."""
        path, total = self.path_of(name), 0
        if self._remote:
            gfile = _gfile()
            return sum(
                int(gfile.stat(f"{folder}/{file}").length)
                for folder, _, files in gfile.walk(path)
                for file in files
                if gfile.exists(f"{folder}/{file}")
            )
        for folder, _, files in os.walk(path):
            for file in files:
                status = os.lstat(os.path.join(folder, file))
                total += status.st_size if status.st_nlink == 1 else 0
        return total

    def _linked(self) -> Iterator[str]:
        """Names of versions that links in the folder or beside it lead to."""
        here = os.path.realpath(self.path)
        for folder in (here, os.path.dirname(here)):
            for name in self._names(folder):
                link = os.path.join(folder, name)
                if os.path.islink(link):
                    parent, _, version = os.path.realpath(link).rpartition("/")
                    if parent == here:
                        yield version

    def _names(self, folder: str) -> list[str]:
        return list(_gfile().listdir(folder)) if self._remote else sorted(os.listdir(folder))

    def _is_folder(self, path: str) -> bool:
        return bool(_gfile().isdir(path)) if self._remote else os.path.isdir(path)

    def _exists(self, path: str) -> bool:
        return bool(_gfile().exists(path)) if self._remote else os.path.exists(path)


def _gfile() -> Any:
    import tensorflow as tf  # only it knows other file systems

    return tf.io.gfile
