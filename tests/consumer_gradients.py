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


def second_gradients(function: Callable[..., Any], x: tf.Tensor) -> tf.Tensor:
    """Differentiates half the sum of squares of the first derivatives of the same.

    Args:
        function: called as `function(x)`.
        x: floats, with respect to which both derivatives are.

    Returns:
        A tensor like `x`.
    """
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = half_of_squares(function(x))
        slope = half_of_squares(inner.gradient(loss, x))
    return outer.gradient(slope, x)


def half_of_squares(outputs: Any) -> tf.Tensor:
    """The loss of `gradients`."""
    flat = tf.nest.flatten(outputs, expand_composites=True)
    return tf.add_n(
        [tf.reduce_sum(tf.cast(y, tf.float32) ** 2) / 2 for y in flat if y.dtype.is_floating]
    )


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and tf.as_dtype(value.dtype).is_floating
