"""The main graph: the nodes that sessions run.

In: the functions under their final names, and what they are bound to. Out: nodes in a `GraphDef`,
made on first use. The invariant: a variable, table or constant has one node, whoever needs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.contents import Contents
from keras_export.errors import UnsupportedError
from keras_export.functions import (
    Binding,
    BoundFunction,
    Constant,
    FunctionLibrary,
    constant_proto,
)
from keras_export.tracking import Node
from keras_export.wrappers import call_op, fill_call

# tensorflow/core/graph/graph.cc: older readers do not know functions.
_MIN_CONSUMER_OF_FUNCTIONS = 12


class MainGraph:
    """Adds nodes to the main graph; a node is added before those that take it as input."""

    def __init__(self, graph_def: Any, contents: Contents):
        self.graph_def = graph_def
        self._contents = contents
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._tensors: dict[int, str] = {}
        self._assets: dict[int, str] = {}
        graph_def.versions.producer = tfi.GRAPH_DEF_VERSION
        graph_def.versions.min_consumer = tfi.GRAPH_DEF_VERSION_MIN_CONSUMER
        if contents.library.definitions:
            graph_def.versions.min_consumer = _MIN_CONSUMER_OF_FUNCTIONS

    def unique(self, name: str) -> str:
        candidate = name
        while candidate.lower() in self._names:
            self._numbers[name] = number = self._numbers.get(name, 0) + 1
            candidate = f"{name}_{number}"
        self._names.add(candidate.lower())
        return candidate

    def add(self, op: str, name: str, inputs: Iterable[str] = (), device: str = "") -> Any:
        node = self.graph_def.node.add(name=self.unique(name), op=op, device=device)
        node.input.extend(inputs)
        return node

    def placeholder(self, name: str, dtype: int, shape: tf.TensorShape) -> str:
        node = self.add("Placeholder", name)
        node.attr["dtype"].type = dtype
        node.attr["shape"].shape.CopyFrom(shape.as_proto())
        return node.name

    def constant(self, name: str, tensor: Any) -> str:
        node = self.add("Const", name)
        node.attr["dtype"].type = tensor.dtype
        node.attr["value"].tensor.CopyFrom(tensor)
        return node.name

    def strings(self, name: str, values: Sequence[str]) -> str:
        node = self.add("Const", name)
        node.attr["dtype"].type = tf.string.as_datatype_enum
        tensor = node.attr["value"].tensor
        tensor.dtype = tf.string.as_datatype_enum
        tensor.tensor_shape.dim.add(size=len(values))
        tensor.string_val.extend(value.encode() for value in values)
        return str(node.name)

    def add_constants(self, constants: Sequence[Constant]) -> dict[int, str]:
        for constant in constants:
            name = self.constant("Const", constant_proto(constant))
            self._tensors[id(constant)] = name
        return {id(constant): self._tensors[id(constant)] for constant in constants}

    def add_resources(self) -> None:
        resources = self._contents.resources
        for node in resources.nodes:
            self._names.add(node.name.lower())
            self.graph_def.node.add().CopyFrom(node)
        self._tensors.update(
            {key: name.removesuffix(":0") for key, name in resources.tensors.items()}
        )

    def tensor(self, binding: Binding) -> str:
        """The main graph's tensor for what a function is bound to, made on first use."""
        if id(binding) not in self._tensors:
            self._tensors[id(binding)] = self._make(binding)
        return self._tensors[id(binding)]

    def _make(self, binding: Binding) -> str:
        if isinstance(binding, Node) and binding.kind == "variable":
            return self._variable(binding)
        if isinstance(binding, Node) and binding.kind == "asset":
            return self._asset(binding)
        raise UnsupportedError(f"Cannot export: {binding!r} has no place in the main graph.")

    def _variable(self, node: Node) -> str:
        facts = node.facts
        handle = self.add("VarHandleOp", node_name(variable_name(node)))
        handle.attr["dtype"].type = facts.dtype.as_datatype_enum
        handle.attr["shape"].shape.CopyFrom(facts.shape.as_proto())
        # MLIR and LiteRT look for the variable under the node's name.
        handle.attr["shared_name"].s = handle.name.encode()
        if self._contents.options.experimental_variable_policy._save_variable_devices():
            handle.device = node.obj.device
        return handle.name

    def _asset(self, node: Node) -> str:
        """A variable with the path: the loader feeds the path only while it initialises."""
        handle = self.add("VarHandleOp", "asset_path")
        handle.attr["dtype"].type = tf.string.as_datatype_enum
        handle.attr["shape"].shape.SetInParent()
        handle.attr["shared_name"].s = handle.name.encode()
        read = self.add("ReadVariableOp", f"{handle.name}/Read", [handle.name])
        read.attr["dtype"].type = tf.string.as_datatype_enum
        self._assets[id(node)] = handle.name
        return read.name

    def asset_handle(self, node: Node) -> str | None:
        """The variable that holds an asset's path, if a signature reads it."""
        return self._assets.get(id(node))

    def call(self, function: BoundFunction, inputs: Sequence[str]) -> Any:
        definition = self._contents.library.definitions[function.name]
        bound = [self.tensor(binding) for binding in function.bindings]
        op = call_op(definition)
        node = self.add(op, op, [*inputs, *bound])
        fill_call(node, definition, function)
        return node


def variable_name(node: Node) -> str:
    """The name by which people know a variable: Keras's path, else the variable's own name."""
    if node.keras_variable is not None and node.keras_variable.path:
        return node.keras_variable.path
    return (getattr(node.obj, "name", None) or node.obj._shared_name).split(":")[0]


def node_name(name: str) -> str:
    """A valid node name; one that starts with `_` is refused by the C++ loader."""
    valid = re.sub(r"[^A-Za-z0-9_.\\/-]", "_", name)
    return valid if re.match(r"[A-Za-z0-9.]", valid) else f"v{valid}"


def fill_library(graph_def: Any, library: FunctionLibrary) -> None:
    """Gives a graph its functions and tells which of them are gradients."""
    # The nodes move into the graph: a copy of a large library costs more than assembling it.
    graph_def.library.function.extend(library.definitions.values())
    for op_type, name in library.gradients.items():
        graph_def.library.registered_gradients.add(gradient_func=name, registered_op_type=op_type)
