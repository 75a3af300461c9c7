"""Small changes in one step: a file replaced, a pointer set, an artifact deleted.

In: a path and what is to be there. Out: that. The invariant: readers find the old or the new, and
so does whoever comes after a kill.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from keras_export import directories, locks, targets


def put_in_place(source: str, target: str) -> None:
    """Makes a finished file durable and puts it in the place of another, in one step.

    Args:
        source: in the same file system as `target`.
        target: local path of a file, or of none yet.

    Raises:
        TargetError: it cannot be replaced; it is as it was.
    """
    with targets.explained(target):
        directories.sync(source)
        os.replace(source, target)
        directories.sync(os.path.dirname(os.path.abspath(target)))


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a small file in one step: readers find the old content or the new, and so do kills.

    Raises:
        TargetError: it cannot be written; it is as it was.
    """
    target = targets.check_target(os.path.dirname(os.fspath(path)))
    name = os.path.basename(os.fspath(path))
    with targets.explained(f"{target}/{name}"):
        if targets.is_remote(target):
            temporary = f"{target}/{locks.container_name()}"
            with targets.gfile().GFile(temporary, "wb") as file:
                file.write(content)
            targets.gfile().rename(temporary, f"{target}/{name}", overwrite=True)
            return
        with locks.container(target) as container:
            temporary = os.path.join(container, name)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.join(target, name))
        directories.sync(target)


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
    name, artifact = targets.normalised(path), targets.normalised(target)
    folder = os.path.dirname(name)
    relative = artifact.removeprefix(f"{folder}/")
    if targets.is_remote(name):
        replace_file(name, relative.encode())
        return
    with targets.explained(name):
        if targets.is_folder(name):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        try:
            with locks.container(folder) as container:
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
    target, above = targets.normalised(path), targets.normalised(above)
    with targets.explained(target, "It may stand there in part."):
        if targets.is_remote(target):
            if targets.gfile().exists(target):
                targets.gfile().rmtree(target)
            return
        parent, name = os.path.split(target)
        place = above if directories.can_rename(above, target) else parent
        with suppress(FileNotFoundError), locks.container(place) as container:
            os.rename(target, os.path.join(container, name))
        while parent.startswith(f"{above}/"):
            try:
                os.rmdir(parent)
            except OSError:
                return
            parent = os.path.dirname(parent)
