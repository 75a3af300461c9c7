"""The trace of a forward pass, with the names of its tensors and the structures of a Python call.

In: a `Forward`, how to call it and what its results are called. Out: a `ForwardTrace`: one
ConcreteFunction whose inputs and outputs have the author's names, and the nested arguments and
results of a Python call. The invariant: it is traced once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import structures
from keras_export import tf_internals as tfi
from keras_export.errors import SignatureError, failure
from keras_export.graph_building import quick_building
from keras_export.signatures import SignatureFunction, SignatureInput, SignatureOutput


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


def trace(forward: Forward, name: str = "serve", *, keep_lines: bool = False) -> ForwardTrace:
    """Traces a forward pass once, outside the caller's device and strategy scopes.

    Args:
        forward: how to call it.
        name: of the function.
        keep_lines: remember for each op which lines of code made it, which takes longer.
    """
    leaves = [leaf for argument in forward.arguments for leaf in argument.leaves]
    refuse_duplicates([leaf_name for leaf_name, _ in leaves])
    order = sorted(range(len(leaves)), key=lambda i: tfi.sanitize_arg_name(leaves[i][0]))
    keywords = {index: f"a{rank:06d}" for rank, index in enumerate(order)}
    found: dict[str, Any] = {}
    building = contextlib.nullcontext if keep_lines else quick_building

    def serve(**tensors: Any) -> Any:
        flat = [tensors[keywords[index]] for index in range(len(leaves))]
        with building(tf.compat.v1.get_default_graph()):
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
    refuse_duplicates([x.name for x in inputs])
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


def refuse_duplicates(names: list[str]) -> None:
    """Raises a SignatureError if two tensors have one name."""
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
