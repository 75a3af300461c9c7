"""What a Keras model says about itself: its arguments, their specs, and the names of its results.

In: a Keras layer or model, and what the user overrides. Out: a `Forward`: how to call it in
inference mode, and how its author named what it takes and gives. The invariant: the model is not
changed.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_export import recorded_calls, structures
from keras_export import tf_internals as tfi
from keras_export.errors import (
    ArgumentError,
    BackendError,
    UnsupportedError,
    failure,
)
from keras_export.forward_traces import Argument, Forward, refuse_duplicates
from keras_export.input_specs import (
    argument_names,
    given_argument,
    graph_name_of,
    named_argument,
    parameters_of,
    spec_of,
)
from keras_export.keras_objects import is_keras_layer
from keras_export.signatures import SignatureOutput, named_outputs
from keras_export.tracking import Node, TrackedGraph, path_text, unwrap_variable


def is_keras_model(obj: Any) -> bool:
    """Whether `obj` is a Keras layer or model, on the backend that can be exported.

    Raises:
        BackendError: Keras runs on another backend than TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            "Cannot export: Keras runs on the backend "
            f"{keras.backend.backend()!r}, and a SavedModel holds TensorFlow functions. Set the "
            "environment variable KERAS_BACKEND=tensorflow before Keras is imported."
        )
    return is_keras_layer(obj)


def refuse_torch(tracked: TrackedGraph, root: str) -> None:
    """Refuses layers that compute with PyTorch.

    Raises:
        UnsupportedError: one is there; it is named by its path.
    """
    for node in tracked.nodes:
        for path, module in _torch_modules(node):
            raise UnsupportedError(
                f"Cannot export {path_text(path, root)} ({type(module).__name__}): it computes "
                "with PyTorch, and a SavedModel holds TensorFlow functions. Write the layer with "
                "keras.ops, or export the model by `torch.onnx.export`."
            )


def _torch_modules(node: Node) -> Iterator[tuple[tuple[str, ...], Any]]:
    import keras

    if isinstance(node.obj, keras.layers.TorchModuleWrapper):
        yield node.path, node.obj
    torch = sys.modules.get("torch")
    if torch is not None and is_keras_layer(node.obj):
        for name, value in vars(node.obj).items():
            if isinstance(value, torch.nn.Module):
                yield (*node.path, name), value


def forward_of(
    model: Any,
    input_signature: Any = None,
    names: str = "layers",
    output_names: Sequence[str] | Mapping[str, str] | None = None,
) -> Forward:
    """Reads from a model how to call it and how its tensors are named.

    Args:
        model: a built Keras model or layer.
        input_signature: specs that replace the model's own, one per argument; None for one that is
            left out.
        names: `"layers"` for the author's names, `"keras"` for those of `Model.export`, which also
            frees the first dimension of every input and assumes the dtype of several arguments.
        output_names: names for the results, in their order, or a map from old to new names.

    Raises:
        ArgumentError: the model is not built, or an option has an unknown value.
        SignatureError: two tensors would get one name.
    """
    if names not in ("layers", "keras"):
        raise ArgumentError(
            failure("export", "names='layers' or names='keras'", f"names={names!r}")
        )
    symbolic = _symbolic(model)
    if input_signature is not None:
        arguments, notes = _given_arguments(model, symbolic, input_signature)
    elif symbolic is not None:
        arguments, notes = _symbolic_arguments(symbolic, names)
        arguments = _with_free_batch(model, symbolic, arguments, notes)
    else:
        arguments, notes = _recorded_arguments(model, names)
    namer = _symbolic_namer(symbolic, names, notes) if symbolic is not None else _plain_names
    return Forward(
        _inference_call(model, arguments),
        arguments,
        lambda results: _renamed(namer(results), output_names, results),
        lambda: [id(variable) for variable in model.variables],
        tuple(notes),
    )


# -- calling in inference mode ------------------------------------------------------------------


def _inference_call(model: Any, arguments: Sequence[Argument]) -> Callable[..., Any]:
    """Calls the model with its arguments by position as far as they are the first ones."""
    names = [argument.name for argument in arguments]
    parameters = inspect.signature(model.call).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    takes_any = inspect.Parameter.VAR_POSITIONAL in kinds.values()
    order = argument_names(model.call, len(names)) if takes_any else parameters_of(model)
    same = [x == y for x, y in zip(names, order, strict=False)]
    leading = max(1, (*same, False).index(False))

    def call(*args: Any) -> Any:
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for index, (name, value) in enumerate(zip(names, args, strict=False)):
            if kinds.get(name) is inspect.Parameter.VAR_POSITIONAL:
                positional += value
            elif kinds.get(name) is inspect.Parameter.VAR_KEYWORD:
                keywords |= value
            elif index < leading:
                positional.append(value)
            else:
                keywords[name] = value
        return model(*positional, **keywords, training=False)

    return call


def batch_norm_of(tracked: TrackedGraph, variable: Node) -> Any:
    """The BatchNormalization layer whose statistics `variable` is, or None."""
    import keras

    for node in tracked.nodes:
        if isinstance(node.obj, keras.layers.BatchNormalization) and any(
            child is variable for child in node.children.values()
        ):
            return node.obj
    return None


_COUNTERS = ("int32", "int64", "uint32")  # and seeds


def frozen_variables(model: Any) -> set[int]:
    """The ids of the `tf.Variable`s that training is not expected to change.

    A guess, from what is trainable: moving statistics and seeds of trainable layers change, too.
    """
    changing = {id(variable) for variable in model.trainable_variables}
    for layer in model._flatten_layers():
        if layer.trainable and len(list(layer._flatten_layers())) == 1:
            changing |= {id(variable) for variable in layer.variables}
    return {
        id(unwrap_variable(variable))
        for variable in model.variables
        if id(variable) not in changing and variable.dtype not in _COUNTERS
    }


# -- models with symbolic inputs ----------------------------------------------------------------


def _symbolic(model: Any) -> Any:
    """The Functional in a model that has symbolic inputs and outputs, or None."""
    import keras

    if isinstance(model, keras.Sequential):
        functional = getattr(model, "_functional", None)
        if functional is None and not model.built:
            raise ArgumentError(_unbuilt(model))
        return functional
    return model if _is_functional(model) else None


def _is_functional(model: Any) -> bool:
    return isinstance(model, tfi.keras_functional_class())


def _unbuilt(model: Any) -> str:
    return failure(
        f"export the model {model.name!r}",
        "a model that is built",
        "one without inputs",
        "Build it first: `model.build((None, 32))`, with your input shape, or start it with "
        "`keras.Input(shape=(32,), name='x')`.",
    )


def _symbolic_arguments(functional: Any, names: str) -> tuple[tuple[Argument, ...], list[str]]:
    structure = _without_list_of_one(functional.input)
    notes: list[str] = []
    flat = list(tfi.flatten_with_tuple_paths(structure))
    leaf_names = [_input_name(path, tensor, names, notes) for path, tensor in flat]
    specs = tf.nest.map_structure(_declared_spec, structure)
    if names == "keras":
        specs = tf.nest.map_structure(_free_batch, specs)
    return (Argument("inputs", specs, tuple(leaf_names)),), notes


def _with_free_batch(
    model: Any, symbolic: Any, arguments: tuple[Argument, ...], notes: list[str]
) -> tuple[Argument, ...]:
    """Frees the batch size of a Sequential that was built by its first call on a batch."""
    (argument,) = arguments
    spec = argument.specs
    built_by_shape = symbolic is not model and _is_made_by_keras(symbolic.input)
    if not built_by_shape or not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
        return arguments
    size = spec.shape[0]
    if size is None:
        return arguments
    if any(getattr(layer, "stateful", False) for layer in model._flatten_layers()):
        notes.append(
            f"the batch size is {size}, with which the model was built, since a layer of it keeps "
            "a state for each example"
        )
        return arguments
    notes.append(
        f"the batch size is free, though the model was built with {size}; begin it with "
        f"`keras.Input(batch_shape={tuple(spec.shape.as_list())})` to fix it"
    )
    return (Argument(argument.name, _free_batch(spec), argument.names),)


def _is_made_by_keras(tensor: Any) -> bool:
    """Whether an input comes of `build` and not of an author's `Input`, who may leave the dtype."""
    config = getattr(getattr(tensor, "_keras_history", None), "operation", None)
    config = getattr(getattr(config, "_auto_config", None), "config", {})
    return config.get("name") is None and config.get("dtype") is not None


def _without_list_of_one(structure: Any) -> Any:
    """`Model([x], y)` is served as `Model(x, y)`, as by Keras: both are called with a tensor."""
    alone = isinstance(structure, (list, tuple)) and len(structure) == 1
    return structure[0] if alone and hasattr(structure[0], "_keras_history") else structure


def _declared_spec(tensor: Any) -> Any:
    """What the author's `Input` says.

    In Keras 3.4 a layer of mixed precision rewrites the dtype of the tensor that it is called on.
    """
    import keras

    spec, declared = spec_of(tensor), tensor._keras_history.operation
    if isinstance(spec, tf.TensorSpec) and isinstance(declared, keras.layers.InputLayer):
        return tf.TensorSpec(spec.shape, declared.dtype)
    return spec


def _free_batch(spec: Any) -> Any:
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.rank:
        return spec
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype, spec.name)


def _input_name(path: tuple[Any, ...], tensor: Any, names: str, notes: list[str]) -> str:
    if names == "layers" and path and isinstance(path[-1], str):
        return graph_name_of(path[-1], "input", notes)
    operation = tensor._keras_history.operation
    _flag_counted(operation, "input", notes)
    return graph_name_of(operation.name, "input", notes)


def _flag_counted(operation: Any, kind: str, notes: list[str]) -> None:
    """Keras numbers the layers that nobody named, across all models of the process."""
    snake = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(operation).__name__
    )
    if re.fullmatch(re.escape(snake.lower()) + r"(_\d+)?", operation.name):
        notes.append(
            f"the {kind} name {operation.name!r} was given by Keras's counter and changes with the "
            "process; name the layer to keep it"
        )


def _symbolic_namer(
    functional: Any, names: str, notes: list[str]
) -> Callable[[Any], list[SignatureOutput]]:
    if names == "keras":
        return _plain_names
    structure = functional.output
    leaves = tfi.flatten_with_tuple_paths(structure)
    own = {structures.graph_name(tensor._keras_history.operation.name) for _, tensor in leaves}
    taken: dict[str, int] = {}
    leaf_names = []
    for path, tensor in leaves:
        if path and isinstance(path[-1], str):
            leaf_names.append(graph_name_of(path[-1], "output", notes))
            continue
        operation = tensor._keras_history.operation
        _flag_counted(operation, "output", notes)
        leaf_names.append(_numbered(graph_name_of(operation.name, "output", notes), taken, own))

    def name_outputs(results: Any) -> list[SignatureOutput]:
        return _positioned(leaf_names, tf.nest.flatten(results))

    return name_outputs


def _numbered(name: str, taken: dict[str, int], own: Collection[str]) -> str:
    """`lstm_1` for the second output of `lstm`, unless another layer has that name."""
    count = taken.get(name, 0)
    while count and f"{name}_{count}" in own:
        count += 1
    taken[name] = count + 1
    return f"{name}_{count}" if count else name


def _positioned(names: Sequence[str], specs: Sequence[Any]) -> list[SignatureOutput]:
    outputs, position = [], 0
    for name, spec in zip(names, specs, strict=False):
        width = len(tf.nest.flatten(spec, expand_composites=True))
        outputs.append(SignatureOutput(name, spec, tuple(range(position, position + width))))
        position += width
    return outputs


def _plain_names(results: Any) -> list[SignatureOutput]:
    return named_outputs(results, "the model")


def _renamed(
    outputs: list[SignatureOutput], wanted: Sequence[str] | Mapping[str, str] | None, results: Any
) -> list[SignatureOutput]:
    if wanted is None:
        new_names = [output.name for output in outputs]
    elif isinstance(wanted, Mapping):
        unknown = sorted(set(wanted) - {output.name for output in outputs})
        if unknown:
            raise ArgumentError(_wrong_output_names(f"output_names with {unknown}", outputs))
        new_names = [wanted.get(output.name, output.name) for output in outputs]
    else:
        new_names = [wanted] if isinstance(wanted, str) else list(wanted)
        if len(new_names) != len(outputs):
            raise ArgumentError(_wrong_output_names(f"output_names={new_names!r}", outputs))
    refuse_duplicates(new_names)
    return [
        SignatureOutput(name, output.spec, output.positions)
        for name, output in zip(new_names, outputs, strict=False)
    ]


def _wrong_output_names(received: str, outputs: list[SignatureOutput]) -> str:
    listed = ", ".join(repr(output.name) for output in outputs)
    return failure(
        "export", f"one name for each of the {len(outputs)} outputs ({listed})", received
    )


# -- models without symbolic inputs -------------------------------------------------------------


def _recorded_arguments(model: Any, naming: str) -> tuple[tuple[Argument, ...], list[str]]:
    recorded = recorded_calls.recorded(model)
    if not recorded:
        return _shape_arguments(model, naming)
    notes: list[str] = []
    order = parameters_of(model)
    names = sorted(recorded, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(named_argument(name, recorded[name], notes) for name in names), notes


def _shape_arguments(model: Any, naming: str) -> tuple[tuple[Argument, ...], list[str]]:
    shapes = getattr(model, "_build_shapes_dict", None)
    as_keras = naming == "keras"
    # A model read from a file has shapes although nobody called it; Keras refuses that.
    if not model.built or not shapes or (as_keras and not model._called):
        raise ArgumentError(_never_called(model))
    parameters = parameters_of(model)
    arguments: list[Argument] = []
    notes: list[str] = []
    for position, (key, shape) in enumerate(shapes.items()):
        name = key.removesuffix("_shape")
        if name not in parameters:
            name = parameters[position]
        arguments.append(named_argument(name, _shapes_to_specs(shape, model.input_dtype), notes))
    if len(arguments) > 1 and not as_keras:
        raise ArgumentError(_several_arguments(model, arguments))
    arguments.sort(key=lambda argument: parameters.index(argument.name))
    notes.extend(
        f"dtype assumed: Keras recorded only the shape of {argument.name!r}, so its dtype is "
        f"the model's input_dtype, {model.input_dtype}; pass input_signature= to say another"
        for argument in arguments
    )
    return tuple(arguments), notes


def _shapes_to_specs(shape: Any, dtype: str) -> Any:
    if isinstance(shape, Mapping):
        return {key: _shapes_to_specs(value, dtype) for key, value in shape.items()}
    if isinstance(shape, (list, tuple)) and not all(x is None or isinstance(x, int) for x in shape):
        return type(shape)(_shapes_to_specs(value, dtype) for value in shape)
    return tf.TensorSpec([None, *shape[1:]], dtype)


def _never_called(model: Any) -> str:
    was_called = getattr(model, "_called", False)
    state = "of whose calls Keras recorded nothing" if was_called else "that was never called"
    return failure(
        f"export the model {model.name!r}",
        "a model that was called, or an input_signature",
        f"a {type(model).__name__} {state}",
        f"{'Say' if was_called else 'Call it once on a batch, or say'} what it takes: "
        "`export(model, path, input_signature=[tf.TensorSpec([None, 32], tf.float32, name='x')])`.",
    )


def _several_arguments(model: Any, arguments: list[Argument]) -> str:
    specs = ", ".join(
        f"tf.TensorSpec({spec.shape.as_list()}, tf.{spec.dtype.name}, name={name!r})"
        for argument in arguments
        for name, spec in zip(argument.names, tf.nest.flatten(argument.specs), strict=False)
    )
    return failure(
        f"export the model {model.name!r}",
        "an input_signature for a model whose call takes several tensors",
        f"{len(arguments)} arguments of which Keras recorded the shapes alone",
        f"Write `input_signature=[{specs}]` with the right dtypes.",
    )


# -- an input signature that the user gave ------------------------------------------------------


def _given_arguments(
    model: Any, symbolic: Any, input_signature: Any
) -> tuple[tuple[Argument, ...], list[str]]:
    per_argument = _per_argument(symbolic, input_signature)
    count = len(per_argument)
    parameters = ["inputs"] if symbolic is not None else argument_names(model.call, count)
    arguments: list[Argument] = []
    notes: list[str] = []
    for position, given in enumerate(per_argument):
        if given is None:
            continue
        name = parameters[position] if position < len(parameters) else f"input_{position}"
        arguments.append(given_argument(name, given, notes))
    return tuple(arguments), notes


def _per_argument(symbolic: Any, input_signature: Any) -> list[Any]:
    """One structure per argument: a bare structure for the only argument is accepted."""
    if isinstance(input_signature, (list, tuple)) and not hasattr(input_signature, "_fields"):
        if symbolic is not None and len(input_signature) > 1:
            return [
                type(symbolic.input)(input_signature)
                if isinstance(symbolic.input, (list, tuple))
                else list(input_signature)
            ]
        return list(input_signature)
    return [input_signature]
