"""Weights other than the live ones: the averages that an optimizer keeps.

In: a model whose optimizer has `use_ema=True`. Out: for each variable that is averaged, the
variable that holds its average. The invariant: nothing is assigned; the averages are read in place
of the weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from keras_export import tracking
from keras_export.errors import ArgumentError, failure
from keras_export.variables import CheckpointPlan

NOTE = (
    "the weights are the averages of the optimizer (weights='ema'): restored from this artifact, a "
    "model gets the averages and not the weights that its training goes on with"
)


def averages_of(model: Any) -> list[tuple[Any, Any]]:
    """The averaged `tf.Variable`s of a model, each with the `tf.Variable` of its average.

    Raises:
        ArgumentError: there is no optimizer, or it keeps no averages yet.
    """
    optimizer = getattr(model, "optimizer", None)
    # A loss scale wraps the optimizer that does the work.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if optimizer is None:
        _refuse("a model without optimizer", "Compile it with an optimizer with use_ema=True.")
    if not getattr(optimizer, "use_ema", False):
        received = f"{type(optimizer).__name__}(use_ema=False)"
        _refuse(received, "Compile with `optimizer=keras.optimizers.Adam(use_ema=True)`.")
    if not optimizer.built:
        _refuse("an optimizer that never took a step", "Train first, or export the live weights.")
    return [
        (tracking.unwrap_variable(variable), tracking.unwrap_variable(average))
        for variable, average in zip(
            # Keras has no public list of either.
            optimizer._trainable_variables,
            optimizer._model_variables_moving_average,
            strict=True,
        )
    ]


def _refuse(received: str, mend: str) -> NoReturn:
    raise ArgumentError(
        failure("export with weights='ema'", "an optimizer that averages weights", received, mend)
    )


def read_averages(plan: CheckpointPlan, model: Any) -> CheckpointPlan:
    """The same plan, with the averages of weights in their place."""
    average_of = {id(variable): average for variable, average in averages_of(model)}
    sources = tuple(
        dataclasses.replace(source, read_from=average_of.get(id(source.node.obj)))
        for source in plan.sources
    )
    return dataclasses.replace(plan, sources=sources)
