"""What tests of checkpoints are made of: variables, their plan, and the entries of their values."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_export import held_values, tracking, variables

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def module(**values: Any) -> tf.Module:
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value, name=name))
    return made


def plan(obj: Any) -> variables.CheckpointPlan:
    return variables.plan_checkpoint(tracking.track(obj))


def entries(values: held_values.Values) -> dict[str, Any]:
    return {entry.key: entry.tensor for group in values.groups for entry in group}
