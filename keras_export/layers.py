"""Tells to which layer a node of an artifact belongs.

In: a MetaGraph, as `protos` describes it. Out: names of layers. The invariant: nothing is
guessed; a name comes from the scope of the node's own name, or from the variable that is read
nearest before the node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

# Their first input chooses a branch and is not handed on.
_CHOOSING = ("If", "StatelessIf", "Case", "StatelessCase")


class Layers:
    """The layers of one MetaGraph."""

    def __init__(self, meta_graph: Any) -> None:
        self._graph = meta_graph.graph_def
        self._functions = {f.signature.name: f for f in self._graph.library.function}
        self._nodes: dict[str, dict[str, Any]] = {}

    def of(self, function: str, node: Any) -> str:
        """The layer of a node; empty if no name tells it.

        Args:
            function: where it stands; empty for the main graph.
            node: its NodeDef.
        """
        if "/" in node.name:
            return str(node.name.rpartition("/")[0])
        return _scope(self._variable_before(function, node))

    def _variable_before(self, function: str, node: Any) -> str:
        """The name of the variable that the fewest steps lead to."""
        nodes, variables = self._nodes_of(function), self._variables.get(function, {})
        seen, waiting = set(), deque([node])
        while waiting:
            for name in map(_base, waiting.popleft().input):
                if name in variables:
                    return variables[name]
                if name in nodes and name not in seen:
                    seen.add(name)
                    waiting.append(nodes[name])
        return ""

    def _nodes_of(self, function: str) -> dict[str, Any]:
        if function not in self._nodes:
            body = self._functions[function].node_def if function else self._graph.node
            self._nodes[function] = {node.name: node for node in body}
        return self._nodes[function]

    @cached_property
    def _variables(self) -> Mapping[str, Mapping[str, str]]:
        """For each function: argument -> name of the variable that is handed in."""
        handles = {x.name: x.name for x in self._graph.node if x.op == "VarHandleOp"}
        found: dict[str, dict[str, str]] = {"": handles}
        waiting = deque([""])
        while waiting:
            name = waiting.popleft()
            for node in self._nodes_of(name).values():
                for callee, inputs in self._calls(node):
                    handed = self._handed(callee, inputs, found[name])
                    if callee not in found or not handed.keys() <= found[callee].keys():
                        found[callee] = {**handed, **found.get(callee, {})}
                        waiting.append(callee)
        return found

    def _handed(
        self, callee: str, inputs: Sequence[str], variables: Mapping[str, str]
    ) -> dict[str, str]:
        arguments = self._functions[callee].signature.input_arg
        return {
            argument.name: variables[_base(given)]
            for argument, given in zip(arguments, inputs, strict=False)
            if _base(given) in variables
        }

    def _calls(self, node: Any) -> Iterator[tuple[str, Sequence[str]]]:
        names = [node.op] if node.op in self._functions else []
        for entry in node.attr:
            names += [x.name for x in (entry.value.func, *entry.value.list.func)]
        inputs = node.input[1:] if node.op in _CHOOSING else node.input
        yield from ((name, inputs) for name in names if name in self._functions)


def _base(name: str) -> str:
    return name.lstrip("^").partition(":")[0]


def _scope(variable: str) -> str:
    return variable.rpartition("/")[0]
