"""Promises of the notebooks: they run as committed, and show what a reader will see."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import keras_export as ke

_REPOSITORY = Path(ke.__file__).parent.parent
_NOTEBOOKS = sorted((_REPOSITORY / "notebooks").glob("*.ipynb"))


def kinds_of_output(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """For each cell of code, what its results can be shown as."""
    return [
        [kind for output in cell.outputs for kind in sorted(output.get("data", ()))]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources=resources).execute()
    assert any(kinds_of_output(committed))
    assert kinds_of_output(fresh) == kinds_of_output(committed)


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_no_folder_of_the_machine_that_ran_it(path: Path) -> None:
    text = path.read_text()
    folders = (tempfile.gettempdir(), str(Path.home()), str(_REPOSITORY))
    assert not [folder for folder in folders if folder + "/" in text]
