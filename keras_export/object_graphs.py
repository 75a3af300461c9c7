"""What objects an artifact is made of, and what its variables are called.

In: the object graph in `saved_model.pb`, and the one that is stored with the variables. Out: each
object by its path from the root, each variable by its checkpoint key. The invariant: the two
graphs are walked side by side, as TensorFlow's loader does, which knows no other way between them.
"""

from __future__ import annotations

from typing import Any

from keras_export import protos
from keras_export.bundles import OBJECT_GRAPH_KEY, Bundle

VALUE = "VARIABLE_VALUE"


def stored_objects(bundle: Bundle) -> Any:
    """The objects of the checkpoint; none where they cannot be read."""
    if OBJECT_GRAPH_KEY not in bundle.entries:
        return ()
    try:
        (content,) = bundle.strings(OBJECT_GRAPH_KEY)
        return protos.CheckpointObjects.FromString(content).nodes
    except (OSError, ValueError, IndexError, protos.DecodeError):
        return ()


def variable_names(meta_graph: Any, bundle: Bundle) -> dict[str, str]:
    """What the object graph calls the variables, by checkpoint key."""
    saved, stored = meta_graph.object_graph_def.nodes, stored_objects(bundle)
    if not saved or not stored:
        return {}
    _, pairs = walk(saved, stored)
    return {
        x.checkpoint_key: saved[number].variable.name
        for number, places in pairs.items()
        for place in places
        for x in stored[place].attributes
        if saved[number].HasField("variable") and x.name == VALUE
    }


def walk(saved: Any, stored: Any) -> tuple[dict[int, str], dict[int, set[int]]]:
    """Follows both graphs from their roots.

    Args:
        saved: the objects in `saved_model.pb`.
        stored: those of the checkpoint.

    Returns:
        The path of each saved object, and which stored objects it is, both by its number.
    """
    paths, pairs = {0: "obj"}, {0: {0}}
    queue = [(0, 0)]
    while queue:
        ours, theirs = queue.pop(0)
        by_name = {x.local_name: x.node_id for x in _children(stored, theirs)}
        for child in _children(saved, ours):
            paths.setdefault(child.node_id, f"{paths[ours]}.{child.local_name}")
            place = by_name.get(child.local_name)
            known = pairs.setdefault(child.node_id, set())
            if place is not None and place not in known:
                known.add(place)
                queue.append((child.node_id, place))
    _name_the_rest(saved, paths)
    return paths, pairs


def _children(nodes: Any, number: int) -> Any:
    """The children of an object that is there; a damaged artifact may name one that is not."""
    return [x for x in nodes[number].children if 0 <= x.node_id < len(nodes)]


def _name_the_rest(saved: Any, paths: dict[int, str]) -> None:
    """Paths of what hangs below an object that the checkpoint does not know."""
    queue = list(paths)
    while queue:
        ours = queue.pop(0)
        for child in _children(saved, ours):
            if child.node_id not in paths:
                paths[child.node_id] = f"{paths[ours]}.{child.local_name}"
                queue.append(child.node_id)
