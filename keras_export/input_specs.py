"""What a function takes: specs of any kind as `Argument`s with names.

In: a callable, and what the user says of its arguments: specs, KerasTensors, arrays. Out:
`Argument`s, and the `Forward` of a callable that is no model. The invariant: a name that the user
gave is kept as far as a signature can have it, and a note tells where it cannot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_export import structures
from keras_export.errors import ArgumentError, ArgumentTypeError, failure
from keras_export.forward_traces import Argument, Forward
from keras_export.signatures import named_outputs


def function_forward(call: Callable[..., Any], input_signature: Any, what: str) -> Forward:
    """Describes any callable as if it were a forward pass.

    Args:
        call: takes its arguments by position.
        input_signature: a list or tuple of specs, one each; anything else is the only argument. An
            `Argument` is taken as it is.
        what: how error messages call it.

    Raises:
        ArgumentError: it takes fewer arguments.
        ArgumentTypeError: a spec says no shape or dtype.
    """
    is_list = isinstance(input_signature, (list, tuple)) and not hasattr(input_signature, "_fields")
    per_argument = list(input_signature) if is_list else [input_signature]
    names = argument_names(call, len(per_argument))
    notes: list[str] = []
    arguments = tuple(
        given if isinstance(given, Argument) else given_argument(name, given, notes)
        for name, given in zip(names, per_argument, strict=True)
    )
    return Forward(call, arguments, lambda x: named_outputs(x, what), list, tuple(notes))


def argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """The names of the first positional arguments, as TensorFlow names what `*args` takes."""
    names: list[str] = []
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            missing = count - len(names)
            return names + [f"{parameter.name}_{index}" for index in range(missing)]
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    if len(names) < count:
        raise ArgumentError(
            failure(
                "read input_signature",
                f"at most {len(names)} specs, one for each positional argument of "
                f"{getattr(fn, '__qualname__', fn)}",
                f"{count}",
                "Nest the specs of one argument as the argument is.",
            )
        )
    return names[:count]


def parameters_of(model: Any) -> list[str]:
    """The names of what `model.call` takes by position."""
    parameters = inspect.signature(model.call).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def named_argument(name: str, specs: Any, notes: list[str]) -> Argument:
    """An argument whose tensors are named after it and their places in it."""
    flat = structures.flat_names(specs, name)
    notes.extend(
        f"the input {raw!r} is called {mapped!r}: only letters, digits and _ are kept"
        for raw, mapped in flat.mapped.items()
    )
    names = tuple(_argument_name(leaf_name, notes) for leaf_name, _ in flat)
    return Argument(name, specs, names)


def given_argument(name: str, given: Any, notes: list[str]) -> Argument:
    """An argument as the user describes it; the names in the specs win."""
    specs = tf.nest.map_structure(lambda x: None if x is None else spec_of(x), given)
    return _named_by_specs(named_argument(name, specs, notes), given, notes)


def _named_by_specs(argument: Argument, given: Any, notes: list[str]) -> Argument:
    raw = [getattr(leaf, "name", None) for leaf in tf.nest.flatten(given)]
    names = [
        graph_name_of(str(name), "input", notes) if isinstance(name, str) and name else default
        for name, default in zip(raw, argument.names, strict=False)
    ]
    return Argument(argument.name, argument.specs, tuple(names))


def graph_name_of(name: str, kind: str, notes: list[str]) -> str:
    """A name as a signature can have it, with a note if that is another."""
    mapped = structures.graph_name(name)
    if mapped != name:
        notes.append(
            f"the {kind} {name!r} is called {mapped!r}: only letters, digits and _ are kept"
        )
    return _argument_name(mapped, notes) if kind == "input" else mapped


def _argument_name(name: str, notes: list[str]) -> str:
    mapped = structures.argument_name(name)
    if mapped != name:
        why = "Python has a meaning for" if name.isidentifier() else "Python has no argument"
        notes.append(f"the input {name!r} is called {mapped!r}: {why} {name!r}")
    return mapped


def spec_of(value: Any) -> Any:
    """The `tf.TypeSpec` of a spec, KerasTensor, `keras.InputSpec`, tensor or array.

    Raises:
        ArgumentTypeError: it is none of these, or says no shape or dtype.
    """
    if isinstance(value, tf.TypeSpec):
        return value
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)):
        return tf.type_spec_from_value(value)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise ArgumentTypeError(
            failure(
                "read input_signature",
                "tf.TensorSpec, keras.InputSpec, KerasTensor or an array",
                f"{value!r} ({type(value).__name__})",
                "Give both shape and dtype.",
            )
        )
    dtype = tf.as_dtype(dtype)
    if getattr(value, "sparse", False):
        return tf.SparseTensorSpec(shape, dtype)
    if getattr(value, "ragged", False):
        return tf.RaggedTensorSpec(shape, dtype, ragged_rank=getattr(value, "ragged_rank", 1) or 1)
    return tf.TensorSpec(shape, dtype)
