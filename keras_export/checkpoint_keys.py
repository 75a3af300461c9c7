"""What a training checkpoint calls the values of objects.

In: the attribute path of an object. Out: its checkpoint key. The invariant: `tf.train.Checkpoint`
gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable


def object_key(path: Iterable[str]) -> str:
    """The checkpoint's name of an object: its path, with `.` as `..` and `/` as `.S`.

    Source: tensorflow/core/protobuf/trackable_object_graph.proto and the keys that
    `tf.train.Checkpoint` writes.
    """
    return "/".join(escape(name) for name in path)


def slot_variable_key(variable: Iterable[str], optimizer: Iterable[str], slot_name: str) -> str:
    """The checkpoint's name of a slot variable."""
    return f"{object_key(variable)}/.OPTIMIZER_SLOT/{object_key(optimizer)}/{escape(slot_name)}"


def escape(name: str) -> str:
    """One component of a checkpoint key."""
    return name.replace(".", "..").replace("/", ".S")
