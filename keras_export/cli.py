"""The command line: `keras-export show A`.

In: arguments. Out: text on stdout, an exit code: 0 fine, 1 failed or differs, 2 bad usage or
unreadable input. The invariant: it only calls the public API, and TensorFlow is imported when a
command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import keras_export
from keras_export import commands
from keras_export.errors import ExportError, InvocationError

_FAILED, _UNREADABLE = 1, 2
_CUT_OFF = 128 + signal.SIGPIPE  # as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: what follows the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    options.debug, options.quiet = (getattr(options, x, False) for x in ("debug", "quiet"))
    # Before TensorFlow is imported: it reads this once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who reads us, `head` for instance, has seen enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CUT_OFF
    except (ExportError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"keras-export: {' '.join(str(error).split())}", file=sys.stderr)
        return _FAILED if isinstance(error, InvocationError) else _UNREADABLE


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                        help="show the traceback of an error")  # fmt: skip
    common.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS,
                        help="say nothing but what is wrong")  # fmt: skip
    parser = argparse.ArgumentParser("keras-export", description=__doc__.splitlines()[0],
                                     parents=[common])  # fmt: skip
    parser.add_argument("--version", action="version", version=keras_export.__version__)
    parser.add_argument("--completion", choices=_SHELLS, action=_Completion,
                        help="print what completes commands in a shell, and exit")  # fmt: skip
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in commands.NAMES:
        command = importlib.import_module(f"keras_export.commands.{name}")
        subparser = subparsers.add_parser(name, parents=[common], help=command.HELP,
                                          description=command.HELP)  # fmt: skip
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    return parser


# -- completion -----------------------------------------------------------------------------------

_SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_keras_export() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" found="{options}"
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    [[ $COMP_CWORD == 1 ]] && found="{commands} {options}"
    COMPREPLY=($(compgen -W "$found" -- "$word"))
    if [[ $COMP_CWORD != 1 && $word != -* ]]; then
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _keras_export keras-export
"""


class _Completion(argparse.Action):
    """Prints a script for a shell: `eval "$(keras-export --completion bash)"`."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        print(_script(parser, given[1]), end="")
        parser.exit()


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    commands = dict(_subparsers(parser))
    if shell == "fish":
        return "".join(_fish_lines(parser, commands))
    cases = "\n".join(
        f'        {name}) found="{" ".join(_options(x))}" ;;' for name, x in commands.items()
    )
    script = _BASH.format(
        options=" ".join(_options(parser)), commands=" ".join(commands), cases=cases
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def _fish_lines(
    parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser]
) -> Iterator[str]:
    start = "complete -c keras-export"
    for name, command in commands.items():
        about = (command.description or "").replace("'", "")
        yield f"{start} -n __fish_use_subcommand -f -a {name} -d '{about}'\n"
        for option in _options(command):
            yield f"{start} -n '__fish_seen_subcommand_from {name}' -l {option.lstrip('-')}\n"
    for option in _options(parser):
        yield f"{start} -n __fish_use_subcommand -l {option.lstrip('-')}\n"


def _subparsers(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [
        text
        for action in parser._actions
        for text in action.option_strings
        if text.startswith("--")
    ]
