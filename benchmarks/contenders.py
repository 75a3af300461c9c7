"""What is measured: the ways to export, and the floors that no export can go below.

In: a model and a folder. Out: functions that do one thing each, to be timed from outside. The
invariant: a floor does what it says and no more, on the same variables and into the same file
system as the exports.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import keras_export as ke
from keras_export import functions, gradients, tracking

OURS, KERAS, TENSORFLOW = "keras_export", "model.export", "tf.saved_model.save"


def export_ours(model: keras.Model, folder: str) -> None:
    ke.export(model, folder)


def export_keras(model: keras.Model, folder: str) -> None:
    model.export(folder, verbose=False)


def export_tensorflow(model: keras.Model, folder: str) -> None:
    tf.saved_model.save(model, folder)


EXPORTS: dict[str, Callable[[keras.Model, str], None]] = {
    OURS: export_ours,
    KERAS: export_keras,
    TENSORFLOW: export_tensorflow,
}


def trace(model: keras.Model) -> Any:
    """One trace of the forward pass in inference mode; returns the ConcreteFunction."""

    def forward(x: Any) -> Any:
        return model(x, training=False)

    structure = model.inputs[0] if len(model.inputs) == 1 else model.input
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), structure)
    return tf.function(forward, autograph=False).get_concrete_function(specs)


def gradient_tracer(model: keras.Model, concrete: Any) -> Callable[[], None]:
    """Returns what traces the registered gradients of a trace, one of each structure.

    It is our own code on the floor's trace: the only part of a floor that TensorFlow has no call
    for. TensorFlow's own way traces every one of them, through `tf.function`.
    """
    collector = functions.FunctionCollector(tracking.track(model), "model")
    collector.add(concrete, "the forward pass")
    return lambda: gradients.add_gradients(collector)


def read(model: keras.Model) -> list[Any]:
    """One `read_value()` of each variable."""
    return [variable.value.read_value() for variable in model.variables]


def save(model: keras.Model, folder: str) -> None:
    """One `SaveV2` of all variables, read as cheaply as can be."""
    variables = [variable.value for variable in model.variables]
    values = [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in variables]
    tf.raw_ops.SaveV2(
        prefix=os.path.join(folder, "variables"),
        tensor_names=[str(index) for index in range(len(values))],
        shape_and_slices=[""] * len(values),
        tensors=values,
    )


def save_and_sync(model: keras.Model, folder: str) -> None:
    """The same, and what was written is on disk afterwards."""
    save(model, folder)
    for path in (*Path(folder).iterdir(), Path(folder)):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


WRITES: dict[str, Callable[[keras.Model, str], None]] = {
    "SaveV2": save,
    "SaveV2 + fsync": save_and_sync,
}
