"""Variables that are stored in half precision while functions compute as before.

In: a `FunctionLibrary`, and the variables that would be stored in half the bytes. Out: the same
library, in which every read of such a variable is followed by a cast back. The invariant: what a
function gives and takes keeps its dtype; a variable that is used in another way than by reading it
keeps its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, ArgumentTypeError, failure
from keras_export.functions import BoundFunction, FunctionLibrary, functions_in_attributes
from keras_export.tracking import Node, path_text

DTYPES = {"float16": tf.float16, "bfloat16": tf.bfloat16}

# Ops that give the values of a variable -> the name of that output.
_READS = {"ReadVariableOp": "value", "ResourceGather": "output", "ResourceGatherNd": "output"}

# Ops that look at a variable and not at its values.
_LOOKS = frozenset({"VariableShape", "VarIsInitializedOp", "DisableCopyOnRead", "NoOp"})

# Calls that hand on their inputs as they are -> how many of the first ones they keep.
_CALLS = {
    "PartitionedCall": 0,
    "StatefulPartitionedCall": 0,
    "While": 0,
    "StatelessWhile": 0,
    "If": 1,
    "StatelessIf": 1,
    "Case": 1,
    "StatelessCase": 1,
}
_LOOPS = frozenset({"While", "StatelessWhile"})

# An argument of a function, and the arguments that are given a variable.
_Place: TypeAlias = tuple[str, int]
_Reached: TypeAlias = dict[_Place, set[int]]


def checked_dtype(name: Any) -> tf.DType | None:
    """The dtype that was passed as `variables_dtype=`.

    Raises:
        ArgumentError: it is another one.
        ArgumentTypeError: it is no dtype's name.
    """
    if name is None:
        return None
    received = f"variables_dtype={name!r}"
    wanted = "variables_dtype='float16' or 'bfloat16'"
    if not isinstance(name, (str, tf.DType)):
        raise ArgumentTypeError(failure("export", wanted, f"{received} ({type(name).__name__})"))
    found = DTYPES.get(name.name if isinstance(name, tf.DType) else name)
    if found is None:
        raise ArgumentError(failure("export", wanted, received))
    return found


def halve(
    library: FunctionLibrary, candidates: Iterable[Node], dtype: tf.DType
) -> tuple[list[Node], list[Node]]:
    """Lets functions read variables that are stored in half precision.

    Args:
        library: its definitions are changed in place.
        candidates: variables; those that are no wider than `dtype`, or no floats, are passed over.
        dtype: the half dtype.

    Returns:
        The variables that are stored as `dtype` from now on, and those that a function uses in
        another way than by reading them, which stay.
    """
    wide = {
        id(node): node
        for node in candidates
        if node.facts.dtype.is_floating and node.facts.dtype.size > dtype.size
    }
    reached: _Reached = defaultdict(set)
    refused: set[int] = set()
    walk = _Walk(library)
    for bound in library.functions.values():
        for position, node in _bound_variables(library, bound):
            walk.follow((bound.name, position), id(node), reached, refused)
    _refuse_mixed(reached, wide.keys(), refused)
    halved = {key: node for key, node in wide.items() if key not in refused}
    by_function: dict[str, set[int]] = defaultdict(set)
    for (name, position), keys in reached.items():
        if keys and keys <= halved.keys():
            by_function[name].add(position)
    for name, positions in by_function.items():
        _cast_back(library.definitions[name], positions, dtype)
    return list(halved.values()), [node for key, node in wide.items() if key in refused]


def notes(halved: Iterable[Node], kept: Iterable[Node], dtype: tf.DType) -> list[str]:
    """What the user should know."""
    found = []
    if list(halved):
        found.append(
            f"variables are stored as {dtype.name}: a restore into the model that trains fails or "
            "loses precision"
        )
    paths = ", ".join(path_text(node.path, "model") for node in kept)
    if paths:
        found.append(f"stored in full, since functions do more than read them: {paths}")
    return found


def _bound_variables(library: FunctionLibrary, bound: BoundFunction) -> Iterator[tuple[int, Node]]:
    first = len(library.definitions[bound.name].signature.input_arg) - len(bound.bindings)
    for index, binding in enumerate(bound.bindings):
        if isinstance(binding, Node) and binding.kind == "variable":
            yield first + index, binding


# -- where variables get --------------------------------------------------------------------------


class _Walk:
    """Follows variables into the functions that are called with them."""

    def __init__(self, library: FunctionLibrary):
        self._library = library
        self._known: dict[str, dict[int, list[_Place | None]]] = {}
        self._in_loops = {
            name
            for definition in library.definitions.values()
            for node in definition.node_def
            if node.op in _LOOPS
            for name in functions_in_attributes(node)
        }

    def follow(self, place: _Place, variable: int, reached: _Reached, refused: set[int]) -> None:
        pending = [place]
        while pending:
            place = pending.pop()
            if variable in reached[place]:
                continue
            reached[place].add(variable)
            for use in self._uses(place[0]).get(place[1], ()):
                if use is None:
                    refused.add(variable)
                else:
                    pending.append(use)

    def _uses(self, name: str) -> dict[int, list[_Place | None]]:
        """For each argument of a function what it is passed on to; None for an unknown use."""
        if name not in self._known:
            found = self._known[name] = {}
            for position, use in self._list_uses(self._library.definitions[name]):
                found.setdefault(position, []).append(use)
        return self._known[name]

    def _list_uses(self, definition: Any) -> Iterator[tuple[int, _Place | None]]:
        aliases = _aliases(definition, _resources(definition))
        for node in definition.node_def:
            given = [(i, aliases[name]) for i, name in enumerate(node.input) if name in aliases]
            if not given or node.op in _READS or node.op in _LOOKS or node.op == "Identity":
                continue
            kept = _CALLS.get(node.op, 0 if node.op in self._library.definitions else None)
            callees = list(functions_in_attributes(node)) or [node.op]
            for index, position in given:
                if kept is None or index < kept:
                    yield position, None
                    continue
                yield from ((position, (callee, index - kept)) for callee in callees)
        # A variable may leave a function only as the loop variable of its loop.
        if definition.signature.name not in self._in_loops:
            yield from ((aliases[x], None) for x in definition.ret.values() if x in aliases)


def _resources(definition: Any) -> list[int]:
    kind = tf.resource.as_datatype_enum
    return [i for i, x in enumerate(definition.signature.input_arg) if x.type == kind]


def _aliases(definition: Any, positions: Iterable[int]) -> dict[str, int]:
    """What the values of some arguments are called in a function: tensor -> argument."""
    arguments = definition.signature.input_arg
    aliases = {arguments[position].name: position for position in positions}
    for node in definition.node_def:
        if node.op != "Identity" and node.op not in _LOOPS:
            continue
        for index, name in enumerate(node.input):
            if name in aliases:
                aliases[f"{node.name}:output:{index}"] = aliases[name]
    return aliases


def _refuse_mixed(reached: _Reached, wide: Iterable[int], refused: set[int]) -> None:
    """Keeps variables that share an argument with one that stays: a function has one dtype."""
    known = set(wide)
    changed = True
    while changed:
        changed = False
        for keys in reached.values():
            stays = keys - known | keys & refused
            if stays and keys - stays:
                refused |= keys
                changed = True


# -- casting back ---------------------------------------------------------------------------------


def _cast_back(definition: Any, positions: set[int], dtype: tf.DType) -> None:
    """Puts a cast behind each read; it takes the name of the read, which others know."""
    aliases = _aliases(definition, positions)
    renamed: dict[str, str] = {}
    names = {node.name for node in definition.node_def}
    nodes = []
    for node in definition.node_def:
        nodes.append(node)
        if node.op in _READS and node.input and node.input[0] in aliases:
            output, name = _READS[node.op], node.name
            nodes.append(_cast_of(node, output, _unused(f"{name}_half", names), dtype))
            renamed[f"{name}:{output}:0"] = f"{name}:y:0"
    if not renamed:
        return
    copied = [tfi.node_def_pb2.NodeDef.FromString(node.SerializeToString()) for node in nodes]
    del definition.node_def[:]
    definition.node_def.extend(copied)
    for node in definition.node_def:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
    for key, name in definition.ret.items():
        if name in renamed:
            definition.ret[key] = renamed[name]


def _cast_of(read: Any, output: str, new_name: str, dtype: tf.DType) -> Any:
    """Makes a read one of `dtype`, and the cast to what it was, under the name that it had."""
    cast = tfi.node_def_pb2.NodeDef(name=read.name, op="Cast", device=read.device)
    cast.input.append(f"{new_name}:{output}:0")
    cast.attr["SrcT"].type = dtype.as_datatype_enum
    cast.attr["DstT"].type = read.attr["dtype"].type
    if "_output_shapes" in read.attr:
        cast.attr["_output_shapes"].CopyFrom(read.attr["_output_shapes"])
    read.name = new_name
    read.attr["dtype"].type = dtype.as_datatype_enum
    return cast


def _unused(name: str, names: set[str]) -> str:
    candidate, number = name, 0
    while candidate in names:
        number += 1
        candidate = f"{name}_{number}"
    names.add(candidate)
    return candidate
