"""`keras-export verify A`: whether a SavedModel is whole and can be served."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "whether a SavedModel is whole and can be served"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--signature", help="the signature that --input is for")
    parser.add_argument("--input", help=".npz with inputs by name")
    parser.add_argument("--output", help=".npz with the outputs that must come of them")
    parser.add_argument("--files-only", action="store_true", help="check the files, run nothing")


def run(options: argparse.Namespace) -> int:
    """Prints what is wrong; 1 if anything is."""
    import json

    from keras_export import terminal, verification

    given = _given(options)
    with terminal.watched(options.quiet) as progress:
        report = verification.verify(
            options.artifact, run=not options.files_only, on_progress=progress, **given
        )
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        terminal.tell(report, options.quiet and report.ok)
    return 0 if report.ok else 1


def _given(options: argparse.Namespace) -> dict[str, Any]:
    if options.input is None and options.output is None:
        return {}
    from keras_export import inspection

    keys = inspection.inspect(options.artifact).signatures
    key = options.signature or inspection.default_signature(keys)
    return {
        name: {key: _arrays(path)}
        for name, path in (("inputs", options.input), ("outputs", options.output))
        if path is not None
    }


def _arrays(path: str) -> dict[str, Any]:
    import numpy as np

    with np.load(path) as file:
        return dict(file)
