"""`keras-export show A`: what a SavedModel takes, returns and holds."""

from __future__ import annotations

import argparse

HELP = "what a SavedModel takes and holds"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints the artifact; an unreadable one raises."""
    from keras_export import inspection

    info = inspection.inspect(options.artifact)
    print(inspection.to_json(info) if options.json else info)
    return 0
