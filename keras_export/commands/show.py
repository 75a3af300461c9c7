"""`keras-export show A`: what a SavedModel takes, returns and holds."""

from __future__ import annotations

import argparse
from typing import Any

HELP = "what a SavedModel takes and holds"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("artifact", help="directory of the SavedModel")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--png", metavar="FILE", help="draw where the bytes are")
    parser.add_argument("--html", metavar="FILE", help="write a page with all of it")
    parser.add_argument("--weights", action="store_true",
                        help="what the values look like, variable by variable")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Prints the artifact; an unreadable one raises."""
    from keras_export import inspection, terminal, weights

    info = inspection.inspect(options.artifact)
    statistics = []
    if options.weights:
        with terminal.watched(options.quiet) as progress:
            statistics = weights.statistics(options.artifact, progress)
    if options.png or options.html:
        _draw(options, info, statistics)
    if options.json:
        print(_json(info, statistics))
    elif not options.quiet:
        terminal.tell(info)
        if options.weights:
            _tell_weights(statistics)
    return 0


def _draw(options: argparse.Namespace, info: Any, statistics: list[Any]) -> None:
    from keras_export import pictures

    if options.png:
        content = pictures.png(info)
        with open(options.png, "wb") as file:
            file.write(content)
    if options.html:
        with open(options.html, "w", encoding="utf-8") as page:
            page.write(pictures.page(info, statistics))


def _json(info: Any, statistics: list[Any]) -> str:
    import json

    content = info.to_dict()
    if statistics:
        content["weights"] = [vars(x) for x in statistics]
    return json.dumps(content, indent=2)


def _tell_weights(statistics: list[Any]) -> None:
    from keras_export import pictures, terminal

    head = ("variable", "shape", "mean", "deviation", "least", "greatest", "zeros", "not finite")
    numbers = ("mean", "deviation", "smallest", "largest")
    rows = [
        (
            x.name,
            x.spec,
            *(pictures.number(getattr(x, name)) for name in numbers),
            str(x.zeros),
            str(x.not_finite),
        )
        for x in statistics
    ]
    terminal.tell_table(head, rows)
