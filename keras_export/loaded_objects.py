"""Which objects the loaded object consists of.

In: an `ExportRequest`. Out: the tracked objects, and those of them that are saved. The invariant:
what a signature needs is among them, whatever the root's own attributes hold.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from keras_export import endpoints, tracking, variables
from keras_export import tf_internals as tfi
from keras_export.export_requests import ExportRequest
from keras_export.keras_objects import is_keras_layer, is_keras_optimizer
from keras_export.signatures import SignatureFunction

# What the loaded object of a model has beside its endpoints.
LISTS = ("variables", "trainable_variables", "non_trainable_variables")


def track(
    request: ExportRequest,
    idle: Container[int] = (),
    listing: tracking.Listing | None = None,
) -> tracking.TrackedGraph:
    """Walks what is exported, without the objects whose ids are in `idle`."""
    leave_optimizer = request.for_serving and not request.include_optimizer

    def exclude(child: Any) -> bool:
        if isinstance(child, tfi.SignatureMap) or id(child) in idle:
            return True
        return leave_optimizer and is_keras_optimizer(child)

    uses = endpoints.used_by(request.signatures) if request.for_serving else {}
    tracked = tracking.track(request.obj, exclude, uses, listing)
    if request.for_serving:
        _attach_for_serving(tracked)
    return tracked


def _attach_for_serving(tracked: tracking.TrackedGraph) -> None:
    """Gives the flat root what its own lists do not hold: tables, files, other variables."""
    variables_list = tracked.root.children.get("variables")
    held = {id(node) for node in variables_list.children.values()} if variables_list else set()
    others = [x for x in tracked.of_kind("variable") if id(x) not in held and x.slot_key is None]
    tables = list(tracked.of_kind("resource", "asset"))
    for name, nodes in (("_other_variables", others), ("_resources", tables)):
        if nodes:
            tracking.attach_list(tracked, tracked.root, name, [node.obj for node in nodes])


def idle_tables(tracked: tracking.TrackedGraph, found: Iterable[SignatureFunction]) -> set[int]:
    """Tables that no signature looks into, as those in which Keras counts words in `adapt`.

    They would keep Python's loader of TensorFlow 2.12 from loading the artifact.
    """
    used = {id(captured) for signature in found for captured in signature.concrete.captured_inputs}
    return {
        id(node.obj)
        for node in tracked.of_kind("resource")
        if variables.saves_by_saveables(node.obj) and id(node.obj.resource_handle) not in used
    }


def saved_nodes(request: ExportRequest, tracked: tracking.TrackedGraph) -> list[tracking.Node]:
    """The objects that the loaded object consists of."""
    if not request.for_serving:
        scaffolding = _keras_scaffolding(tracked)
        return [node for node in tracked.nodes if id(node) not in scaffolding]
    flat = [tracked.root]
    for name in (*LISTS, "_other_variables", "_resources"):
        if name in tracked.root.children:
            flat.append(tracked.root.children[name])
    keep = {id(node) for node in flat}
    for node in tracked.of_kind("variable", "resource", "asset"):
        keep.add(id(node))
        keep.update(id(below) for below in tracking.descendants(node))
    return [node for node in tracked.nodes if id(node) in keep]


def _keras_scaffolding(tracked: tracking.TrackedGraph) -> set[int]:
    """Empty containers that Keras keeps for itself, several for each layer, and nobody else has."""
    own: set[int] = set()
    others: set[int] = set()
    for node in tracked.nodes:
        of_keras = is_keras_layer(node.obj) or is_keras_optimizer(node.obj)
        for name, child in node.children.items():
            if isinstance(child.obj, tfi.TrackableDataStructure) and not child.children:
                (own if of_keras and name.startswith("_") else others).add(id(child))
    return own - others
