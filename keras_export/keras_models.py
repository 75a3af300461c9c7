"""What a Keras model says about itself: its arguments, their specs, and the names of its results.

In: a Keras layer or model, and what the user overrides. Out: a `ForwardTrace`: one
ConcreteFunction in inference mode whose inputs and outputs have the author's names, and the
nested arguments and results of a Python call. The invariant: the model is traced once and is not
changed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import structures
from keras_export import tf_internals as tfi
from keras_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    SignatureError,
    UnsupportedError,
    failure,
)
from keras_export.signatures import (
    SignatureFunction,
    SignatureInput,
    SignatureOutput,
    named_outputs,
)
from keras_export.tracking import (
    Node,
    TrackedGraph,
    is_keras_layer,
    path_text,
    unwrap_variable,
)


@dataclass(frozen=True)
class Argument:
    """One argument of the forward pass.

    Attributes:
        name: its name in a Python call.
        specs: `tf.TypeSpec`s, nested as the argument is.
        names: the names of its tensors in the signature, in the order of `tf.nest.flatten`.
    """

    name: str
    specs: Any
    names: tuple[str, ...]

    @property
    def leaves(self) -> list[tuple[str, Any]]:
        """Its tensors: name and spec of each. What is left out is None in a call."""
        pairs = zip(self.names, tf.nest.flatten(self.specs), strict=False)
        return [(name, spec) for name, spec in pairs if spec is not None]


@dataclass(frozen=True)
class Forward:
    """How to call the forward pass, or a function beside it, and what its results are called.

    Attributes:
        call: takes the arguments by position.
        arguments: in order.
        name_outputs: names the flat results, given their nested specs.
        variables: the identities of the model's variables.
        notes: what the user should know about the names and specs.
    """

    call: Callable[..., Any]
    arguments: tuple[Argument, ...]
    name_outputs: Callable[[Any], list[SignatureOutput]]
    variables: Callable[[], list[int]]
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Any]:
        """The specs of its tensors by name."""
        return {name: spec for argument in self.arguments for name, spec in argument.leaves}

    def call_by_name(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Calls it with tensors by name; the results come by name."""
        arguments = _packed(self.arguments, [tensors[name] for name in self.inputs])
        results = _as_tensors(self.call(*arguments))
        flat = tf.nest.flatten(results, expand_composites=True)
        return {
            output.name: tf.nest.pack_sequence_as(
                output.spec, [flat[x] for x in output.positions], expand_composites=True
            )
            for output in self.name_outputs(structures.to_specs(results))
        }


@dataclass(eq=False)
class ForwardTrace:
    """A traced forward pass, or a function beside it.

    Attributes:
        concrete: takes the tensors `a0, a1, …` in the order of `inputs`.
        inputs: sorted by name, as the loaded function takes them.
        outputs: sorted by name.
        arguments: the nested arguments of a Python call.
        results: the nested specs of what a Python call returns.
        argument_order: for each flat argument of `concrete`, its position in a Python call.
        result_order: for each flat result of a Python call, its position in `concrete`'s results.
        built_model: whether the trace made variables, which a walk before it did not see.
        notes: what the user should know.
    """

    concrete: Any
    inputs: tuple[SignatureInput, ...]
    outputs: tuple[SignatureOutput, ...]
    arguments: tuple[Argument, ...]
    results: Any
    argument_order: tuple[int, ...]
    result_order: tuple[int, ...]
    built_model: bool
    notes: list[str] = field(default_factory=list)

    def signature(self, key: str) -> SignatureFunction:
        return SignatureFunction(key, self.concrete, self.inputs, self.outputs)

    @property
    def takes_named_inputs(self) -> bool:
        """Whether `concrete` takes its tensors in the order of their names, as a signature does."""
        names = [item.name for item in self.inputs]
        return names == sorted(names, key=tfi.sanitize_arg_name)

    @property
    def argument_specs(self) -> tuple[Any, ...]:
        """The nested specs of the arguments, each tensor with its name."""
        return tuple(
            tf.nest.pack_sequence_as(
                argument.specs,
                [
                    _renamed_spec(spec, name)
                    for name, spec in zip(
                        argument.names, tf.nest.flatten(argument.specs), strict=False
                    )
                ],
            )
            for argument in self.arguments
        )


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
        given if isinstance(given, Argument) else _given_argument(name, given, notes)
        for name, given in zip(names, per_argument, strict=True)
    )
    return Forward(call, arguments, lambda x: named_outputs(x, what), list, tuple(notes))


def trace(forward: Forward, name: str = "serve") -> ForwardTrace:
    """Traces a forward pass once, outside the caller's device and strategy scopes."""
    leaves = [leaf for argument in forward.arguments for leaf in argument.leaves]
    _refuse_duplicates([leaf_name for leaf_name, _ in leaves])
    order = sorted(range(len(leaves)), key=lambda i: tfi.sanitize_arg_name(leaves[i][0]))
    keywords = {index: f"a{rank:06d}" for rank, index in enumerate(order)}
    found: dict[str, Any] = {}

    def serve(**tensors: Any) -> Any:
        flat = [tensors[keywords[index]] for index in range(len(leaves))]
        results = forward.call(*_packed(forward.arguments, flat))
        found["results"] = results = _as_tensors(results)
        found["outputs"] = forward.name_outputs(structures.to_specs(results))
        flat_results = tf.nest.flatten(results, expand_composites=True)
        return [
            flat_results[position]
            for output in sorted(found["outputs"], key=lambda x: x.name)
            for position in output.positions
        ]

    serve.__name__ = name
    before = forward.variables()
    specs = {keywords[index]: _unnamed(spec) for index, (_, spec) in enumerate(leaves)}
    with tf.device(None):
        concrete = tf.function(serve, autograph=False).get_concrete_function(**specs)
    inputs = tuple(_flat_inputs([leaves[index] for index in order]))
    outputs, result_order = _flat_outputs(found["outputs"])
    _refuse_duplicates([x.name for x in inputs])
    return ForwardTrace(
        concrete,
        inputs,
        outputs,
        forward.arguments,
        structures.to_specs(found["results"]),
        _flat_order(leaves, order),
        result_order,
        forward.variables() != before,
        list(forward.notes),
    )


def _flat_order(leaves: list[tuple[str, Any]], order: list[int]) -> tuple[int, ...]:
    """For each flat tensor of the leaves in `order`, its position in the leaves as they came."""
    widths = [len(tf.nest.flatten(spec, expand_composites=True)) for _, spec in leaves]
    starts = [sum(widths[:index]) for index in range(len(widths))]
    return tuple(starts[index] + offset for index in order for offset in range(widths[index]))


def _renamed_spec(spec: Any, name: str) -> Any:
    return tf.TensorSpec(spec.shape, spec.dtype, name) if isinstance(spec, tf.TensorSpec) else spec


def _unnamed(spec: Any) -> Any:
    return tf.TensorSpec(spec.shape, spec.dtype) if isinstance(spec, tf.TensorSpec) else spec


def _as_tensors(results: Any) -> Any:
    return tf.nest.map_structure(
        lambda x: (
            x
            if x is None
            or isinstance(x, (tf.Tensor, tf.RaggedTensor, tf.SparseTensor))
            # A variable has a spec too, but its value is what the caller gets.
            or (hasattr(x, "_type_spec") and not isinstance(x, tf.Variable))
            else tf.convert_to_tensor(x)
        ),
        results,
    )


def _packed(arguments: Sequence[Argument], flat: list[Any]) -> list[Any]:
    tensors = iter(flat)
    return [
        tf.nest.pack_sequence_as(
            argument.specs,
            [None if spec is None else next(tensors) for spec in tf.nest.flatten(argument.specs)],
        )
        for argument in arguments
    ]


def _flat_inputs(leaves: list[tuple[str, Any]]) -> list[SignatureInput]:
    found: list[SignatureInput] = []
    for name, spec in leaves:
        for index, part in enumerate(tf.nest.flatten(spec, expand_composites=True)):
            part_name = f"{name}_{index}" if index else name
            flat_spec = tf.TensorSpec(part.shape, part.dtype, name=part_name)
            found.append(SignatureInput(part_name, flat_spec, len(found)))
    return found


def _flat_outputs(
    named: list[SignatureOutput],
) -> tuple[tuple[SignatureOutput, ...], tuple[int, ...]]:
    """The outputs by name, and where each flat result of the forward pass went."""
    outputs: list[SignatureOutput] = []
    order: dict[int, int] = {}
    for output in sorted(named, key=lambda x: x.name):
        start = len(order)
        for offset, position in enumerate(output.positions):
            order[position] = start + offset
        positions = tuple(range(start, start + len(output.positions)))
        outputs.append(SignatureOutput(output.name, output.spec, positions))
    return tuple(outputs), tuple(order[position] for position in sorted(order))


def _refuse_duplicates(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SignatureError(
                failure(
                    "export",
                    "a name of its own for each tensor",
                    f"{names.count(name)} tensors called {name!r}",
                    "Rename the layers, or pass `output_names=` or `input_signature=`.",
                )
            )


# -- calling in inference mode ------------------------------------------------------------------


def _inference_call(model: Any, arguments: Sequence[Argument]) -> Callable[..., Any]:
    """Calls the model with its arguments by position as far as they are the first ones."""
    names = [argument.name for argument in arguments]
    same = [x == y for x, y in zip(names, _parameters(model), strict=False)]
    leading = max(1, (*same, False).index(False))

    def call(*args: Any) -> Any:
        keywords = dict(zip(names[leading:], args[leading:], strict=False))
        return model(*args[:leading], **keywords, training=False)

    return call


_PAUSED = threading.local()


@contextlib.contextmanager
def not_recording() -> Iterator[None]:
    """Our own trace says nothing about how a model is used."""
    before = getattr(_PAUSED, "value", False)
    _PAUSED.value = True
    try:
        yield
    finally:
        _PAUSED.value = before


def batch_norm_of(tracked: TrackedGraph, variable: Node) -> Any:
    """The BatchNormalization layer whose statistics `variable` is, or None."""
    import keras

    for node in tracked.nodes:
        if isinstance(node.obj, keras.layers.BatchNormalization) and any(
            child is variable for child in node.children.values()
        ):
            return node.obj
    return None


def _parameters(model: Any) -> list[str]:
    parameters = inspect.signature(model.call).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


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
        return _graph_name(path[-1], "input", notes)
    operation = tensor._keras_history.operation
    _flag_counted(operation, "input", notes)
    return _graph_name(operation.name, "input", notes)


def _graph_name(name: str, kind: str, notes: list[str]) -> str:
    mapped = structures.graph_name(name)
    if mapped != name:
        notes.append(
            f"the {kind} {name!r} is called {mapped!r}: only letters, digits and _ are kept"
        )
    return mapped


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
    taken: dict[str, int] = {}
    leaf_names = []
    for path, tensor in tfi.flatten_with_tuple_paths(structure):
        if path and isinstance(path[-1], str):
            leaf_names.append(_graph_name(path[-1], "output", notes))
            continue
        operation = tensor._keras_history.operation
        _flag_counted(operation, "output", notes)
        leaf_names.append(_numbered(_graph_name(operation.name, "output", notes), taken))

    def name_outputs(results: Any) -> list[SignatureOutput]:
        return _positioned(leaf_names, tf.nest.flatten(results))

    return name_outputs


def _numbered(name: str, taken: dict[str, int]) -> str:
    count = taken.get(name, 0)
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
    _refuse_duplicates(new_names)
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


# How each model was called: `{argument: specs}` of the last call, merged with those before.
_CALLS: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


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


def _without_context(model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.call).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}


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


def _recorded_arguments(model: Any, naming: str) -> tuple[tuple[Argument, ...], list[str]]:
    recorded = _CALLS.get(model) or _traced_call(model)
    if not recorded:
        return _shape_arguments(model, naming)
    notes: list[str] = []
    order = _parameters(model)
    names = sorted(recorded, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(_argument(name, recorded[name], notes) for name in names), notes


def _traced_call(model: Any) -> dict[str, Any]:
    """The first argument, as the compiled steps of `fit`, `evaluate` or `predict` fed it."""
    for name in ("predict_function", "train_function", "test_function"):
        for concrete in _step_traces(getattr(model, name, None)):
            args, _ = concrete.structured_input_signature
            data = getattr(args[0], "_element_spec", args[0]) if args else None
            data = data[0] if isinstance(data, list) and data else data
            first = data[0] if isinstance(data, tuple) and data else data
            if first is not None and _holds_tensors(first):
                return {_parameters(model)[0]: tf.nest.map_structure(_recorded_spec, _plain(first))}
    return {}


def _step_traces(step: Any) -> list[Any]:
    """The ConcreteFunctions of a compiled step; that of `fit` is inside a Python function."""
    inner = [cell.cell_contents for cell in getattr(step, "__closure__", None) or ()]
    functions = [x for x in (step, *inner) if isinstance(x, tfi.PolymorphicFunction)]
    return [trace for function in functions for trace in function._list_all_concrete_functions()]


def _shape_arguments(model: Any, naming: str) -> tuple[tuple[Argument, ...], list[str]]:
    shapes = getattr(model, "_build_shapes_dict", None)
    as_keras = naming == "keras"
    # A model read from a file has shapes although nobody called it; Keras refuses that.
    if not model.built or not shapes or (as_keras and not model._called):
        raise ArgumentError(_never_called(model))
    parameters = _parameters(model)
    arguments: list[Argument] = []
    notes: list[str] = []
    for position, (key, shape) in enumerate(shapes.items()):
        name = key.removesuffix("_shape")
        if name not in parameters:
            name = parameters[position]
        arguments.append(_argument(name, _shapes_to_specs(shape, model.input_dtype), notes))
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


def _argument(name: str, specs: Any, notes: list[str]) -> Argument:
    flat = structures.flat_names(specs, name)
    notes.extend(
        f"the input {raw!r} is called {mapped!r}: only letters, digits and _ are kept"
        for raw, mapped in flat.mapped.items()
    )
    return Argument(name, specs, tuple(leaf_name for leaf_name, _ in flat))


def _never_called(model: Any) -> str:
    return failure(
        f"export the model {model.name!r}",
        "a model that was called, or an input_signature",
        f"a {type(model).__name__} that was never called",
        "Call it once on a batch, or say what it takes: `export(model, path, "
        "input_signature=[tf.TensorSpec([None, 32], tf.float32, name='x')])`.",
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
    parameters = ["inputs"] if symbolic is not None else _parameters(model)
    arguments: list[Argument] = []
    notes: list[str] = []
    for position, given in enumerate(per_argument):
        if given is None:
            continue
        name = parameters[position] if position < len(parameters) else f"input_{position}"
        arguments.append(_given_argument(name, given, notes))
    return tuple(arguments), notes


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
                f"at most {len(names)} specs, one for each positional argument of {fn!r}",
                f"{count}",
                "Nest the specs of one argument as the argument is.",
            )
        )
    return names[:count]


def _given_argument(name: str, given: Any, notes: list[str]) -> Argument:
    specs = tf.nest.map_structure(lambda x: None if x is None else spec_of(x), given)
    return _named_by_specs(_argument(name, specs, notes), given, notes)


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


def _named_by_specs(argument: Argument, given: Any, notes: list[str]) -> Argument:
    raw = [getattr(leaf, "name", None) for leaf in tf.nest.flatten(given)]
    names = [
        _graph_name(str(name), "input", notes) if isinstance(name, str) and name else default
        for name, default in zip(raw, argument.names, strict=False)
    ]
    return Argument(argument.name, argument.specs, tuple(names))


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
