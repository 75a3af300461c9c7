"""Loads an artifact in a process that has loaded nothing before.

In: the directory of an artifact and a loader's name. Out: seconds of a first and of a second load.
The invariant: of keras_export the process knows the C++ loader alone, and nothing of Keras;
TensorFlow is imported and has run an op before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_export import cpp_loader


def _python(export_dir: str) -> Any:
    return tf.saved_model.load(export_dir)


LOADERS: dict[str, Callable[[str], Any]] = {"python": _python, "cpp": cpp_loader.Session}


def measure(loader: str, export_dir: str) -> dict[str, float]:
    """Seconds of the first load, and of the second one in the same process.

    The first one also pays for what TensorFlow sets up when it is used first, whatever it loads.
    """
    tf.constant(0) + 1
    return {name: _seconds(LOADERS[loader], export_dir) for name in ("first", "second")}


def _seconds(load: Callable[[str], Any], export_dir: str) -> float:
    started = time.perf_counter()
    loaded = load(export_dir)
    seconds = time.perf_counter() - started
    del loaded
    return seconds
