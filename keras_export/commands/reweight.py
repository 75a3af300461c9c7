"""`keras-export reweight A WEIGHTS OUT`: a SavedModel with other weights."""

from __future__ import annotations

import argparse
import json

HELP = "put other weights into a SavedModel"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("weights", help="a .weights.h5, .h5 or .keras file, the prefix of a "
                        "checkpoint, or another SavedModel")  # fmt: skip
    parser.add_argument("out", help="directory of the new SavedModel")
    parser.add_argument("--map", metavar="F", help="JSON: the weight for each variable whose name "
                        "does not tell")  # fmt: skip
    parser.add_argument("--allow", metavar="PATTERN", action="append", default=[],
                        help="variables that may keep their values, weights that nobody "
                        "need take")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Prints what went where; what does not fit raises."""
    from keras_export import reweighting, terminal

    names = read_map(options.map)
    with terminal.watched(options.quiet, in_bytes=True) as progress:
        report = reweighting.reweight(
            options.artifact, options.weights, options.out, names=names, allow=options.allow,
            on_progress=progress,
        )  # fmt: skip
    terminal.tell(report, options.quiet)
    return 0


def read_map(path: str | None) -> dict[str, str] | None:
    """The map in a JSON file; None without one."""
    from keras_export.errors import ArgumentError, failure

    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except ValueError as error:
        raise ArgumentError(failure(f"read {path}", "JSON", str(error))) from error
    if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
        raise ArgumentError(failure(f"read {path}", "an object of strings", f"{found!r:.80}"))
    return found
