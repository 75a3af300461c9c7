"""Interpreters with other TensorFlow releases, for tests that ask them.

In: a minor release, `2.12`. Out: the path of an interpreter that has it. They are looked for in
the folder that `KERAS_EXPORT_RELEASES` names, as `tf2.12/bin/python`, and else made by pip in a
folder of the user's cache, where the next run finds them.
"""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from keras_export import releases

_FOLDER = Path(
    os.environ.get("KERAS_EXPORT_RELEASES") or Path.home() / ".cache" / "keras_export_releases"
)

# The oldest that is known, the oldest that keras_export runs on, the newest.
ASKED = ["2.12", "2.16", list(releases.known())[-1]]
if os.environ.get("KERAS_EXPORT_ALL_RELEASES"):
    ASKED = list(releases.known())


def python_of(release: str) -> str:
    """The interpreter; skips the test where pip has no wheel of the release for this Python."""
    folder = _FOLDER / f"tf{release}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-c", "import tensorflow"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        wanted = f"tensorflow-cpu=={releases.known()[release].tensorflow}"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        done = subprocess.run([*pip, wanted], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot install {wanted}: {done.stderr[-200:]}")
    return str(python)
