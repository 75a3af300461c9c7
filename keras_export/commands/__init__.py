"""The subcommands of `keras-export`, a module each, over the public API and nothing else.

A module gives `HELP` (its line in the list of commands), `configure(parser)`, which adds its
arguments, and `run(options)`, which returns the exit code: 0 fine, 1 failed or differs. Importing
one is light, so that `--help` answers at once: what a command needs, it imports in `run`.
"""

NAMES = ("check", "convert", "diff", "prune", "reweight", "run", "show", "verify", "weights")
