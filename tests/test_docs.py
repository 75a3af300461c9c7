"""Promises of the documentation: it builds, its links lead somewhere, it names what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras_export as ke

_REPOSITORY = Path(ke.__file__).parent.parent
_API = (_REPOSITORY / "docs" / "api.md").read_text()


def test_documentation_builds_without_a_broken_link(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=_REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "SavedModelCheckpoint" in page


def test_every_public_name_is_in_the_reference() -> None:
    documented = {line.rpartition(".")[2] for line in _API.splitlines() if line.startswith(":::")}
    # The errors are documented as a module; the others are classes of TensorFlow and Keras with
    # our mixin, or no objects at all.
    errors = {"ConversionError", "DamagedFileError", "ExportError", "UnsafeFileError"}
    elsewhere = {*errors, "SaveOptions", "Model", "Sequential", "__version__"}
    assert sorted(set(ke.__all__) - documented - elsewhere) == []
