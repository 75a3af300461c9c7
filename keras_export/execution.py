"""What of a graph runs, and what it reads that nothing filled.

In: a MetaGraph, as `protos` describes it. Out: for each function the nodes that a signature, the
saver or the init op needs, and how they come to run; and the variables and tables that a signature
reads though neither the saver nor the init op fills them. The invariant: all is read from the
graph; what is left out here is run by no session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_INIT_OP_KEY = "__saved_model_init_op"
# tensorflow/cc/saved_model/constants.h; the second is what TensorFlow 1 wrote.
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")

# Their functions become part of the graph that calls them -> where the arguments begin.
_CALLS = {
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile"), 0),
    **dict.fromkeys(("If", "StatelessIf", "Case", "StatelessCase"), 1),
}

# Resources that somebody must fill before they are read.
_RESOURCES = ("VarHandleOp", "VariableV2", "Variable", "HashTableV2", "HashTable")
_FILLING = re.compile(r"Assign|Initialize|Import|Insert")
_HARMLESS = re.compile(r"IsInitialized|IsVariableInitialized|Destroy")
_HANDING_ON = frozenset(
    ("Enter", "Exit", "Identity", "Merge", "NextIteration", "RefEnter", "RefIdentity",
     "RefMerge", "RefSwitch", "Switch")
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """How a function's nodes run, or the main graph's.

    Attributes:
        nodes: the names of those that run.
        by_kernels: whether kernels run them, or else code that XLA makes.
        inlined: whether they become part of the graph that calls them, where a node whose device
            is missing is placed on another.
    """

    nodes: Set[str]
    by_kernels: bool
    inlined: bool


NOT_RUN = Run(frozenset(), False, True)


class Execution:
    """What runs of a MetaGraph.

    Args:
        meta_graph: the MetaGraph.
        library: its functions by name.
        is_stateful: whether an op has an effect: it runs though nothing needs it.

    Attributes:
        runs: the functions that run, by name, with the nodes that lead to something; the main
            graph as `""`.
        placed: the same, and the functions that only useless nodes call, with all their nodes.
        serving: the nodes of the main graph that signatures need.
        starting: those that the saver and the init op need.
    """

    def __init__(
        self, meta_graph: Any, library: dict[str, Any], is_stateful: Callable[[str], bool]
    ) -> None:
        self._library, self._is_stateful = library, is_stateful
        self._nodes = {"": {node.name: node for node in meta_graph.graph_def.node}}
        self._live: dict[str, Set[str]] = {}
        self._users: dict[tuple[str, Set[str]], dict[str, list[tuple[Any, int]]]] = {}
        self._uses: dict[tuple[str, str, Set[str]], frozenset[str]] = {}
        served = [x.value for x in meta_graph.signature_def if x.key != _INIT_OP_KEY]
        wanted = (_names(tensor.value) for x in served for tensor in x.outputs)
        given = (_names(tensor.value) for x in served for tensor in x.inputs)
        self.serving = self._closure(
            "", (name for names in wanted for name in names), {_base(x) for y in given for x in y}
        )
        self.starting = self._closure("", _starting(meta_graph))
        self.runs = self._walk(self._live_of)
        self.placed = self._walk(lambda name: self._nodes_of(name).keys())

    @cached_property
    def unfilled(self) -> tuple[Any, ...]:
        """The nodes of variables and tables that a signature reads and nothing fills."""
        return tuple(self._unfilled())

    def _unfilled(self) -> Iterator[Any]:
        filled = {
            _resource(node)
            for node in self._resources(self.starting)
            if any(map(_FILLING.search, self._uses_of("", node.name, self.starting)))
        }
        for node in self._resources(self.serving):
            uses = self._uses_of("", node.name, self.serving)
            fills = any(map(_FILLING.search, uses))
            reads = any(not _HARMLESS.search(op) for op in uses)
            if reads and not fills and _resource(node) not in filled:
                yield node

    def callees(self, node: Any) -> Iterator[str]:
        """The library functions that a node calls."""
        if node.op in self._library:
            yield node.op
        for entry in node.attr:
            functions = [entry.value.func, *entry.value.list.func]
            yield from (x.name for x in functions if x.name in self._library)

    def _walk(self, nodes_of: Callable[[str], Set[str]]) -> dict[str, Run]:
        found: dict[str, Run] = {}
        waiting = [("", Run(self.serving | self.starting, True, True))]
        while waiting:
            name, run = waiting.pop()
            known = found.get(name)
            if known is not None:
                run = Run(
                    run.nodes, run.by_kernels or known.by_kernels, run.inlined and known.inlined
                )
                if run == known:
                    continue
            found[name] = run
            for node in map(self._nodes_of(name).__getitem__, run.nodes):
                waiting.extend(
                    (x, self._called(x, nodes_of(x), node, run)) for x in self.callees(node)
                )
        return found

    def _called(self, callee: str, nodes: Set[str], node: Any, run: Run) -> Run:
        function = self._library[callee]
        is_call = node.op in _CALLS or node.op == callee
        apart = _has(function.attr, "_noinline") or _has(node.attr, "_noinline")
        compiled = _has(node.attr, "_XlaMustCompile")
        return Run(
            nodes,
            run.by_kernels and not compiled and not _has(function.attr, "_XlaMustCompile"),
            run.inlined and (compiled or (is_call and not apart)),
        )

    def _live_of(self, name: str) -> Set[str]:
        if name not in self._live:
            function = self._library[name]
            wanted = [x.value for x in (*function.ret, *function.control_ret)]
            wanted += [x.name for x in function.node_def if self._is_stateful(x.op)]
            self._live[name] = self._closure(name, wanted)
        return self._live[name]

    def _closure(
        self, body: str, names: Iterable[str], given: Set[str] = frozenset()
    ) -> frozenset[str]:
        """The nodes that lead to some, and not through those that are given from outside."""
        nodes = self._nodes_of(body)
        found: set[str] = set()
        waiting = list(map(_base, names))
        while waiting:
            name = waiting.pop()
            if name in nodes and name not in found and name not in given:
                found.add(name)
                waiting.extend(map(_base, nodes[name].input))
        return frozenset(found)

    def _nodes_of(self, body: str) -> dict[str, Any]:
        if body not in self._nodes:
            self._nodes[body] = {node.name: node for node in self._library[body].node_def}
        return self._nodes[body]

    def _resources(self, names: Set[str]) -> Iterator[Any]:
        nodes = self._nodes[""]
        yield from (nodes[name] for name in sorted(names) if nodes[name].op in _RESOURCES)

    def _uses_of(self, body: str, source: str, live: Set[str]) -> frozenset[str]:
        """The ops that take what a node or an argument gives, in functions that are called too."""
        key = (body, source, live)
        if key not in self._uses:
            self._uses[key] = frozenset()  # what calls itself adds nothing to itself
            found: set[str] = set()
            for node, index in self._users_in(body, live).get(source, ()):
                found |= self._uses_by(body, live, node, index)
            self._uses[key] = frozenset(found)
        return self._uses[key]

    def _uses_by(self, body: str, live: Set[str], node: Any, index: int) -> Set[str]:
        if node.op in _HANDING_ON:
            return self._uses_of(body, node.name, live)
        callees = list(self.callees(node))
        first = _CALLS.get(node.op, 0)
        if not callees or (node.op not in _CALLS and node.op not in callees) or index < first:
            return {node.op}
        found: set[str] = set()
        for callee in callees:
            arguments = self._library[callee].signature.input_arg
            if index - first < len(arguments):
                argument = arguments[index - first].name
                found |= self._uses_of(callee, argument, self._live_of(callee))
        return found

    def _users_in(self, body: str, live: Set[str]) -> dict[str, list[tuple[Any, int]]]:
        key = (body, live)
        if key not in self._users:
            users: dict[str, list[tuple[Any, int]]] = {}
            for name in live:
                node = self._nodes_of(body)[name]
                for index, text in enumerate(node.input):
                    if not text.startswith("^"):
                        users.setdefault(_base(text), []).append((node, index))
            self._users[key] = users
        return self._users[key]


def _starting(meta_graph: Any) -> Iterator[str]:
    """What a loader runs once: the restore op and the init op."""
    yield meta_graph.saver_def.restore_op_name
    for entry in meta_graph.signature_def:
        if entry.key == _INIT_OP_KEY:
            yield from (tensor.value.name for tensor in entry.value.outputs)
    for entry in meta_graph.collection_def:
        if entry.key in _INIT_COLLECTIONS:
            yield from entry.value.node_list.value


def _names(tensor: Any) -> list[str]:
    """The tensors that one of a signature stands for."""
    components = [name for x in tensor.composite_tensor.components for name in _names(x)]
    sparse = tensor.coo_sparse
    parts = (sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name)
    return [name for name in (tensor.name, *parts, *components) if name]


def _resource(node: Any) -> tuple[str, str, str]:
    """What two nodes have in common that stand for one resource."""
    texts = {x.key: x.value.s.decode() for x in node.attr if x.key in ("container", "shared_name")}
    return node.op, texts.get("container", ""), texts.get("shared_name") or node.name


def _base(name: str) -> str:
    return name.lstrip("^").partition(":")[0]


def _has(attributes: Iterable[Any], name: str) -> bool:
    return any(x.key == name and x.value.b for x in attributes)
