"""The command line answers at once, says what is wrong in a line, and heeds the terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

import keras_export as ke
from keras_export import cli, commands


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    x = keras.Input((4,), name="x")
    path = tmp_path_factory.mktemp("cli") / "a"
    ke.export(keras.Model(x, keras.layers.Dense(5, name="out")(x)), path)
    return str(path)


def _python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options
    )


def test_the_help_of_every_command_needs_nothing_heavy() -> None:
    code = (
        "import sys, keras_export.cli as cli\n"
        "for name in (None, *cli.commands.NAMES):\n"
        "    try: cli.main(['--help'] if name is None else [name, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "    heavy = {'tensorflow', 'keras', 'numpy', 'rich', 'google'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        "print('light')"
    )
    done = _python(code)
    assert done.stdout.splitlines()[-1] == "light", done.stderr


@pytest.mark.parametrize("flag", ["--debug", "--quiet"])
def test_a_flag_stands_before_or_after_the_command(
    flag: str, export_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{export_dir}-none" if flag == "--debug" else export_dir
    for arguments in ([flag, "show", path], ["show", flag, path], ["show", path, flag]):
        code = cli.main(arguments)
        output = capsys.readouterr()
        if flag == "--debug":
            assert code == 2 and "Traceback" in output.err
        else:
            assert code == 0 and output.out == ""


def test_quiet_still_tells_what_is_wrong(
    export_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "--files-only", "--quiet", export_dir]) == 0
    assert capsys.readouterr().out == ""
    target = str(tmp_path / "none")
    assert cli.main(["verify", "--quiet", target]) == 2
    assert target in capsys.readouterr().err


def _at_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "keras_export", *arguments],
        stdout=theirs, stderr=theirs, env={**clean, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # Linux tells the end so
        pass
    child.wait()
    os.close(ours)
    return written.decode()


def test_a_terminal_gets_colour_unless_it_wants_none(export_dir: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    for source in Path(export_dir).rglob("*"):
        if source.is_file():
            target = damaged / source.relative_to(export_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (damaged / "variables/variables.data-00000-of-00001").unlink()
    arguments = ("verify", "--files-only", str(damaged))
    red = "\x1b[31m"
    assert red in _at_terminal(*arguments)
    plain = _at_terminal(*arguments, NO_COLOR="1")
    assert red not in plain and "missing-shard" in plain


def test_a_terminal_gets_a_bar_with_bytes(export_dir: str, tmp_path: Path) -> None:
    out = tmp_path / "out.weights.h5"
    assert re.search(r"weights .*\d/\d+ bytes", _at_terminal("weights", export_dir, str(out)))
    out.unlink()
    assert "bytes" not in _at_terminal("weights", export_dir, str(out), "--quiet")
    assert out.exists()


def test_what_is_piped_is_plain_text(export_dir: str) -> None:
    for arguments in (["show", export_dir], ["verify", "--files-only", export_dir]):
        done = subprocess.run(
            [sys.executable, "-m", "keras_export", *arguments], capture_output=True, text=True
        )
        assert "\x1b" not in done.stdout and done.stdout and done.stderr == ""


def test_bash_completes_commands_options_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--completion", "bash"])
    assert end.value.code == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "artifact").mkdir()

    def completed(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        line = (
            f"source {script}; cd {tmp_path}; COMP_WORDS=({quoted}); "
            f"COMP_CWORD={len(words) - 1}; _keras_export; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert completed("keras-export", "") >= set(commands.NAMES)
    assert completed("keras-export", "ver") == {"verify"}
    assert completed("keras-export", "verify", "--fi") == {"--files-only"}
    assert completed("keras-export", "show", "art") == {"artifact"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in commands.NAMES) and "files-only" in script
    assert ("bashcompinit" in script) == (shell == "zsh")


def test_a_reader_that_stops_early_is_no_error(export_dir: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "keras_export", "show", export_dir, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")
