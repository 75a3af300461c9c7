"""`keras-export convert SOURCE OUT`: a file of Keras becomes a SavedModel."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HELP = "make a SavedModel of a .keras or HDF5 file"

_FAILED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", help="a .keras or HDF5 file; a configuration in JSON or "
                        "package.module:factory with --weights; a folder with --batch")  # fmt: skip
    parser.add_argument("out", help="directory of the SavedModel; with --batch, of all of them")
    parser.add_argument("--weights", metavar="F", help="file of the weights")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument("--model", metavar="MODULE:FACTORY",
                              help="the model's factory; SOURCE is then its weights")  # fmt: skip
    architecture.add_argument("--config", metavar="F",
                              help="the model's JSON; SOURCE is then its weights")  # fmt: skip
    parser.add_argument("--custom", metavar="NAME=MODULE:OBJECT", action="append", default=[],
                        help="a class or function that the file names")  # fmt: skip
    parser.add_argument("--activation", metavar="NAME=ACTIVATION", action="append", default=[],
                        help="an activation of Keras for a name in the file")  # fmt: skip
    parser.add_argument("--batch", action="store_true", help="convert every file of a folder")
    parser.add_argument("--unsafe", action="store_true",
                        help="trust the file, and let it run code of its own")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Converts; a file that cannot be converted raises, unless it is one of a batch."""
    with _own_modules(options):
        custom = _custom_objects(options)
        if options.batch:
            return _batch(options, custom)
        _convert(options, options.source, options.out, custom)
    return 0


@contextmanager
def _own_modules(options: argparse.Namespace) -> Iterator[None]:
    """Finds modules that the user named in the current folder, after all others.

    A folder with files of strangers may hold a `torch.py`, and libraries try such names.
    """
    named = options.custom or options.model or (":" in options.source and options.weights)
    before = [*sys.path]
    sys.path += [os.getcwd()] * bool(named)
    try:
        yield
    finally:
        sys.path[:] = before


def _convert(options: argparse.Namespace, source: str, out: str, custom: dict[str, Any]) -> None:
    import keras_export as ke
    from keras_export import terminal

    architecture = options.model or options.config
    if architecture is not None:
        weights = source
        source = architecture
    else:
        weights = options.weights
    with terminal.watched(options.quiet, in_bytes=True) as progress:
        report = ke.convert(
            source, out, weights=weights, custom_objects=custom, safe_mode=not options.unsafe,
            on_progress=progress,
        )  # fmt: skip
    terminal.tell(report, options.quiet)


def _batch(options: argparse.Namespace, custom: dict[str, Any]) -> int:
    """Every file of the folder that can be a model, each into a directory of its own name."""
    from keras_export.errors import ExportError

    failed = 0
    for name in sorted(os.listdir(options.source)):
        path = os.path.join(options.source, name)
        if not os.path.isfile(path):
            continue
        try:
            _convert(options, path, os.path.join(options.out, _stem(name)), custom)
        except (ExportError, OSError) as error:
            failed += 1
            print(f"keras-export: {error}", file=sys.stderr)
    return _FAILED if failed else 0


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] or name


def _custom_objects(options: argparse.Namespace) -> dict[str, Any]:
    from keras_export.errors import ArgumentError, failure

    custom: dict[str, Any] = {}
    for given in options.custom:
        name, _, where = given.rpartition("=")
        module, _, attribute = where.partition(":")
        try:
            custom[name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ArgumentError(
                failure("convert", "--custom NAME=MODULE:OBJECT", f"{given!r} ({error})")
            ) from error
    for given in options.activation:
        name, _, activation = given.rpartition("=")
        custom[name] = _activation(activation)
    return custom


def _activation(name: str) -> Any:
    import keras

    from keras_export.errors import ArgumentError, failure

    try:
        return keras.activations.get(name)
    except ValueError as error:
        raise ArgumentError(
            failure("convert", "the name of an activation of Keras", f"{name!r}")
        ) from error
