"""The command line: `keras-export show A`.

In: arguments. Out: text on stdout, an exit code: 0 fine, 1 failed, 2 bad usage or unreadable
input. The invariant: it only calls the public API, and TensorFlow is imported when a command
needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import keras_export
from keras_export import commands
from keras_export.errors import ExportError, InvocationError

_FAILED, _UNREADABLE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: what follows the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    # Before TensorFlow is imported: it reads this once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return int(options.run(options))
    except (ExportError, OSError) as error:
        if getattr(options, "debug", False):
            traceback.print_exc()
        else:
            print(f"keras-export: {' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED if isinstance(error, InvocationError) else _UNREADABLE


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                        help="show the traceback of an error")  # fmt: skip
    parser = argparse.ArgumentParser("keras-export", description=__doc__.splitlines()[0],
                                     parents=[common])  # fmt: skip
    parser.add_argument("--version", action="version", version=keras_export.__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands.NAMES:
        command = importlib.import_module(f"keras_export.commands.{name}")
        subparser = subparsers.add_parser(name, parents=[common], help=command.HELP,
                                          description=command.HELP)  # fmt: skip
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    return parser
