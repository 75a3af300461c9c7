"""Short names for the nodes of functions, the same in every process.

In: a `FunctionLibrary` under the names of its traces. Out: the same library, its nodes and
arguments renamed in place. The invariant: a name is given once in the whole library, since
converters inline functions; only arguments of several functions may share one.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from keras_export import tf_internals as tfi
from keras_export.functions import ARGUMENT_NAME, CapturedTensor, FunctionLibrary

# The end of a number that may be of a counter of the process; that of `conv2d` is none.
_COUNTS = re.compile(r"\d(?![A-Za-z])")

# A name that counts nothing; only the digit of `conv2d` and its like is part of a word.
_GIVEN = re.compile(r"[A-Za-z](?:[A-Za-z_]|\d[dD](?![A-Za-z0-9]))*$")
_NUMBER_OF_GRAPH = re.compile(r"(_\d+)+$")


def rename(library: FunctionLibrary, keep_given: bool) -> None:
    """Renames nodes and arguments in place; equal constants of a function become one.

    Args:
        library: the functions, in the order that numbers their nodes.
        keep_given: leave the scopes that nodes were made in, and what their authors called them,
            unless these may count what the process did.
    """
    definitions = library.definitions.values()
    unique = _UniqueNames({x for definition in definitions for x in _wanted(definition)})
    renamed = {
        name: _rename_nodes_of(definition, unique, keep_given)
        for name, definition in library.definitions.items()
    }
    seen: set[int] = set()
    for bound in library.functions.values():
        for binding in bound.bindings:
            if isinstance(binding, CapturedTensor) and id(binding) not in seen:
                seen.add(id(binding))
                node, _, index = binding.tensor.partition(":")
                binding.tensor = f"{renamed[binding.function][node]}:{index}"


class _UniqueNames:
    """Names of nodes and arguments, each given once in the whole library."""

    def __init__(self, for_arguments: Container[str]) -> None:
        self._for_arguments = for_arguments
        self._counts: dict[str, int] = {}
        self._taken: set[str] = set()
        self._arguments: set[str] = set()

    def node(self, name: str) -> str:
        """The next free name for a node: the first one has no number, unless an argument has it."""
        return name if name not in self._for_arguments and self.claim(name) else self.numbered(name)

    def numbered(self, base: str) -> str:
        """The next free name on `base`."""
        # `_` keeps an op whose name ends in digits apart: Conv2D1 and Conv2D_1.
        separator = "_" if base[-1].isdigit() else ""
        while True:
            self._counts[base] = number = self._counts.get(base, -1) + 1
            if self.claim(name := f"{base}{separator}{number}"):
                return name

    def argument(self, wanted: str, refused: set[str]) -> str:
        """The name `wanted` unless a node has it; arguments of several functions may share it.

        The functions that users call are not inlined where their arguments could meet.
        """
        if wanted and wanted not in refused and (wanted in self._arguments or self.claim(wanted)):
            self._arguments.add(wanted)
            return wanted
        return self.numbered("arg")

    def claim(self, name: str) -> bool:
        """Whether `name` was free; it is not any more."""
        free = name not in self._taken
        self._taken.add(name)
        return free


def _wanted(definition: Any) -> list[str]:
    """What each argument is called by who wrote the function, or nothing."""
    return [
        _argument_name(definition.arg_attr[index]) if index in definition.arg_attr else ""
        for index in range(len(definition.signature.input_arg))
    ]


def _rename_nodes_of(definition: Any, unique: _UniqueNames, keep_given: bool) -> dict[str, str]:
    names: dict[str, str] = {}
    refused = {node.name for node in definition.node_def if _keeps_name(node)}
    for argument, wanted in zip(definition.signature.input_arg, _wanted(definition), strict=True):
        names[argument.name] = unique.argument(wanted, refused)
        argument.name = names[argument.name]
        refused.add(argument.name)
    effects = set(definition.control_ret.values())
    constants: dict[Any, str] = {}
    repeated = []
    for index, node in enumerate(definition.node_def):
        if node.op == "Const":
            first = constants.setdefault(_constant_key(node), node.name)
            if first != node.name:
                names[node.name] = names[first]
                repeated.append(index)
                continue
        # Effects are looked up by name. A digit in a name may be of a counter of the process.
        kept = _keeps_name(node)
        if node.name in effects and not re.search(r"\d", node.name):
            kept = kept or unique.claim(node.name)
        if kept:
            names[node.name] = node.name
        elif keep_given:
            names[node.name] = unique.node(_given_name(node))
        else:
            names[node.name] = unique.numbered(_base(node.op))
        node.name = names[node.name]
    for index in reversed(repeated):
        del definition.node_def[index]
    for node in definition.node_def:
        for index, source in enumerate(node.input):
            node.input[index] = _renamed(source, names)
    for key in list(definition.ret):
        definition.ret[key] = _renamed(definition.ret[key], names)
    _rename_control_outputs(definition, names)
    return names


def _given_name(node: Any) -> str:
    """The scope of a node and what its author called it, as far as neither may be counted."""
    scope, _, last = node.name.rpartition("/")
    given = _NUMBER_OF_GRAPH.sub("", last)  # which keeps the nodes of one name apart
    chosen = tfi.op_def_of(node.op) is not None and _GIVEN.match(given)
    scope = "" if _COUNTS.search(scope) else scope
    return f"{scope}/{given if chosen else _base(node.op)}".lstrip("/")


def _keeps_name(node: Any) -> bool:
    # A resource op without a shared_name shares by its node name.
    return "shared_name" in _attribute_names(node.op)


def _argument_name(attributes_of_argument: Any) -> str:
    """What the user called an argument, as TensorFlow spells it in functions, or nothing.

    Whoever freezes a loaded function finds its inputs under this name.
    Source: Normalize in tensorflow/core/framework/graph_to_functiondef.cc
    """
    given = attributes_of_argument.attr[ARGUMENT_NAME].s.decode()
    return re.sub(r"^[^a-z]+|[^a-z0-9_]", lambda x: "_" * bool(x.start()), given.lower())


def _constant_key(node: Any) -> Any:
    """Equal for constants that one node can stand for."""
    attr = node.attr
    attributes_key = tuple(
        (name, attr[name].SerializeToString(deterministic=True)) for name in sorted(attr)
    )
    return attributes_key, tuple(node.input), node.device


def _rename_control_outputs(definition: Any, names: dict[str, str]) -> None:
    sources = [names[definition.control_ret[key]] for key in definition.signature.control_output]
    definition.control_ret.clear()
    del definition.signature.control_output[:]
    for source in dict.fromkeys(sources):
        definition.signature.control_output.append(source)
        definition.control_ret[source] = source


def _base(op_type: str) -> str:
    # A call of a function by its name would bring the process's counter in.
    # A node's name may not begin with `_`, as some ops of TensorFlow itself do.
    return op_type.replace(">", "_").lstrip("_") if tfi.op_def_of(op_type) is not None else "Call"


def _renamed(source: str, names: dict[str, str]) -> str:
    if source[0] == "^":
        return "^" + names[source[1:]]
    node, colon, rest = source.partition(":")
    return names[node] + colon + rest


_ATTRIBUTE_NAMES: dict[str, frozenset[str]] = {}


def _attribute_names(op_type: str) -> frozenset[str]:
    known = _ATTRIBUTE_NAMES.get(op_type)
    if known is None:
        op_def = tfi.op_def_of(op_type)
        known = frozenset(a.name for a in op_def.attr) if op_def is not None else frozenset()
        _ATTRIBUTE_NAMES[op_type] = known
    return known
