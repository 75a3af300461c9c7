"""How models without symbolic inputs were called.

In: calls of a model, as they happen, or the compiled steps of its `fit`. Out: the specs of each
argument. The invariant: our own traces are no calls, and no tensor is kept.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.input_specs import parameters_of, spec_of

# How each model was called: `{argument: specs}` of the last call, merged with those before.
_CALLS: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()

_PAUSED = threading.local()


def recorded(model: Any) -> dict[str, Any]:
    """The specs of each argument that a model was called with; empty if nobody knows."""
    return _CALLS.get(model) or _traced_call(model)


def record_call(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Remembers the tensors that a model was called with, as specs with a free batch size."""
    if getattr(_PAUSED, "value", False):
        return
    try:
        bound = inspect.signature(model.call).bind(*args, **_without_context(model, kwargs))
    except TypeError:
        return
    arguments = {
        name: tf.nest.map_structure(_recorded_spec, _plain(value))
        for name, value in bound.arguments.items()
        if _holds_tensors(value)
    }
    known = _CALLS.get(model)
    if known is not None:
        arguments = {
            name: _merged(known[name], specs) if name in known else specs
            for name, specs in arguments.items()
        }
    if arguments:
        _CALLS[model] = arguments


def start_recording(model: Any) -> None:
    """Records the calls of a model from now on, if its class does not do so already."""
    call = model.call
    if getattr(call, "_records_calls", False):
        return

    @functools.wraps(call)
    def recording_call(*args: Any, **kwargs: Any) -> Any:
        results = call(*args, **kwargs)
        record_call(model, args, kwargs)
        return results

    recording_call._records_calls = True  # type: ignore[attr-defined]
    # Into the instance's dict: Keras would track an attribute that is assigned.
    vars(model)["call"] = recording_call


def stop_recording(model: Any) -> None:
    """Undoes `start_recording`; what was recorded stays."""
    vars(model).pop("call", None)


@contextlib.contextmanager
def not_recording() -> Iterator[None]:
    """Our own trace says nothing about how a model is used."""
    before = getattr(_PAUSED, "value", False)
    _PAUSED.value = True
    try:
        yield
    finally:
        _PAUSED.value = before


def _without_context(model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what Keras adds of its own, unless `call` names it."""
    parameters = inspect.signature(model.call).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        name: value
        for name, value in kwargs.items()
        if name in parameters or (takes_all and name not in ("training", "mask"))
    }


def _plain(value: Any) -> Any:
    """Keras wraps containers; specs are kept in ordinary ones."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        kind = tuple if isinstance(value, tuple) else list
        return kind(_plain(item) for item in value)
    return value


def _holds_tensors(value: Any) -> bool:
    leaves = tf.nest.flatten(_plain(value))
    return bool(leaves) and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves)


def _recorded_spec(value: Any) -> Any:
    spec = spec_of(value)
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
        return (
            spec if not isinstance(spec, tf.TensorSpec) else tf.TensorSpec(spec.shape, spec.dtype)
        )
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def _merged(first: Any, second: Any) -> Any:
    """What covers both; the later one where they differ in more than a size."""
    try:
        return tf.nest.map_structure(_merged_spec, first, second)
    except (TypeError, ValueError):
        return second


def _merged_spec(first: Any, second: Any) -> Any:
    if not (isinstance(first, tf.TensorSpec) and isinstance(second, tf.TensorSpec)):
        return second
    if first.dtype != second.dtype or first.shape.rank != second.shape.rank:
        return second
    return tf.TensorSpec(first.shape.most_specific_compatible_shape(second.shape), first.dtype)


def _traced_call(model: Any) -> dict[str, Any]:
    """The first argument, as the compiled steps of `fit`, `evaluate` or `predict` fed it."""
    for name in ("predict_function", "train_function", "test_function"):
        for concrete in _step_traces(getattr(model, name, None)):
            args, _ = concrete.structured_input_signature
            data = getattr(args[0], "_element_spec", args[0]) if args else None
            data = data[0] if isinstance(data, list) and data else data
            first = data[0] if isinstance(data, tuple) and data else data
            if first is not None and _holds_tensors(first):
                specs = tf.nest.map_structure(_recorded_spec, _plain(first))
                return {parameters_of(model)[0]: specs}
    return {}


def _step_traces(step: Any) -> list[Any]:
    """The ConcreteFunctions of a compiled step; that of `fit` is inside a Python function."""
    inner = [cell.cell_contents for cell in getattr(step, "__closure__", None) or ()]
    functions = [x for x in (step, *inner) if isinstance(x, tfi.PolymorphicFunction)]
    return [trace for function in functions for trace in function._list_all_concrete_functions()]
