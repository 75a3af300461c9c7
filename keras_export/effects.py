"""Which variables a function writes.

In: a `FunctionLibrary`. Out: the objects that a function of it changes, itself or through what it
calls. The invariant: every op that is given a resource and is not known to leave it as it is
counts as a write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from keras_export import tf_internals as tfi
from keras_export.functions import (
    BoundFunction,
    FunctionLibrary,
    function_attributes,
    functions_in_attributes,
)

# Ops that look at a resource and leave it as it is.
READING_OPS = frozenset(
    {
        "LookupTableExportV2",
        "LookupTableFindV2",
        "LookupTableSizeV2",
        "ReadVariableOp",
        "ResourceGather",
        "ResourceGatherNd",
        "VariableShape",
        "VarIsInitializedOp",
    }
)

# Ops that hand a resource on as it is.
_PASSING_OPS = frozenset({"Identity", "IdentityN", "DisableCopyOnRead"})


def written_by(library: FunctionLibrary, bound: BoundFunction) -> list[Any]:
    """What `bound` writes, of what it is bound to."""
    count = len(library.definitions[bound.name].signature.input_arg)
    first = count - len(bound.bindings)
    written = _written_arguments(library, bound.name, {})
    return [bound.bindings[index - first] for index in sorted(written) if index >= first]


def _written_arguments(
    library: FunctionLibrary, name: str, known: dict[str, frozenset[int]]
) -> frozenset[int]:
    """Positions of the arguments of a function that it writes."""
    if name not in library.definitions:
        return frozenset()
    if name not in known:
        known[name] = frozenset()  # a function cannot call itself; this only ends a bad loop
        known[name] = frozenset(_writes(library, library.definitions[name], known))
    return known[name]


def _writes(library: FunctionLibrary, definition: Any, known: Any) -> Iterator[int]:
    sources = {arg.name: index for index, arg in enumerate(definition.signature.input_arg)}
    for node in definition.node_def:
        inputs = [sources.get(_base(name)) for name in node.input if name[0] != "^"]
        if all(index is None for index in inputs) or node.op in READING_OPS:
            continue
        if node.op in _PASSING_OPS:
            if inputs[0] is not None:
                sources[node.name] = inputs[0]
        elif function_attributes(node.op) or node.op in library.definitions:
            yield from _writes_of_call(library, node, inputs, known)
        elif (op_def := tfi.op_def_of(node.op)) is not None and op_def.is_stateful:
            resources = _resource_arguments(definition)
            yield from (index for index in inputs if index is not None and index in resources)


def _base(name: str) -> str:
    return name.partition(":")[0]


def _resource_arguments(definition: Any) -> set[int]:
    kind = tfi.types_pb2.DT_RESOURCE
    return {i for i, arg in enumerate(definition.signature.input_arg) if arg.type == kind}


def _writes_of_call(
    library: FunctionLibrary, node: Any, inputs: Sequence[int | None], known: Any
) -> Iterator[int]:
    # The branches of a conditional are not given what chooses between them.
    skipped = 1 if node.op in ("If", "StatelessIf", "Case", "StatelessCase") else 0
    for callee in _callees_of(node):
        for position in _written_arguments(library, callee, known):
            if position + skipped < len(inputs) and inputs[position + skipped] is not None:
                yield inputs[position + skipped]  # type: ignore[misc]


def _callees_of(node: Any) -> Iterator[str]:
    if tfi.op_def_of(node.op) is None:
        yield node.op
    yield from functions_in_attributes(node)
