"""Promises of the README: its examples run as they stand, in their order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_export as ke

_REPOSITORY = Path(ke.__file__).parent.parent
_README = (_REPOSITORY / "README.md").read_text()
_EXAMPLES = re.findall(r"^```python\n(.*?)^```", _README, re.M | re.S)


def test_examples_run_one_after_the_other_in_an_empty_folder(tmp_path: Path) -> None:
    script = tmp_path / "examples.py"
    script.write_text("\n".join(_EXAMPLES))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '(image: float32[?, 8, 8, 1]) -> (digit: float32[?, 10])' in done.stdout
    assert (tmp_path / "models" / "digits").is_dir()


@pytest.mark.parametrize("path", re.findall(r"`((?:examples|docs|benchmarks)/[\w./]+)`", _README))
def test_files_that_it_names_exist(path: str) -> None:
    assert (_REPOSITORY / path).exists()
