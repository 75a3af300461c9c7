"""Gradients of any callable, computed alike for a live object and for a loaded artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf


def gradients(
    function: Callable[..., Any], sources: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Differentiates half the sum of squares of all floating-point outputs.

    Squares, because the plain sum of a softmax is constant: a lost gradient would pass unseen.

    Args:
        function: called as `function(*args, **kwargs)`.
        sources: variables or tensors among the arguments, nested; others than floats give `None`.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        A gradient or `None` for each source, in the structure of `sources`.
    """
    floats = [source for source in tf.nest.flatten(sources) if _is_float(source)]
    with tf.GradientTape() as tape:
        tape.watch([source for source in floats if not isinstance(source, tf.Variable)])
        loss = half_of_squares(function(*args, **kwargs))
    found = iter(tape.gradient(loss, floats))
    each = [next(found) if _is_float(source) else None for source in tf.nest.flatten(sources)]
    return tf.nest.pack_sequence_as(sources, each)


def half_of_squares(outputs: Any) -> tf.Tensor:
    """The loss of `gradients`."""
    flat = tf.nest.flatten(outputs, expand_composites=True)
    return tf.add_n(
        [tf.reduce_sum(tf.cast(y, tf.float32) ** 2) / 2 for y in flat if y.dtype.is_floating]
    )


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and tf.as_dtype(value.dtype).is_floating
