"""Staging on the file systems of `tf.io.gfile`, which promise no renaming of directories.

In: a URL. Out: a staging directory beside it, whose files `commit` moves to the target one by one.
The invariant: `saved_model.pb` is moved last, and foreign files stay. Nothing mends what a kill
leaves there.
"""

from __future__ import annotations

import time
from contextlib import suppress

from keras_export import directories, locks, targets
from keras_export.staging import Publication, Staging


class RemoteStaging(Staging):
    """Staging through `tf.io.gfile`, which promises no renaming of directories."""

    def __init__(self, target: str, above: str | None = None) -> None:
        self._gfile = targets.gfile()
        self.target = target
        parent = target.rpartition("/")[0]
        # A bucket has no siblings.
        place = above or (target if parent.endswith("/") else parent)
        self.path = f"{place}/{locks.container_name()}"
        self._folders = self._missing(place)
        self._gfile.makedirs(self.path)

    def _missing(self, folder: str) -> list[str]:
        missing = []
        while not folder.endswith("/") and not self._gfile.exists(folder):
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        return missing

    def commit(self, *, exclusive: bool = False) -> Publication:
        started = time.perf_counter()
        note = "Some of its files may be replaced already: export again."
        with targets.explained(self.target, note):
            if exclusive and self._gfile.exists(self.target):
                raise targets.taken(self.target)
            old, new = self._our_files(), self._files(self.path)
            self._gfile.makedirs(self.target)
            for name in sorted(new, key=directories.model_last):
                self._move(name)
            for name in old - new:
                self._gfile.remove(f"{self.target}/{name}")
        return Publication(0.0, time.perf_counter() - started)

    def _our_files(self) -> set[str]:
        if not any(self._gfile.exists(f"{self.target}/{name}") for name in directories.MODEL_FILES):
            return set()
        found = self._files(self.target)
        return {name for name in found if _is_ours(name)}

    def _files(self, top: str) -> set[str]:
        """The relative paths of all files, and of the empty folders with a `/` at the end."""
        found = set()
        for folder, folders, files in self._gfile.walk(top):
            below = folder.removeprefix(top).strip("/")
            # ram:// takes `assets.extra` for a file `.extra` in `assets`.
            files = [name for name in files if self._gfile.exists(f"{folder}/{name}")]
            names = files if files or folders else [""]
            found |= {f"{below}/{name}".lstrip("/") for name in names}
        return found - {""}

    def _move(self, name: str) -> None:
        new, current = f"{self.path}/{name}", f"{self.target}/{name}"
        self._gfile.makedirs(current.rpartition("/")[0])
        if not name.endswith("/"):
            self._gfile.rename(new, current, overwrite=True)

    def discard(self) -> None:
        with suppress(Exception):  # an object store has no empty folders
            self._gfile.rmtree(self.path)
        for folder in self._folders:
            with suppress(Exception):
                if not self._gfile.listdir(folder):
                    self._gfile.rmtree(folder)


def _is_ours(name: str) -> bool:
    return name in directories.OURS or name.partition("/")[0] in directories.OUR_ENTRIES
