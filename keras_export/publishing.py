"""Staging directories and atomic publication: the only module that renames, fsyncs and deletes.

In comes the path of a target; out goes a directory to write into, and `commit` puts what was
written there in the target's place. Of SavedModel, only the names of its files are known here.

The invariant: each look-up of a local target finds what was there before, complete, or the new
export, complete; after a failure, what was there before. Two kinds of target fall short of it,
and `sweep` mends what a kill leaves there: on a file system that cannot exchange directories the
target is absent between two renames, and where the target cannot be renamed, such as a mount, its
entries change one by one, `saved_model.pb` last. A remote target has no such repair.

    .keras_export-<pid>-<random>/    locked as long as its process lives; its folder is "the place"
        new/      what the caller writes; gone or replaced by the old target when all is done
        whole/    the old target, between two renames
        parts/    entries of the place that have been replaced one by one
        fresh/    an empty directory for each entry that the place did not have
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from keras_export.errors import ArgumentError, ArgumentTypeError, TargetError, failure

# None of these parses as an integer: TF Serving would take it for a version.
_PREFIX = ".keras_export-"
_TURN = f"{_PREFIX}turn"
_CONTAINER = re.compile(re.escape(_PREFIX) + r"\d+-[0-9a-f]+")
_NEW, _WHOLE, _PARTS, _FRESH = _ROOMS = ("new", "whole", "parts", "fresh")

_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_EXTRA = "assets.extra"
_OUR_ENTRIES = frozenset((*_MODEL_FILES, "fingerprint.pb", "variables", "assets", "debug"))
_OUR_EXTRAS = ("tf_serving_warmup_requests", "keras_export.json", "digests.json")
_OURS = _OUR_ENTRIES | {f"{_EXTRA}/{name}" for name in _OUR_EXTRAS}

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_ATTEMPTS = 10  # how often others may change the target between our look and our rename
_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2  # renameat2(2)
# EPERM: a seccomp filter that does not know the call.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_CHANGED = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
# EBUSY: a mount. EXDEV: a directory from a lower layer of an overlay, as in a container image.
_IMMOVABLE = (*_UNWRITABLE, errno.EBUSY, errno.EXDEV)
# By absl status code.
_INVALID_ARGUMENT = 3
_TF_ERRNO = {5: errno.ENOENT, 6: errno.EEXIST, 7: errno.EACCES, 8: errno.ENOSPC, 12: errno.ENOTSUP}
_UNCHANGED = "What was at the path before is unchanged."
_ADVICE = {
    **dict.fromkeys(_UNWRITABLE, "Export to a place that this process may write to."),
    errno.ENOSPC: "Free space there, or export to another file system.",
    errno.EDQUOT: "Free space there, or export to another file system.",
    errno.EIO: "Check the disk, or export to another file system.",
    errno.ENAMETOOLONG: "Export to a shorter path.",
    errno.ENOTSUP: "Install what brings this file system, or export to another.",
}


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
    def _discard(self) -> None:
        """Removes the staging directory, and the folders made for it that are still empty."""


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
    path = _normalised(export_dir)
    with explained(path):
        if _REMOTE.match(path):
            _check_remote(path)
        else:
            _check_local(path)
    return path


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path is on a file system of this machine, and not of `tf.io.gfile` alone."""
    return not _REMOTE.match(_normalised(path))


def resolved(path: str | os.PathLike[str]) -> str:
    """A path as reports tell it: absolute and without symlinks where it is local."""
    normalised = _normalised(path)
    return normalised if _REMOTE.match(normalised) else os.path.realpath(normalised)


@contextmanager
def stage(export_dir: str | os.PathLike[str]) -> Iterator[Staging]:
    """Yields a directory to write an export into; without a commit, nothing of it stays.

    What killed processes left beside the target is swept first. Errors of the body pass through.

    Args:
        export_dir: as in `check_target`.

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
    target = check_target(export_dir)
    with explained(target):
        remote = _REMOTE.match(target)
        staging = _Remote(target) if remote else _open(os.path.realpath(target))
    try:
        yield staging
    finally:
        staging._discard()


def put_in_place(source: str, target: str) -> None:
    """Makes a finished file durable and puts it in the place of another, in one step.

    Args:
        source: in the same file system as `target`.
        target: local path of a file, or of none yet.

    Raises:
        TargetError: it cannot be replaced; it is as it was.
    """
    with explained(target):
        _sync(source)
        os.replace(source, target)
        _sync(os.path.dirname(os.path.abspath(target)))


def sweep(parent: str | os.PathLike[str]) -> list[str]:
    """Removes the staging directories that dead processes of this user left in a folder.

    What such a process had moved away and not replaced is put back. A remote folder has no locks
    that tell the dead from the living: there, nothing is removed.

    Returns:
        The paths of the removed directories, sorted.
    """
    folder = _normalised(parent)
    if _REMOTE.match(folder) or not _leftovers(folder):
        return []
    with suppress(OSError), _turn(folder):  # OSError: not ours to write to
        return _sweep(folder)
    return []


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a small file in one step: readers find the old content or the new, and so do kills.

    Raises:
        TargetError: it cannot be written; it is as it was.
    """
    target = check_target(os.path.dirname(os.fspath(path)))
    name = os.path.basename(os.fspath(path))
    with explained(f"{target}/{name}"):
        if _REMOTE.match(target):
            temporary = f"{target}/{_container_name()}"
            with _gfile().GFile(temporary, "wb") as file:
                file.write(content)
            _gfile().rename(temporary, f"{target}/{name}", overwrite=True)
            return
        with _container(target) as container:
            temporary = os.path.join(container, name)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.join(target, name))
        _sync(target)


def point(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Lets a name lead to an artifact, in one step.

    A relative symlink where the file system has them, else a file with the path in it. What else
    is at the name stays.

    Args:
        path: the name.
        target: the artifact, in the same place or below it.

    Raises:
        TargetError: something is at the name that is no pointer, or it cannot be written.
    """
    name, artifact = _normalised(path), _normalised(target)
    folder = os.path.dirname(name)
    relative = artifact.removeprefix(f"{folder}/")
    if _REMOTE.match(name):
        replace_file(name, relative.encode())
        return
    with explained(name):
        if _is_folder(name):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        try:
            with _container(folder) as container:
                link = os.path.join(container, "link")
                os.symlink(relative, link)
                os.replace(link, name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            replace_file(name, relative.encode())


def remove(path: str | os.PathLike[str], *, above: str | os.PathLike[str]) -> None:
    """Deletes an artifact; a local one vanishes for readers in one step.

    Args:
        path: of the artifact; nothing happens if there is none.
        above: a folder. Those between it and the artifact go too when they are empty.

    Raises:
        TargetError: it cannot be deleted.
    """
    target, above = _normalised(path), _normalised(above)
    with explained(target, "It may stand there in part."):
        if _REMOTE.match(target):
            if _gfile().exists(target):
                _gfile().rmtree(target)
            return
        parent, name = os.path.split(target)
        with suppress(FileNotFoundError), _container(parent) as container:
            os.rename(target, os.path.join(container, name))
        while parent.startswith(f"{above}/"):
            try:
                os.rmdir(parent)
            except OSError:
                return
            parent = os.path.dirname(parent)


@contextmanager
def turn(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lets one process at a time change what a folder says about itself.

    A remote folder has no locks: there, all may at once.
    """
    path = _normalised(folder)
    if _REMOTE.match(path):
        yield
        return
    with ExitStack() as stack:
        with explained(path):
            stack.enter_context(_turn(path))
        yield


# -- staging on a local file system ----------------------------------------------------------------


def _open(target: str) -> Staging:
    exists, parent = os.path.isdir(target), os.path.dirname(target)
    for folder in (parent, target):
        sweep(folder)
    if not (exists and _must_stay(target)):
        try:
            return _Sibling(target, parent)
        except OSError as error:
            if not exists or error.errno not in _UNWRITABLE:
                raise
    return _Inside(target, target)


def _must_stay(target: str) -> bool:
    """Whether the directory cannot be renamed, or this process stands in it."""
    with suppress(FileNotFoundError):  # of getcwd
        return _is_mount(target) or f"{os.getcwd()}/".startswith(f"{target}/")
    return False


class _Local(Staging):
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
            self._discard()
            raise

    def _open(self, place: str) -> None:
        for _ in range(_ATTEMPTS):
            # Deleted meanwhile: by a failed export that made the folders, or by a sweep.
            with suppress(FileNotFoundError):
                _make_folders(place, self._folders)
                self._make_container(place)
            if self._lock >= 0:
                return
        raise FileNotFoundError(errno.ENOENT, "it keeps vanishing", place)

    def _make_container(self, place: str) -> None:
        self._container = os.path.join(place, _container_name())
        os.mkdir(self._container, 0o700)
        self._lock = _hold(self._container)
        self.path = os.path.join(self._container, _NEW)
        for room in _ROOMS if self._lock >= 0 else ():
            os.mkdir(os.path.join(self._container, room))

    def commit(self, *, exclusive: bool = False) -> Publication:
        started = time.perf_counter()
        with explained(self.target):
            _sync_tree(self.path)
            synced = time.perf_counter()
            self._written, new = set(os.listdir(self.path)), os.lstat(self.path)
            try:
                self._publish(exclusive)
            except BaseException:
                self._undo(new)
                raise
        shutil.rmtree(self._container, ignore_errors=True)
        leftovers = (self._container,) if os.path.lexists(self._container) else ()
        return Publication(synced - started, time.perf_counter() - synced, leftovers)

    @abc.abstractmethod
    def _publish(self, exclusive: bool) -> None: ...

    def _undo(self, new: os.stat_result) -> None:
        try:
            self._withdraw(new)
            _restore(self._container)
        except OSError as error:
            mend = f"What was there is in {self._container}: move it back, or call sweep() later."
            raise _refusal(error, f"restore {self.target}", "renames to work", mend) from error

    def _withdraw(self, new: os.stat_result) -> None:
        """Takes back the directory of status `new` if it is what stands at the target."""

    def _discard(self) -> None:
        try:
            # If restoring fails, the container holds the only copy of the old artifact: it stays.
            with suppress(OSError):
                if self._container:
                    _restore(self._container)
                    shutil.rmtree(self._container, ignore_errors=True)
            for folder in reversed(self._folders):
                with suppress(OSError):
                    os.rmdir(folder)
        finally:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1


class _Sibling(_Local):
    """Staging beside the target, published with one rename or exchange."""

    def _publish(self, exclusive: bool) -> None:
        try:
            self._put_in_place(exclusive)
        except OSError as error:
            fixed = error.errno in _IMMOVABLE and os.path.isdir(self.target)
            if self._published or exclusive or not fixed:
                raise
            _restore(self._container)
            self._publish_inside()
            return
        for path in (self.target, *reversed(self._folders)):
            _sync(os.path.dirname(path))

    def _put_in_place(self, exclusive: bool) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if exclusive or not os.path.lexists(self.target):
                    return _rename_new(self.path, self.target)
                return self._replace()
            except OSError as error:
                if exclusive and os.path.lexists(self.target):
                    raise _taken(self.target) from error
                changed = error.errno in _CHANGED and attempt < _ATTEMPTS
                if self._published or exclusive or not changed:
                    raise
                _restore(self._container)

    def _replace(self) -> None:
        if not stat.S_ISDIR(os.lstat(self.target).st_mode):
            raise _not_a_folder(self.target, self.target)
        _copy_mode(self.target, self.path)
        _carry(self.target, self.path, _ours_in(self.target))
        try:
            _renameat2(self.path, self.target, _EXCHANGE)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._replace_in_two_steps()
        else:
            self._carry_again(self.path)

    def _replace_in_two_steps(self) -> None:
        aside = os.path.join(self._container, _WHOLE, os.path.basename(self.target))
        with _turn(os.path.dirname(self.target)):
            os.rename(self.target, aside)
            os.rename(self.path, self.target)
            self._carry_again(aside)

    def _carry_again(self, old: str) -> None:
        """Carries over what others put into the old directory since the first time."""
        self._published = True
        _carry(old, self.target, _ours_in(old))

    def _publish_inside(self) -> None:
        inside = _Inside(self.target, self.target)
        try:
            _carry(self.path, inside.path, set(os.listdir(self.path)) - self._written)
            inside.commit()
        finally:
            inside._discard()

    def _withdraw(self, new: os.stat_result) -> None:
        with suppress(FileNotFoundError):
            if not os.path.samestat(os.lstat(self.target), new):
                return
            if os.path.lexists(self.path):
                _renameat2(self.path, self.target, _EXCHANGE)
            else:
                os.rename(self.target, self.path)


class _Inside(_Local):
    """Staging inside a target that cannot be moved; its entries are replaced one by one."""

    def _publish(self, exclusive: bool) -> None:
        if exclusive:
            raise _taken(self.target)
        with _turn(self.target):  # or two exporters would mix their entries
            _sweep(self.target)
            try:
                for name in self._names_to_replace():
                    self._move_in(name)
                _sync(self.target)
                os.rmdir(self.path)  # from here on, `_restore` takes the export for complete
            except BaseException:
                _restore(self._container)
                raise

    def _names_to_replace(self) -> list[str]:
        ours, present = _ours_in(self.target), set(os.listdir(self.target))
        replaced = set(os.listdir(self.path))
        if ours:
            replaced |= present & (_OUR_ENTRIES | {_EXTRA})
        for name in present & replaced - ours:
            current = os.path.join(self.target, name)
            if _is_folder(current):
                _carry_folder(current, os.path.join(self.path, name), ours, name)
        return sorted(replaced | set(os.listdir(self.path)), key=_model_last)

    def _move_in(self, name: str) -> None:
        new, current = os.path.join(self.path, name), os.path.join(self.target, name)
        aside = os.path.join(self._container, _PARTS, name)
        if not os.path.lexists(current):
            os.mkdir(os.path.join(self._container, _FRESH, name))
        elif os.path.isfile(new) and not _is_folder(current):
            _link(current, aside)  # and leave it in place until it is replaced
        else:
            _displace(current, aside)
        if os.path.lexists(new):
            os.replace(new, current)
            with suppress(FileNotFoundError):
                os.unlink(new)  # a rename from one link of a file to another does nothing


# -- staging on a remote file system ---------------------------------------------------------------


class _Remote(Staging):
    """Staging through `tf.io.gfile`, which promises no renaming of directories."""

    def __init__(self, target: str) -> None:
        self._gfile = _gfile()
        self.target = target
        parent = target.rpartition("/")[0]
        place = target if parent.endswith("/") else parent  # a bucket has no siblings
        self.path = f"{place}/{_container_name()}"
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
        with explained(self.target, "Some of its files may be replaced already: export again."):
            if exclusive and self._gfile.exists(self.target):
                raise _taken(self.target)
            old, new = self._our_files(), self._files(self.path)
            self._gfile.makedirs(self.target)
            for name in sorted(new, key=_model_last):
                self._move(name)
            for name in old - new:
                self._gfile.remove(f"{self.target}/{name}")
        return Publication(0.0, time.perf_counter() - started)

    def _our_files(self) -> set[str]:
        if not any(self._gfile.exists(f"{self.target}/{name}") for name in _MODEL_FILES):
            return set()
        found = self._files(self.target)
        return {name for name in found if name in _OURS or name.partition("/")[0] in _OUR_ENTRIES}

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

    def _discard(self) -> None:
        with suppress(Exception):  # an object store has no empty folders
            self._gfile.rmtree(self.path)
        for folder in self._folders:
            with suppress(Exception):
                if not self._gfile.listdir(folder):
                    self._gfile.rmtree(folder)


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile


# -- paths and errors ------------------------------------------------------------------------------


def _normalised(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        message = failure("export", "a str or os.PathLike", f"export_dir={path!r}")
        raise ArgumentTypeError(message) from error
    if not text or "\0" in text:
        raise ArgumentError(failure("export", "the path of a directory", f"export_dir={text!r}"))
    if text.startswith("file://"):  # read as TensorFlow does: without its host, %20 as it is
        text = "/" + text.removeprefix("file://").partition("/")[2]
    return text.rstrip("/") if _REMOTE.match(text) else os.path.abspath(text)


def _check_local(path: str) -> None:
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # somebody is replacing it at this moment
            return _check_place(path, os.path.realpath(path))


def _check_place(path: str, target: str) -> None:
    nearest, mode = _nearest(target)
    if not stat.S_ISDIR(mode):
        raise _not_a_folder(path, nearest)
    code = 0
    if not os.access(nearest, os.W_OK | os.X_OK):
        read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
    elif max(map(len, os.fsencode(target).split(b"/"))) > os.pathconf(nearest, "PC_NAME_MAX"):
        code = errno.ENAMETOOLONG
    if code:
        raise OSError(code, os.strerror(code), nearest)


def _nearest(path: str) -> tuple[str, int]:
    """The path, or the first above it that exists, and its mode."""
    try:
        return path, os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(os.path.dirname(path))


def _check_remote(path: str) -> None:
    gfile = _gfile()
    nearest = path
    while not nearest.endswith("/") and not gfile.exists(nearest):
        nearest = nearest.rpartition("/")[0]
    if not nearest.endswith("/") and not gfile.isdir(nearest):
        raise _not_a_folder(path, nearest)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _is_mount(folder: str) -> bool:
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


def _not_a_folder(target: str, path: str) -> TargetError:
    cause = NotADirectoryError(errno.ENOTDIR, "a file", path)
    expected = "a directory or nothing there, and only directories above"
    return _refusal(cause, f"export to {target}", expected, "Move the file, or export elsewhere.")


def _taken(target: str) -> TargetError:
    cause = FileExistsError(errno.EEXIST, "something", target)
    return _refusal(cause, f"export to {target}", "nothing there", "Export to a path of its own.")


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
        raise _refusal(error, f"export to {target}", "to write there", mend) from error


def _refusal(cause: Exception, what: str, expected: str, mend: str) -> TargetError:
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


# -- steps on directories --------------------------------------------------------------------------


def _make_folders(folder: str, made: list[str]) -> None:
    if not os.path.isdir(folder):
        _make_folders(os.path.dirname(folder), made)
        with suppress(FileExistsError):
            os.mkdir(folder)
            made.append(folder)


def _ours_in(folder: str) -> frozenset[str]:
    """What belongs to the artifact in a folder; in any other folder everything is foreign."""
    present = any(os.path.lexists(os.path.join(folder, name)) for name in _MODEL_FILES)
    return frozenset(_OURS if present else ())


def _model_last(name: str) -> tuple[bool, str]:
    return name in _MODEL_FILES, name


def _carry(old: str, new: str, ours: Collection[str], below: str = "") -> None:
    """Links into `new` what `old` holds and `new` lacks, without the relative paths in `ours`."""
    with os.scandir(old) as scan:
        entries = list(scan)
    carried = False
    for entry in entries:
        relative, copy = os.path.join(below, entry.name), os.path.join(new, entry.name)
        folder = entry.is_dir(follow_symlinks=False)
        if folder and (_is_mount(entry.path) or _CONTAINER.fullmatch(entry.name)):
            # Moving the old directory would pull it away, and deleting that would empty it.
            raise OSError(errno.EBUSY, "a mount or a running export", entry.path)
        if relative in ours or entry.name == _TURN:
            continue
        if folder:
            _carry_folder(entry.path, copy, ours, relative)
        elif not os.path.lexists(copy):
            _link(entry.path, copy)
            carried = True
    if carried:
        _sync(new)


def _carry_folder(old: str, new: str, ours: Collection[str], relative: str) -> None:
    made = not os.path.lexists(new)
    if made:
        os.mkdir(new)
    if _is_folder(new):  # else the export wrote a file of that name
        _carry(old, new, ours, relative)
    if not made:
        return
    if relative == _EXTRA and not os.listdir(new):
        os.rmdir(new)
        return
    _copy_mode(old, new)
    _sync(os.path.dirname(new))


def _link(path: str, copy: str) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError:  # no hard links here, or not to the files of others
        shutil.copy2(path, copy, follow_symlinks=False)
        if not os.path.islink(copy):
            _sync(copy)


def _copy_mode(path: str, copy: str) -> None:
    status = os.lstat(path)
    with suppress(OSError):  # only root may give a directory away
        os.chown(copy, status.st_uid, status.st_gid)
    os.chmod(copy, stat.S_IMODE(status.st_mode))


def _displace(path: str, aside: str) -> None:
    try:
        os.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = f"{os.path.dirname(aside)}.copy"
        _carry_folder(path, copy, (), "")
        os.rename(copy, aside)
        shutil.rmtree(path)


def _restore(container: str) -> None:
    """Puts back what a publication moved away, unless that publication is complete."""
    if not os.path.lexists(os.path.join(container, _NEW)):
        return
    for aside, target in _moved(container, _WHOLE):
        _restore_whole(aside, target)
    for marker, target in _moved(container, _FRESH):
        _delete(target)
        os.rmdir(marker)
    for aside, target in _moved(container, _PARTS):
        if _is_folder(aside) or _is_folder(target):
            _delete(target)
        os.replace(aside, target)


def _restore_whole(aside: str, target: str) -> None:
    if not os.path.lexists(target):
        os.rename(aside, target)
    else:  # somebody else has published since
        _carry(aside, target, _ours_in(aside))
        shutil.rmtree(aside)


def _moved(container: str, room: str) -> list[tuple[str, str]]:
    """The entries of a room, each with the path that it belongs to."""
    room, place = os.path.join(container, room), os.path.dirname(container)
    names = sorted(os.listdir(room), key=_model_last) if os.path.isdir(room) else []
    return [(os.path.join(room, name), os.path.join(place, name)) for name in names]


def _delete(path: str) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _rename_new(path: str, target: str) -> None:
    try:
        _renameat2(path, target, _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        with _turn(os.path.dirname(target)):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
            os.rename(path, target)


def _renameat2(path: str, target: str, flags: int) -> None:
    call = getattr(_LIBC, "renameat2", None)  # glibc before 2.28 has none
    old, new = os.fsencode(path), os.fsencode(target)
    if call and call(_AT_FDCWD, old, _AT_FDCWD, new, flags) == 0:
        return
    code = ctypes.get_errno() if call else errno.ENOSYS
    raise OSError(code, os.strerror(code), path, None, target)


def _sync_tree(top: str) -> None:
    folders = []
    for folder, _, names in os.walk(top):
        folders.append(folder)
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):
                _sync(path)
    for folder in reversed(folders):
        _sync(folder)


def _sync(path: str) -> None:
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


# -- locks -----------------------------------------------------------------------------------------


def _container_name() -> str:
    return f"{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"


@contextmanager
def _container(place: str) -> Iterator[str]:
    """A locked directory that is deleted with all that is in it."""
    container, lock = "", -1
    while lock < 0:  # swept before it was locked
        container = os.path.join(place, _container_name())
        os.mkdir(container, 0o700)
        lock = _hold(container)
    try:
        yield container
    finally:
        try:
            shutil.rmtree(container, ignore_errors=True)
        finally:
            os.close(lock)


def _leftovers(folder: str) -> list[str]:
    names: list[str] = []
    with suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if name.startswith(_PREFIX))
    return [os.path.join(folder, name) for name in names]


def _sweep(folder: str) -> list[str]:
    containers = [
        path for path in _leftovers(folder) if _CONTAINER.fullmatch(os.path.basename(path))
    ]
    return [container for container in containers if _sweep_one(container)]


def _sweep_one(container: str) -> bool:
    try:
        lock = _hold(container, wait=False)
    except OSError:  # alive, gone, or on a file system that cannot tell
        return False
    if lock < 0:
        return False
    try:
        # In a folder like /tmp, others could lay a trap that `_restore` walks into.
        if os.fstat(lock).st_uid == os.geteuid():
            _restore(container)
            shutil.rmtree(container)
            return True
    except OSError:
        pass
    finally:
        os.close(lock)
    return False


def _hold(path: str, *, wait: bool = True, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> int:
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


@contextmanager
def _turn(folder: str) -> Iterator[None]:
    """Lets one process at a time move the entries of a folder."""
    # Not with a lock on the folder itself: `flock models python train.py` holds that one.
    path, lock = os.path.join(folder, _TURN), -1
    while lock < 0:  # the one before us deletes it
        lock = _hold(path, flags=os.O_RDONLY | os.O_CREAT)
    try:
        yield
    finally:
        try:
            with suppress(OSError):
                os.unlink(path)
        finally:
            os.close(lock)
