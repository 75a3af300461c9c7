"""Artifacts of a few words and the ways of file systems, for tests of what publishes them."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from keras_export import directories
from keras_export.publishing import stage
from keras_export.sweeping import sweep

Tree = dict[str, str]

REPOSITORY = pathlib.Path(directories.__file__).parents[1]
WAYS = ("exchange", "two steps", "inside")
FOREIGN = {"notes.txt": "foreign", "eval/1/log": "foreign", "assets.extra/labels": "foreign"}


def artifact(text: str) -> Tree:
    names = ("saved_model.pb", "fingerprint.pb", "variables/variables.index")
    return {**dict.fromkeys(names, text), "assets/": ""}


def fill(folder: str | os.PathLike[str], tree: Tree) -> None:
    for name, text in tree.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not name.endswith("/"):
            pathlib.Path(path).write_text(text)


def tree(folder: str | os.PathLike[str]) -> Tree:
    """The text of every file by relative path; links and empty folders too."""
    found = {}
    for path in pathlib.Path(folder).rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def export(target: str | os.PathLike[str], text: str, *, exclusive: bool = False) -> None:
    with stage(target) as staging:
        fill(staging.path, artifact(text))
        staging.commit(exclusive=exclusive)


def no_renameat2(path: str, target: str, flags: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)


def use(way: str, target: str | os.PathLike[str], patch: Callable[..., Any]) -> None:
    """Makes the file system behave so that the target is published in one of the three ways."""
    if way == "two steps":
        patch(directories, "renameat2", no_renameat2)
    if way == "inside":
        patch(os.path, "ismount", lambda path: path == str(target))


def failing(call: Callable[..., Any], *where: object, code: int) -> Callable[..., Any]:
    """The call, failing where its first argument is one of `where`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if args[0] in where:
            raise OSError(code, os.strerror(code), args[0])
        return call(*args, **kwargs)

    return wrapper


def prefixed(target: pathlib.Path, files: Tree, before: str = "") -> Tree:
    return {f"{before}{target.name}/{name}": text for name, text in files.items()}


def sweep_around(target: pathlib.Path) -> list[str]:
    return sweep(target.parent) + sweep(target)


def run_here(code: str, *arguments: str) -> None:
    """Runs code in a process of its own, with the names of this module."""
    code = f"import os, pathlib, signal, sys; from publications import *; {code}"
    paths = os.pathsep.join([str(REPOSITORY), os.path.dirname(__file__)])
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
