"""`keras-export check A --target tensorflow==2.15`: who can load a SavedModel."""

from __future__ import annotations

import argparse

HELP = "whether a consumer can load a SavedModel, or the oldest TensorFlow that can"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    help = "tensorflow==2.15, tensorflow>=2.13, tf-serving==2.14, tflite, onnx, tfjs"
    parser.add_argument("--target", help=help)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints what was found; 1 if the target cannot load the artifact as it is meant."""
    from keras_export import compatibility, terminal

    report = compatibility.check(options.artifact, options.target)
    if options.json:
        print(compatibility.to_json(report))
    else:
        terminal.tell(report, options.quiet and report.ok)
    return 0 if report.ok else 1
