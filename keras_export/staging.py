"""Staging directories: where an export is written before it is published.

In: a target. Out: a directory to write into, made durable by `commit` and then published in the way
of a subclass. The invariant: without a commit, or after one that failed, nothing of it stays.
"""

from __future__ import annotations

import abc
import dataclasses
import errno
import os
import shutil
import time
from contextlib import suppress

from keras_export import directories, locks, sweeping, targets


@dataclasses.dataclass(frozen=True)
class Publication:
    """What a commit took, and what it could not delete.

    Attributes:
        sync_seconds: until every staged file was on disk; 0 for a remote target.
        publish_seconds: from then on, with the deletion of the old directory.
        leftovers: paths that should have been deleted and could not be.
    """

    sync_seconds: float
    publish_seconds: float
    leftovers: tuple[str, ...] = ()


class Staging(abc.ABC):
    """A directory to write an export into before it is published.

    Attributes:
        path: the directory to write `saved_model.pb`, `variables/`, … into. It exists.
        target: where `commit` publishes it; symlinks are resolved.
    """

    path: str
    target: str

    @abc.abstractmethod
    def commit(self, *, exclusive: bool = False) -> Publication:
        """Makes what was written durable and publishes it; to be called once.

        Args:
            exclusive: refuse a target that exists, even an empty directory.

        Raises:
            TargetError: the target cannot be written, or exists (`errno` is then `EEXIST`).
                A local target is as it was.
        """

    @abc.abstractmethod
    def discard(self) -> None:
        """Removes the staging directory, and the folders made for it that are still empty."""


class LocalStaging(Staging):
    """A locked container in the folder `place`."""

    def __init__(self, target: str, place: str) -> None:
        self.target = target
        self._folders: list[str] = []
        self._written: set[str] = set()
        self._published = False
        self._container, self._lock = "", -1
        try:
            self._open(place)
        except BaseException:
            self.discard()
            raise

    def _open(self, place: str) -> None:
        for _ in range(targets.ATTEMPTS):
            # Deleted meanwhile: by a failed export that made the folders, or by a sweep.
            with suppress(FileNotFoundError):
                directories.make_folders(place, self._folders)
                self._make_container(place)
            if self._lock >= 0:
                return
        raise FileNotFoundError(errno.ENOENT, "it keeps vanishing", place)

    def _make_container(self, place: str) -> None:
        self._container = os.path.join(place, locks.container_name())
        os.mkdir(self._container, 0o700)
        self._lock = locks.hold(self._container)
        self.path = os.path.join(self._container, sweeping.NEW)
        for room in sweeping.ROOMS if self._lock >= 0 else ():
            os.mkdir(os.path.join(self._container, room))

    def commit(self, *, exclusive: bool = False) -> Publication:
        started = time.perf_counter()
        with targets.explained(self.target):
            directories.sync_tree(self.path)
            synced = time.perf_counter()
            self._written, new = set(os.listdir(self.path)), os.lstat(self.path)
            try:
                self._publish(exclusive)
            except BaseException:
                self._undo(new)
                raise
        leftovers = () if self._delete_container() else (self._container,)
        return Publication(synced - started, time.perf_counter() - synced, leftovers)

    def _delete_container(self) -> bool:
        """Whether nothing of it is left."""
        try:
            for room in sweeping.ROOMS:  # which are empty, unless an old artifact was replaced
                with suppress(FileNotFoundError):
                    os.rmdir(os.path.join(self._container, room))
            os.rmdir(self._container)
        except OSError:
            shutil.rmtree(self._container, ignore_errors=True)
        if os.path.lexists(self._container):
            return False
        self._container = ""
        return True

    @abc.abstractmethod
    def _publish(self, exclusive: bool) -> None: ...

    def _undo(self, new: os.stat_result) -> None:
        try:
            self._withdraw(new)
            sweeping.restore(self._container)
        except OSError as error:
            mend = f"What was there is in {self._container}: move it back, or call sweep() later."
            what = f"restore {self.target}"
            raise targets.refusal(error, what, "renames to work", mend) from error

    def _withdraw(self, new: os.stat_result) -> None:
        """Takes back the directory of status `new` if it is what stands at the target."""

    def discard(self) -> None:
        try:
            # If restoring fails, the container holds the only copy of the old artifact: it stays.
            with suppress(OSError):
                if self._container:
                    sweeping.restore(self._container)
                    self._delete_container()
            for folder in reversed(self._folders):
                with suppress(OSError):
                    os.rmdir(folder)
        finally:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1
