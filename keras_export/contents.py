"""What a MetaGraph is assembled from.

In: what each step before made, under its final name. Out: `Contents`, which the steps after only
read. The invariant: functions, objects and values refer to each other by the same nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_export.functions import BoundFunction, FunctionLibrary
from keras_export.resources import ResourceGraph, SaveRestore, SaverFunctions
from keras_export.signatures import SignatureFunction
from keras_export.tracking import Node, TrackedGraph
from keras_export.variables import CheckpointPlan


@dataclass(frozen=True)
class PythonFunction:
    """A function of the loaded object that no live `tf.function` stands behind.

    Attributes:
        name: attribute of the loaded root.
        function: what it calls.
        argument_names: its positional arguments.
        input_signature: the specs of these.
    """

    name: str
    function: BoundFunction
    argument_names: tuple[str, ...]
    input_signature: tuple[Any, ...]


@dataclass(frozen=True)
class Asset:
    """A file that is copied into the artifact."""

    node: Node
    filename: str
    source: str


@dataclass(frozen=True)
class Contents:
    """Everything that a MetaGraph is assembled from.

    Attributes:
        tracked: all objects.
        saved: the nodes that the loaded object has, the root first.
        library: the functions under their final names.
        signatures: each with the function that serves it.
        python_functions: additional functions of the loaded root.
        resources: the nodes that make tables.
        initializers: the functions that fill them.
        save_restore: functions of objects that serialize themselves.
        savers: functions of registered checkpoint savers.
        assets: files.
        checkpoint: keys of the values.
        aliases: function name -> alias.
        traces: the functions behind each function node, by `id` of the node.
        debug_info: where nodes were made, serialized, if it is wanted.
        options: the caller's `tf.saved_model.SaveOptions`.
    """

    tracked: TrackedGraph
    saved: Sequence[Node]
    library: FunctionLibrary
    signatures: Sequence[tuple[SignatureFunction, BoundFunction]]
    checkpoint: CheckpointPlan
    options: Any
    python_functions: Sequence[PythonFunction] = ()
    resources: ResourceGraph = field(default_factory=ResourceGraph)
    initializers: Sequence[BoundFunction] = ()
    save_restore: Sequence[SaveRestore] = ()
    savers: Sequence[SaverFunctions] = ()
    assets: Sequence[Asset] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[int, Sequence[BoundFunction]] = field(default_factory=dict)
    debug_info: bytes | None = None
