"""`keras-export diff A B`: how two SavedModels differ."""

from __future__ import annotations

import argparse

HELP = "how two SavedModels differ"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("a", help="directory of a SavedModel")
    parser.add_argument("b", help="directory of the other")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints what differs; 1 if anything does."""
    import json

    from keras_export import comparison, terminal

    with terminal.watched(options.quiet) as progress:
        found = comparison.diff(options.a, options.b, on_progress=progress)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        terminal.tell(found, options.quiet)
    return 1 if found else 0
