"""Reads variables.

In: variables. Out: their values, in the same order. The invariant: an ordinary variable's buffer is
referred to and not copied; who changes the variable afterwards changes a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi

# A call costs more than what it does to a variable. TensorFlow makes a kernel for each new
# combination of shapes, in a time that grows with the square of their number: measured from 8 to
# 256 with equal and with different shapes, this is the fastest at first and afterwards.
_AT_ONCE = 32

# Of other devices it is not known whether they can read several variables at once.
_KNOWN_DEVICES = ("CPU", "GPU")


def read(variables: Sequence[Any]) -> list[Any]:
    """The values of variables.

    Args:
        variables: `tf.Variable`s, also those of a strategy; what replicas hold apart is reduced.

    Returns:
        A tensor each. That of a variable without a value may be empty.
    """
    values = [None] * len(variables)
    for indices in _groups(variables):
        chosen = [variables[index] for index in indices]
        for index, value in zip(indices, _read_together(chosen), strict=True):
            values[index] = value
    return values


def read_one(variable: Any) -> Any:
    """The value of one variable, as `read` gives it."""
    if isinstance(variable, tfi.SyncOnReadVariable):
        with variable.distribute_strategy.scope():
            return variable._get_cross_replica()
    return tf.raw_ops.ReadVariableOp(resource=handle(variable), dtype=variable.dtype)


def handle(variable: Any) -> Any:
    """The handle of a variable; of the first copy where a strategy made several."""
    if isinstance(variable, tfi.DistributedVariable):
        return variable._primary.handle
    return variable.handle


def _groups(variables: Sequence[Any]) -> list[list[int]]:
    """Indices of variables that can be read together."""
    groups = []
    open_groups: dict[str, list[int]] = {}
    eager = tf.executing_eagerly()
    for index, variable in enumerate(variables):
        if not eager or not isinstance(variable, tfi.BaseResourceVariable):
            groups.append([index])
            continue
        device = variable.handle.device
        group = open_groups.get(device)
        if group is None or len(group) == _AT_ONCE:
            group = open_groups[device] = []
            groups.append(group)
        group.append(index)
    return groups


def _read_together(variables: Sequence[Any]) -> Sequence[Any]:
    device = tf.DeviceSpec.from_string(variables[0].handle.device) if len(variables) > 1 else None
    if device is None or device.device_type not in _KNOWN_DEVICES:
        return [read_one(variable) for variable in variables]
    try:
        values: Sequence[Any] = tfi.quick_execute(
            "_ReadVariablesOp",
            num_outputs=len(variables),
            inputs=[variable.handle for variable in variables],
            attrs=(
                "N",
                len(variables),
                "dtypes",
                [variable.dtype.as_datatype_enum for variable in variables],
            ),
            ctx=tfi.eager_context(),
        )
    except tf.errors.OpError:  # one of them cannot be read; alone, each says why
        return [read_one(variable) for variable in variables]
    return values
