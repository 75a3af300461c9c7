"""Loads an artifact in a process that has loaded nothing before.

In: the directory of an artifact and a loader's name. Out: seconds of a first and of a second load.
The invariant: of keras_export the process knows the C++ loader alone, and nothing of Keras;
TensorFlow is imported and has run an op before the clock starts.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
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


# What TensorFlow calls the functions in which a load in Python spends its time; none of them calls
# another.
_PARTS = {
    "var_handle_op": "a kernel for each new variable",
    "restore_v2": "reading the values",
    "assign_variable_op": "assigning them",
    "function_def_to_graph": "a graph for each function",
    "restore_captures": "binding variables to functions",
    "set_list_item": "filling lists of variables",
}


def profile(export_dir: str) -> dict[str, float]:
    """Seconds of the parts of a first load in Python, under a profiler that slows all of them."""
    tf.constant(0) + 1
    collections: list[float] = []
    started = 0.0

    def note(phase: str, _: Any) -> None:
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            collections.append(time.perf_counter() - started)

    profiler = cProfile.Profile()
    gc.callbacks.append(note)
    profiler.enable()
    tf.saved_model.load(export_dir)
    profiler.disable()
    gc.callbacks.remove(note)
    found: Any = pstats.Stats(profiler)  # its stubs lack the attributes
    seconds = {"all of it": found.total_tt}
    for (_, _, name), (_, _, _, cumulated, _) in found.stats.items():
        if name in _PARTS:
            part = _PARTS[name]
            seconds[part] = seconds.get(part, 0.0) + cumulated
    return {**seconds, "Python's garbage collector": sum(collections)}


def _seconds(load: Callable[[str], Any], export_dir: str) -> float:
    started = time.perf_counter()
    loaded = load(export_dir)
    seconds = time.perf_counter() - started
    del loaded
    return seconds
