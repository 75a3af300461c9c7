"""The nodes of a graph by kind, with who meets them and when.

In: a MetaGraph, as `protos` describes it. Out: a `Graph` of kinds, each with the places of its
nodes. The invariant: nodes of a kind are alike to any TensorFlow; what is said of one holds for
all in the same kind of place.

Two readers differ. Python's `tf.saved_model.load` imports every function of the library and
ignores the main graph; the C++ loader, as in TensorFlow Serving, takes the main graph with the
functions that it reaches and ignores the others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from keras_export import releases
from keras_export.execution import NOT_RUN, Execution
from keras_export.layers import Layers

PYTHON, CPP = "python", "c++"

# When a problem is met: as a node is imported, as a kernel is looked up for it, as it runs, as it
# is placed on a device of this machine, as it is placed on another machine.
IMPORTED, PLACED, RUN, DEVICE, ELSEWHERE = "imported", "placed", "run", "device", "elsewhere"


@dataclass(frozen=True)
class Kind:
    """Nodes of one op with the same attributes.

    Attributes:
        op: their op.
        attributes: as messages, by name.
        device: where they must run; mostly empty.
    """

    op: str
    attributes: Mapping[str, Any]
    device: str


@dataclass
class Places:
    """Where nodes of a kind stand, by when a problem of theirs is met and who meets it."""

    met: dict[tuple[str, str], list[tuple[str, Any]]] = field(default_factory=dict)

    def add(self, when: str, reader: str, place: tuple[str, Any]) -> None:
        self.met.setdefault((when, reader), []).append(place)

    def of(self, when: str) -> list[tuple[str, list[tuple[str, Any]]]]:
        """The nodes that each reader meets then."""
        return [(x, self.met.get((when, x), [])) for x in (PYTHON, CPP)]


class Graph:
    """A MetaGraph by kinds of nodes.

    One without objects is of TensorFlow 1, and Python's loader takes its main graph as C++ does;
    but for what no signature needs no kernel is looked up there.
    """

    def __init__(self, meta_graph: Any) -> None:
        self.meta_graph = meta_graph
        self.library = {f.signature.name: f for f in meta_graph.graph_def.library.function}
        self.has_objects = bool(meta_graph.object_graph_def.nodes)
        self.execution = Execution(meta_graph, self.library, _is_stateful)
        reached = self._reached()
        self.kinds: dict[Any, tuple[Kind, Places]] = {}
        for name, nodes in self._bodies():
            for node in nodes:
                if node.op not in self.library:
                    self._sort_in(name, node, name in reached)

    @cached_property
    def layers(self) -> Layers:
        """Which layer a node belongs to."""
        return Layers(self.meta_graph)

    @cached_property
    def own_defaults(self) -> dict[tuple[str, str], bytes]:
        """Defaults of attributes that the artifact's own list of ops gives."""
        return {
            (op.name, attr.name): bytes_of(attr.default_value)
            for op in self.meta_graph.meta_info_def.stripped_op_list.op
            for attr in op.attr
            if attr.HasField("default_value")
        }

    def callees(self, node: Any) -> Iterator[str]:
        """The library functions that a node calls."""
        return self.execution.callees(node)

    def _bodies(self) -> Iterator[tuple[str, Any]]:
        yield "", self.meta_graph.graph_def.node
        for name, function in self.library.items():
            yield name, function.node_def

    def _sort_in(self, name: str, node: Any, reached: bool) -> None:
        places, place = self._places_of(node), (name, node)
        for when, reader in self._meetings(name, node.name, reached):
            places.add(when, reader, place)

    def _meetings(self, name: str, node: str, reached: bool) -> Iterator[tuple[str, str]]:
        """When who meets a node."""
        run = self.execution.runs.get(name, NOT_RUN)
        placed = self.execution.placed.get(name, NOT_RUN)
        in_main, runs = not name, node in run.nodes
        if reached:
            yield IMPORTED, CPP
        if runs and run.by_kernels:
            yield RUN, CPP
        if in_main or (runs and run.by_kernels):  # a session places its whole graph
            yield PLACED, CPP
        if in_main or runs:
            yield ELSEWHERE, CPP
        if in_main or (runs and not run.inlined):
            yield DEVICE, CPP  # Python places softly
        if in_main and self.has_objects:
            return
        yield IMPORTED, PYTHON
        if runs and run.by_kernels:
            yield RUN, PYTHON
        if node in placed.nodes:  # before useless nodes are taken out
            yield ELSEWHERE, PYTHON
            if placed.by_kernels:
                yield PLACED, PYTHON

    def _places_of(self, node: Any) -> Places:
        attributes = {x.key: x.value for x in node.attr if not x.key.startswith("_")}
        values = (
            (name, bytes_of(x))
            for name, x in attributes.items()
            if x.WhichOneof("value") not in ("tensor", "func", "shape")
        )
        key = (node.op, tuple(sorted(values)), tuple(sorted(attributes)), node.device)
        if key not in self.kinds:
            self.kinds[key] = (Kind(node.op, attributes, node.device), Places())
        return self.kinds[key][1]

    def _reached(self) -> set[str]:
        """The functions that the main graph reaches, and `""` for itself."""
        found = {""}
        waiting = list(self.meta_graph.graph_def.node)
        while waiting:
            for callee in self.callees(waiting.pop()):
                if callee not in found:
                    found.add(callee)
                    waiting.extend(self.library[callee].node_def)
        return found


@functools.cache
def _is_stateful(op: str) -> bool:
    """As the newest release says that knows the op; what none knows may have any effect."""
    known = [x.ops[op] for x in releases.known().values() if op in x.ops]
    return not known or known[-1].stateful


def bytes_of(message: Any) -> bytes:
    """A message as bytes that are equal for equal messages."""
    content: bytes = message.SerializeToString(deterministic=True)
    return content
