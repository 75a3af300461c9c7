"""Where the time of a first export goes.

In: a model. Out: seconds by step, of one export beside the timed ones. The invariant: the steps
are timed by wrapping functions from outside, and the wrappers are gone afterwards.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras

import keras_export as ke

# A step contains those that are indented below it. `definition_of` is called once per function.
STEPS = (
    "loaded_objects.track",
    "forward_traces.trace",
    "variables.plan_checkpoint",
    "assembly._contents",
    "  functions.definition_of",
    "  gradients.add_gradients",
    "    gradients._trace",
    "  canonical.canonicalize",
    "    canonical._strip",
    "    canonical._prune",
    "    node_names.rename",
    "metagraph.assemble",
    "  saver_nodes.add_saver",
    "  object_graph.fill_object_graph",
    "held_values.read_values",
    "held_values.write_bundle",
    "exporter._fingerprint",
)


def of_export(model: keras.Model, folder: Path) -> dict[str, dict[str, float]]:
    """Exports once with the timers in place.

    Returns:
        `report`: what the export reports itself; `steps`: seconds by step, each with the steps
        inside it. A step whose function this version does not have is left out.
    """
    target = tempfile.mkdtemp(dir=folder)
    with _timers() as seconds:
        report = ke.export(model, target)
    shutil.rmtree(target)
    return {"report": dict(report.seconds), "steps": dict(seconds)}


@contextmanager
def _timers() -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        for step in STEPS:
            module_name, _, name = step.strip().partition(".")
            module = importlib.import_module(f"keras_export.{module_name}")
            if hasattr(module, name):
                seconds[step] = 0.0
                wrapper = _timed(getattr(module, name), step, seconds)
                stack.enter_context(mock.patch.object(module, name, wrapper))
        yield seconds


def _timed(function: Callable[..., Any], step: str, seconds: dict[str, float]) -> Any:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[step] += time.perf_counter() - started

    return timed
