"""Paths to export to: normalised, looked at before anything is written, and told in errors.

In: what a caller gave as a path. Out: the absolute path or the URL, or a `TargetError` that says
what is in the way and what to do. The invariant: nothing is created or changed here, and every
error of a file system, TensorFlow's or Python's, becomes one with an `errno`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from keras_export.errors import ArgumentError, ArgumentTypeError, TargetError, failure

ATTEMPTS = 10  # how often others may change a target between our look and our rename
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
# By absl status code.
_INVALID_ARGUMENT = 3
_TF_ERRNO = {5: errno.ENOENT, 6: errno.EEXIST, 7: errno.EACCES, 8: errno.ENOSPC, 12: errno.ENOTSUP}
_UNCHANGED = "What was at the path before is unchanged."
_ADVICE = {
    **dict.fromkeys(UNWRITABLE, "Export to a place that this process may write to."),
    errno.ENOSPC: "Free space there, or export to another file system.",
    errno.EDQUOT: "Free space there, or export to another file system.",
    errno.EIO: "Check the disk, or export to another file system.",
    errno.ENAMETOOLONG: "Export to a shorter path.",
    errno.ENOTSUP: "Install what brings this file system, or export to another.",
}


def check_target(export_dir: str | os.PathLike[str]) -> str:
    """Normalises the path of a target and refuses up front what can never work.

    Args:
        export_dir: a local path, a `file://` URL, or any other scheme of `tf.io.gfile`.

    Returns:
        The absolute local path, symlinks kept; or the URL, without a `/` at its end.

    Raises:
        ArgumentError, ArgumentTypeError: it is not a path.
        TargetError: a file is at the path or above it, or nothing may be written there. Its
            `errno` says which. Nothing is created, here or otherwise.

    >>> check_target("/tmp/models/../model/")
    '/tmp/model'
    """
    path = normalised(export_dir)
    with explained(path):
        if is_remote(path):
            _check_remote(path)
        else:
            _check_local(path)
    return path


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on a file system of this machine, and not of `tf.io.gfile` alone."""
    return not is_remote(normalised(path))


def resolved(path: str | os.PathLike[str]) -> str:
    """A path as reports tell it: absolute and without symlinks where it is local."""
    target = normalised(path)
    return target if is_remote(target) else os.path.realpath(target)


@contextmanager
def explained(target: str, note: str = _UNCHANGED) -> Iterator[None]:
    """Turns errors of the file system in its body into TargetErrors that say what to do.

    Args:
        target: what was to be written.
        note: a sentence on what is there now.
    """
    try:
        yield
    except TargetError:
        raise
    except Exception as error:
        if (code := _errno(error)) is None:
            raise
        mend = f"{_ADVICE.get(code, '')} {note}".strip()
        raise refusal(error, f"export to {target}", "to write there", mend) from error


def is_remote(path: str) -> bool:
    """Whether only `tf.io.gfile` knows the file system of a path."""
    return bool(_REMOTE.match(path))


def normalised(path: str | os.PathLike[str]) -> str:
    """A path without relative parts and final `/`; symlinks stay. Refuses what is no path."""
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        message = failure("export", "a str or os.PathLike", f"export_dir={path!r}")
        raise ArgumentTypeError(message) from error
    if not text or "\0" in text:
        raise ArgumentError(failure("export", "the path of a directory", f"export_dir={text!r}"))
    if text.startswith("file://"):  # read as TensorFlow does: without its host, %20 as it is
        text = "/" + text.removeprefix("file://").partition("/")[2]
    return text.rstrip("/") if is_remote(text) else os.path.abspath(text)


def _check_local(path: str) -> None:
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):  # somebody is replacing it at this moment
            return _check_place(path, os.path.realpath(path))


def _check_place(path: str, target: str) -> None:
    existing, mode = nearest(target)
    if not stat.S_ISDIR(mode):
        raise not_a_folder(path, existing)
    code = 0
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = os.statvfs(existing).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
    elif max(map(len, os.fsencode(target).split(b"/"))) > os.pathconf(existing, "PC_NAME_MAX"):
        code = errno.ENAMETOOLONG
    if code:
        raise OSError(code, os.strerror(code), existing)


def nearest(path: str) -> tuple[str, int]:
    """The path, or the first above it that exists, and its mode."""
    try:
        return path, os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return nearest(os.path.dirname(path))


def _check_remote(path: str) -> None:
    files = gfile()
    existing = path
    while not existing.endswith("/") and not files.exists(existing):
        existing = existing.rpartition("/")[0]
    if not existing.endswith("/") and not files.isdir(existing):
        raise not_a_folder(path, existing)


def is_folder(path: str) -> bool:
    """Whether it is a directory, and no symlink to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def is_mount(folder: str) -> bool:
    """Whether another file system, or another part of this one, begins at a folder."""
    # os.path.ismount does not see a bind mount from the same file system.
    return os.path.ismount(folder) or _mount_id(folder) != _mount_id(os.path.dirname(folder))


def _mount_id(folder: str) -> str:
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as lines:
            return next((line for line in lines if line.startswith("mnt_id:")), "")
    except OSError:  # no /proc
        return ""
    finally:
        os.close(descriptor)


def gfile() -> Any:
    """`tf.io.gfile`, for which TensorFlow is imported."""
    import tensorflow as tf

    return tf.io.gfile


def not_a_folder(target: str, path: str) -> TargetError:
    """The error of a target with a file at it or above it."""
    cause = NotADirectoryError(errno.ENOTDIR, "a file", path)
    expected = "a directory or nothing there, and only directories above"
    return refusal(cause, f"export to {target}", expected, "Move the file, or export elsewhere.")


def taken(target: str) -> TargetError:
    """The error of an exclusive target that exists."""
    cause = FileExistsError(errno.EEXIST, "something", target)
    return refusal(cause, f"export to {target}", "nothing there", "Export to a path of its own.")


def refusal(cause: Exception, what: str, expected: str, mend: str) -> TargetError:
    """A `TargetError` with the `errno` of its cause."""
    received = str(getattr(cause, "strerror", None) or cause)
    if path := getattr(cause, "filename", None):
        received += f" at {path}"
    error = TargetError(failure(what, expected, received, mend))
    error.errno = _errno(cause)
    return error


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    status = getattr(error, "error_code", None)  # tf.errors.OpError, without TensorFlow
    if status in (None, _INVALID_ARGUMENT):  # not of a file system: a device that is not there
        return None
    return _TF_ERRNO.get(status, errno.EIO)
