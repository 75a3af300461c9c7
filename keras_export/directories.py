"""Steps on local directories: carry files over, move, rename without replacing, make durable.

In: paths. Out: changed directories, or an `OSError` with the path. The invariant: files are linked
or copied, never written to, so what has two names keeps its content under both. Of SavedModel, only
the names of its files are known here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress

from keras_export import locks, targets

MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
EXTRA = "assets.extra"
OUR_ENTRIES = frozenset((*MODEL_FILES, "fingerprint.pb", "variables", "assets", "debug"))
_OUR_EXTRAS = ("tf_serving_warmup_requests", "keras_export.json", "digests.json")
OURS = OUR_ENTRIES | {f"{EXTRA}/{name}" for name in _OUR_EXTRAS}

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _NOREPLACE, EXCHANGE = -100, 1, 2  # renameat2(2)
# EPERM: a seccomp filter that does not know the call.
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def make_folders(folder: str, made: list[str]) -> None:
    """Makes a folder with all above it, and appends those that were missing to `made`."""
    if not os.path.isdir(folder):
        make_folders(os.path.dirname(folder), made)
        with suppress(FileExistsError):
            os.mkdir(folder)
            made.append(folder)


def missing_between(above: str, path: str) -> list[str]:
    """The folders below `above` and above `path` that do not exist, the topmost first."""
    folder, missing = os.path.dirname(path), []
    while folder != above and not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing[::-1]


def can_rename(above: str, path: str) -> bool:
    """Whether `path` is below `above` and, as far as both exist, on the same file system."""
    folder = os.path.dirname(path)
    devices = {os.stat(targets.nearest(x)[0]).st_dev for x in (above, folder)}
    return os.path.commonpath((above, folder)) == above and len(devices) == 1


def ours_in(folder: str) -> frozenset[str]:
    """What belongs to the artifact in a folder; in any other folder everything is foreign."""
    present = any(os.path.lexists(os.path.join(folder, name)) for name in MODEL_FILES)
    return frozenset(OURS if present else ())


def model_last(name: str) -> tuple[bool, str]:
    """A key for sorting names such that what makes a directory a SavedModel comes last."""
    return name in MODEL_FILES, name


def carry(old: str, new: str, ours: Collection[str], below: str = "") -> None:
    """Links into `new` what `old` holds and `new` lacks, without the relative paths in `ours`."""
    with os.scandir(old) as scan:
        entries = list(scan)
    carried = False
    for entry in entries:
        relative, copy = os.path.join(below, entry.name), os.path.join(new, entry.name)
        folder = entry.is_dir(follow_symlinks=False)
        if folder and (targets.is_mount(entry.path) or locks.CONTAINER.fullmatch(entry.name)):
            # Moving the old directory would pull it away, and deleting that would empty it.
            raise OSError(errno.EBUSY, "a mount or a running export", entry.path)
        if relative in ours or entry.name == locks.TURN:
            continue
        if folder:
            carry_folder(entry.path, copy, ours, relative)
        elif not os.path.lexists(copy):
            link(entry.path, copy)
            carried = True
    if carried:
        sync(new)


def carry_folder(old: str, new: str, ours: Collection[str], relative: str) -> None:
    """`carry` for the folder at `relative` in the artifact, with its owner and permissions."""
    made = not os.path.lexists(new)
    if made:
        os.mkdir(new)
    if targets.is_folder(new):  # else the export wrote a file of that name
        carry(old, new, ours, relative)
    if not made:
        return
    if relative == EXTRA and not os.listdir(new):
        os.rmdir(new)
        return
    copy_mode(old, new)
    sync(os.path.dirname(new))


def link(path: str, copy: str) -> None:
    """Gives a file a second name; copies it where it cannot be linked."""
    try:
        os.link(path, copy, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError:  # no hard links here, or not to the files of others
        shutil.copy2(path, copy, follow_symlinks=False)
        if not os.path.islink(copy):
            sync(copy)


def copy_mode(path: str, copy: str) -> None:
    """Gives a directory the owner and the permissions of another."""
    status = os.lstat(path)
    with suppress(OSError):  # only root may give a directory away
        os.chown(copy, status.st_uid, status.st_gid)
    os.chmod(copy, stat.S_IMODE(status.st_mode))


def displace(path: str, aside: str) -> None:
    """Moves an entry away, also where its file system lets directories only be copied."""
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = f"{os.path.dirname(aside)}.copy"
        carry_folder(path, copy, (), "")
        os.rename(copy, aside)
        shutil.rmtree(path)


def delete(path: str) -> None:
    """Removes a file or a directory with all in it; nothing happens if there is none."""
    if targets.is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def rename_new(path: str, target: str) -> None:
    """Renames to a path where nothing may be, not even an empty directory."""
    try:
        renameat2(path, target, _NOREPLACE)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        with locks.local_turn(os.path.dirname(target)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
            os.rename(path, target)


def renameat2(path: str, target: str, flags: int) -> None:
    """The system call: `os` has no way to exchange, or to refuse to replace."""
    call = getattr(_LIBC, "renameat2", None)  # glibc before 2.28 has none
    old, new = os.fsencode(path), os.fsencode(target)
    if call and call(_AT_FDCWD, old, _AT_FDCWD, new, flags) == 0:
        return
    code = ctypes.get_errno() if call else errno.ENOSYS
    raise OSError(code, os.strerror(code), path, None, target)


def sync_tree(top: str) -> None:
    """Makes a directory durable with all in it, the files before their folders."""
    folders = []
    for folder, _, names in os.walk(top):
        folders.append(folder)
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):
                sync(path)
    for folder in reversed(folders):
        sync(folder)


def sync_folders(top: str, folder: str) -> None:
    """Makes the lists of a folder's entries and of those above it up to `top` durable."""
    while True:
        sync(folder)
        if folder == top:
            return
        folder = os.path.dirname(folder)


def sync(path: str) -> None:
    """Makes a file, or the list of a folder's entries, durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no fsync of directories.
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and os.path.isdir(path):
            return
        error.filename = path
        raise
