"""Atomic publication: what was staged takes the place of the target in one step.

In comes the path of a target; out goes a directory to write into, and `commit` puts what was
written there in the target's place. This module and those that it stands on (`targets`, `locks`,
`directories`, `sweeping`, `staging`, `remote_staging`), and `atomic`, are the only ones that
rename, fsync and delete.

The invariant: each look-up of a local target finds what was there before, complete, or the new
export, complete; after a failure, what was there before. Two kinds of target fall short of it,
and `sweep` mends what a kill leaves there: on a file system that cannot exchange directories the
target is absent between two renames, and where the target cannot be renamed, such as a mount, its
entries change one by one, `saved_model.pb` last. A remote target has no such repair.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from keras_export import directories, locks, sweeping, targets
from keras_export.remote_staging import RemoteStaging
from keras_export.staging import LocalStaging, Staging

_CHANGED = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
_TREE = "tree"  # what is missing above the target, with the target in it
# EBUSY: a mount. EXDEV: a directory from a lower layer of an overlay, as in a container image.
_IMMOVABLE = (*targets.UNWRITABLE, errno.EBUSY, errno.EXDEV)


@contextmanager
def stage(
    export_dir: str | os.PathLike[str], *, above: str | os.PathLike[str] | None = None
) -> Iterator[Staging]:
    """Yields a directory to write an export into; without a commit, nothing of it stays.

    What killed processes left beside the target is swept first. Errors of the body pass through.

    Args:
        export_dir: as in `check_target`.
        above: a folder above the target to stage in, where a rename from there is possible; the
            folder of the target by default. What is missing between the two appears together with
            the target, in the same step.

    Raises:
        TargetError: no directory can be made there. Nothing is left behind.

    >>> import tempfile
    >>> target = os.path.join(tempfile.mkdtemp(), "model")
    >>> with stage(target) as staging:
    ...     open(os.path.join(staging.path, "saved_model.pb"), "wb").close()
    ...     publication = staging.commit()
    >>> os.listdir(target)
    ['saved_model.pb']
    """
    target = targets.check_target(export_dir)
    with targets.explained(target):
        place = None if above is None else targets.resolved(above)
        remote = targets.is_remote(target)
        staging = RemoteStaging(target, place) if remote else _open(target, place)
    try:
        yield staging
    finally:
        staging.discard()


def _open(path: str, above: str | None) -> Staging:
    target = os.path.realpath(path)
    exists, parent = os.path.isdir(target), os.path.dirname(target)
    places = [parent]
    if above is not None and directories.can_rename(above, target):
        places = list(dict.fromkeys((above, parent)))
    for folder in (*places, target):
        sweeping.sweep(folder)
    for place in places if not (exists and _must_stay(target)) else ():
        try:
            return _Sibling(target, place)
        except OSError as error:
            is_last = place == parent and not exists
            if is_last or error.errno not in targets.UNWRITABLE:
                raise
    return _Inside(target, target)


def _must_stay(target: str) -> bool:
    """Whether the directory cannot be renamed, or this process stands in it."""
    with suppress(FileNotFoundError):  # of getcwd
        return targets.is_mount(target) or f"{os.getcwd()}/".startswith(f"{target}/")
    return False


class _Sibling(LocalStaging):
    """Staging beside the target or further above, published with one rename or exchange."""

    def _publish(self, exclusive: bool) -> None:
        try:
            self._put_in_place(exclusive)
        except OSError as error:
            fixed = error.errno in _IMMOVABLE and os.path.isdir(self.target)
            if self._published or exclusive or not fixed:
                raise
            sweeping.restore(self._container)
            self._publish_inside()
            return
        for path in (self.target, *reversed(self._folders)):
            directories.sync(os.path.dirname(path))

    def _put_in_place(self, exclusive: bool) -> None:
        for attempt in range(1, targets.ATTEMPTS + 1):
            try:
                if exclusive or not os.path.lexists(self.target):
                    return self._put_new()
                return self._replace()
            except OSError as error:
                if exclusive and os.path.lexists(self.target):
                    raise targets.taken(self.target) from error
                changed = error.errno in _CHANGED and attempt < targets.ATTEMPTS
                if self._published or not changed:
                    raise
                sweeping.restore(self._container)

    def _put_new(self) -> None:
        missing = directories.missing_between(os.path.dirname(self._container), self.target)
        if not missing:
            directories.rename_new(self.path, self.target)
            return
        top = os.path.join(self._container, _TREE)
        inner = os.path.join(top, os.path.relpath(self.target, missing[0]))
        with suppress(FileExistsError):  # of an attempt before
            os.mkdir(top)
        os.makedirs(os.path.dirname(inner), exist_ok=True)
        os.rename(self.path, inner)
        try:
            directories.sync_folders(top, os.path.dirname(inner))
            directories.rename_new(top, missing[0])
        finally:
            if os.path.lexists(inner):  # it failed, and the next attempt may find the folders
                os.rename(inner, self.path)
                shutil.rmtree(top)
            else:
                self._folders += missing

    def _replace(self) -> None:
        if not stat.S_ISDIR(os.lstat(self.target).st_mode):
            raise targets.not_a_folder(self.target, self.target)
        directories.copy_mode(self.target, self.path)
        directories.carry(self.target, self.path, directories.ours_in(self.target))
        try:
            directories.renameat2(self.path, self.target, directories.EXCHANGE)
        except OSError as error:
            if error.errno not in directories.UNSUPPORTED:
                raise
            self._replace_in_two_steps()
        else:
            self._carry_again(self.path)

    def _replace_in_two_steps(self) -> None:
        name = sweeping.name_of_whole(self.target, os.path.dirname(self._container))
        aside = os.path.join(self._container, sweeping.WHOLE, name)
        with locks.local_turn(os.path.dirname(self.target)):
            os.rename(self.target, aside)
            os.rename(self.path, self.target)
            self._carry_again(aside)

    def _carry_again(self, old: str) -> None:
        """Carries over what others put into the old directory since the first time."""
        self._published = True
        directories.carry(old, self.target, directories.ours_in(old))

    def _publish_inside(self) -> None:
        inside = _Inside(self.target, self.target)
        try:
            directories.carry(self.path, inside.path, set(os.listdir(self.path)) - self._written)
            inside.commit()
        finally:
            inside.discard()

    def _withdraw(self, new: os.stat_result) -> None:
        with suppress(FileNotFoundError):
            if not os.path.samestat(os.lstat(self.target), new):
                return
            if os.path.lexists(self.path):
                directories.renameat2(self.path, self.target, directories.EXCHANGE)
            else:
                os.rename(self.target, self.path)


class _Inside(LocalStaging):
    """Staging inside a target that cannot be moved; its entries are replaced one by one."""

    def _publish(self, exclusive: bool) -> None:
        if exclusive:
            raise targets.taken(self.target)
        with locks.local_turn(self.target):  # or two exporters would mix their entries
            sweeping.sweep_local(self.target)
            try:
                for name in self._names_to_replace():
                    self._move_in(name)
                directories.sync(self.target)
                os.rmdir(self.path)  # from here on, `restore` takes the export for complete
            except BaseException:
                sweeping.restore(self._container)
                raise

    def _names_to_replace(self) -> list[str]:
        ours, present = directories.ours_in(self.target), set(os.listdir(self.target))
        replaced = set(os.listdir(self.path))
        if ours:
            replaced |= present & (directories.OUR_ENTRIES | {directories.EXTRA})
        for name in present & replaced - ours:
            current = os.path.join(self.target, name)
            if targets.is_folder(current):
                directories.carry_folder(current, os.path.join(self.path, name), ours, name)
        return sorted(replaced | set(os.listdir(self.path)), key=directories.model_last)

    def _move_in(self, name: str) -> None:
        new, current = os.path.join(self.path, name), os.path.join(self.target, name)
        aside = os.path.join(self._container, sweeping.PARTS, name)
        if not os.path.lexists(current):
            os.mkdir(os.path.join(self._container, sweeping.FRESH, name))
        elif os.path.isfile(new) and not targets.is_folder(current):
            directories.link(current, aside)  # and leave it in place until it is replaced
        else:
            directories.displace(current, aside)
        if os.path.lexists(new):
            os.replace(new, current)
            with suppress(FileNotFoundError):
                os.unlink(new)  # a rename from one link of a file to another does nothing
