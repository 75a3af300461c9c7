"""`keras-export run A --input x.npz --output y.npz`: what a signature gives for inputs in files."""

from __future__ import annotations

import argparse

HELP = "what a signature gives for inputs in files"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("--signature", metavar="KEY", help="which one (default: serving_default)")
    parser.add_argument(
        "--input", metavar="[NAME=]FILE", action="append", default=[], dest="inputs",
        help=".npz, .npy, .json, .csv or an image; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="FACTOR",
        help="multiply the pixels of images, such as by 0.00392",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE",
        help=".npz, .npy, .json, .csv, .png or .jpg (default: JSON on stdout)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Runs the signature; inputs that do not fit raise."""
    from keras_export import inspection, invocation, samples

    signatures = inspection.inspect(options.artifact).signatures
    key = options.signature or inspection.default_signature(signatures)
    signature = inspection.signature_of(options.artifact, key)
    inputs = samples.read_inputs(options.inputs, signature.inputs, options.scale)
    outputs = invocation.invoke(options.artifact, key, inputs)
    if options.output is None:
        print(samples.to_json(outputs))
    else:
        samples.write_outputs(options.output, outputs)
    return 0
