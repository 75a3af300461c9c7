"""Runs a signature of an artifact in this process.

In: the directory of a SavedModel and arrays by input name. Out: arrays by output name. The
invariant: an artifact that can be loaded by `tf.saved_model.load` can be run, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_export import inspection
from keras_export.errors import ArgumentError, InvocationError, failure


def invoke(export_dir: str, key: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a signature.

    Args:
        export_dir: a directory that TensorFlow, Keras or keras_export wrote.
        key: of the signature.
        inputs: arrays by name. Those with a default value may be left out.

    Returns:
        Arrays by output name; ragged and sparse outputs are filled up.

    Raises:
        ArgumentError: an input is missing or unknown.
        InvocationError: TensorFlow refuses the artifact or the inputs.
    """
    import tensorflow as tf

    signature = inspection.signature_of(export_dir, key)
    inputs = {**inspection.defaults_of(export_dir, key), **inputs}
    if set(inputs) != set(signature.inputs):
        raise ArgumentError(
            failure(
                f"run {key!r}", f"the inputs {sorted(signature.inputs)}", f"{sorted(inputs)}"
            )
        )
    try:
        loaded = tf.saved_model.load(export_dir)
        function = loaded.signatures[key]
        fed = as_tensors(inputs, function.structured_input_signature[1])
        return {name: as_array(value) for name, value in sorted(function(**fed).items())}
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise InvocationError(
            f"Cannot run {key!r} of {export_dir}: {first_line(error)}"
        ) from error


def as_tensors(inputs: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as the tensors that a loaded signature takes.

    Sparse and ragged inputs, which only artifacts of TensorFlow 1 have, are given as full arrays;
    the loaded signature takes their components.

    Args:
        inputs: arrays by input name.
        specs: by argument name, as the loaded signature tells them.
    """
    import tensorflow as tf

    found: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in specs:
            found[name] = tf.constant(value, specs[name].dtype)
        elif f"{name}_indices" in specs:
            sparse = tf.sparse.from_dense(value)
            found |= {
                f"{name}_{part}": getattr(sparse, part)
                for part in ("indices", "values", "dense_shape")
            }
        else:
            count = sum(spec.startswith(f"{name}_component_") for spec in specs)
            ragged = tf.RaggedTensor.from_tensor(value, ragged_rank=max(count - 1, 1))
            parts = tf.nest.flatten(ragged, expand_composites=True)
            found |= {f"{name}_component_{i}": part for i, part in enumerate(parts)}
    return found


def as_array(value: Any) -> Any:
    """What a function or a session gives as an array; ragged and sparse tensors are filled up."""
    import numpy as np
    import tensorflow as tf

    if isinstance(value, tf.SparseTensor):
        value = tf.sparse.to_dense(value)
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor()
    found = value.numpy() if isinstance(value, tf.Tensor) else value
    return np.array(found, object) if isinstance(found, bytes) else np.asarray(found)


def first_line(error: Exception) -> str:
    """What an error of TensorFlow says, without where in Python the graph was made."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Graph execution error", "Detected at"))]
    return (said or lines or [type(error).__name__])[0]
