"""`keras-export weights A OUT.weights.h5`: the weights of a SavedModel as a file for Keras."""

from __future__ import annotations

import argparse

from keras_export.commands.reweight import read_map

HELP = "write the weights of a SavedModel to a file for load_weights"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("out", help="a file that ends in .weights.h5, or .h5 for names of layers")
    parser.add_argument("--map", metavar="F", help="JSON: the path in the file for each variable")


def run(options: argparse.Namespace) -> int:
    """Prints what went where; what has no place raises."""
    from keras_export import reweighting, terminal

    names = read_map(options.map)
    with terminal.watched(options.quiet, in_bytes=True) as progress:
        report = reweighting.extract_weights(
            options.artifact, options.out, names=names, on_progress=progress
        )
    terminal.tell(report, options.quiet)
    return 0
