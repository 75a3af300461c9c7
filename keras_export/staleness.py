"""Tells whether an object is still the one that was traced.

In: the object that an exporter traced. Out: a `Stamp`, compared before each write. The invariant:
training moves no stamp, and whatever replaces a variable, a table, a layer, a dtype policy or a
captured constant does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_export import keras_objects, tracking
from keras_export import tf_internals as tfi

# Where a layer keeps the policy that its setter changes.
_POLICY_ATTRIBUTE = "_dtype_policy"

# TensorFlow's own list of what an object tracks: tables and plain variables are in it.
_TRACKED_ATTRIBUTE = "_self_unconditional_dependency_names"

# A function captures the first; the second becomes a constant of its graph.
_CONSTANTS = frozenset({tfi.EagerTensor, np.ndarray})


class Stamp:
    """The parts of an object by identity.

    It holds them, for an address is used again.

    Args:
        obj: what is exported.
        with_optimizer: whether the optimizer's variables are exported too.
    """

    def __init__(self, obj: Any, with_optimizer: bool):
        self._parts = list(_parts(obj, with_optimizer))

    def matches(self, other: Stamp) -> bool:
        """Whether both stamps are of the same parts."""
        return len(self._parts) == len(other._parts) and all(
            ours is theirs for ours, theirs in zip(self._parts, other._parts, strict=True)
        )


def _parts(obj: Any, with_optimizer: bool) -> Iterator[Any]:
    if not keras_objects.is_keras_layer(obj):
        yield from _with_attributes(tf.train.TrackableView(obj).descendants())
        return
    yield from _with_attributes(obj._flatten_layers())
    yield from obj.variables
    optimizer = getattr(obj, "optimizer", None)
    if optimizer is not None and with_optimizer:
        yield optimizer
        yield from optimizer.variables


def _with_attributes(objects: Iterable[Any]) -> Iterator[Any]:
    for obj in objects:
        yield obj
        # Containers and variables of TensorFlow may have none, or hide theirs.
        attributes = getattr(obj, "__dict__", None)
        if isinstance(attributes, dict):
            yield from _held(obj, attributes)


def _held(obj: Any, attributes: dict[str, Any]) -> Iterator[Any]:
    """What a function may have been traced with, of what an object holds."""
    policy = attributes.get(_POLICY_ATTRIBUTE)
    if policy is not None:
        yield policy
        if isinstance(policy, Mapping):
            yield from policy.values()
    if keras_objects.is_keras_layer(obj):
        for child in (attributes.get(_TRACKED_ATTRIBUTE) or {}).values():
            if tracking.kind_of(child) in ("variable", "resource"):
                yield child
        for name in attributes.get("_tracked", ()):
            if name[0] != "_" and name != "call_signature_parameters":
                yield from _leaves(attributes.get(name))
    yield from _constants(obj, attributes)


def _constants(obj: Any, attributes: dict[str, Any]) -> Iterator[Any]:
    # Most of what `adapt` learns is a number or a list, such as the boundaries of buckets.
    if hasattr(type(obj), "adapt") and keras_objects.is_keras_layer(obj):
        kinds: tuple[type, ...] = (*_CONSTANTS, list, tuple)
    elif _CONSTANTS.isdisjoint(map(type, attributes.values())):
        return
    else:
        kinds = tuple(_CONSTANTS)
    yield from (value for value in attributes.values() if isinstance(value, kinds))


def _leaves(value: Any) -> Iterator[Any]:
    """The layers and other trackables in a list or dict, which its owner may exchange."""
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif isinstance(value, tfi.Trackable):
        yield value
