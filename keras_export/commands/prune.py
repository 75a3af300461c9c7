"""`keras-export prune BASE --keep-last N`: deletes old versions."""

from __future__ import annotations

import argparse

HELP = "delete all but the newest versions below a folder"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("base", help="the folder that holds the versions")
    parser.add_argument("--keep-last", type=int, required=True, metavar="N",
                        help="how many versions stay")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tell what would go")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Deletes without asking, and prints what went."""
    import json

    from keras_export import retention, terminal

    found = retention.prune(options.base, options.keep_last, dry_run=options.dry_run)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        terminal.tell(found, options.quiet)
    return 0
