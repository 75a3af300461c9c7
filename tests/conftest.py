"""Fixtures of the suite, and the environment that TensorFlow must see before it is imported."""

from __future__ import annotations

import os
import pathlib
import random
import sys
from collections.abc import Iterator
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["KERAS_BACKEND"] = "tensorflow"

import hypothesis
import numpy as np
import pytest
from consumers import Consumers
from publications import WAYS, use

_SEED = 20

# Examples are the same in every run of the suite; the soak profile looks for new ones.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session")
def consumers() -> Iterator[Consumers]:
    """Readers of artifacts in a fresh process, one for each worker of the test run."""
    with Consumers() as readers:
        yield readers


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    """A path in a folder of its own, so that everything left beside it is seen."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "model"


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    use(request.param, target, monkeypatch.setattr)
    return request.param


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Gives every test the same random numbers and the same generated layer names."""
    random.seed(_SEED)
    np.random.seed(_SEED)
    if "keras" in sys.modules:
        import keras

        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(_SEED)


_SUMMARIES = {
    "zoo": "kinds of models that keras_export keeps: what Keras makes of them",
    "round trip": "kinds of models through files, and what of that Keras does not do itself",
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Lists what the tests of the zoo computed."""
    for told, title in _SUMMARIES.items():
        rows = {
            tuple(value)
            for report in terminalreporter.getreports("passed")
            for name, value in report.user_properties
            if name == told
        }
        if rows:
            terminalreporter.section(title)
        for name, outcome in sorted(rows):
            terminalreporter.write_line(f"{name:42} {outcome}")
