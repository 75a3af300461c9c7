"""What each TensorFlow release knows: ops with their attributes and kernels, dtypes, versions.

In: the file `data/op_history.json.xz`, which `scripts/op_history.py` makes from the releases
themselves. Out: a `Release` each. The invariant: TensorFlow is not imported, and what is said
about a release was read out of it.
"""

from __future__ import annotations

import functools
import json
import lzma
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Attribute:
    """An attribute of an op.

    Attributes:
        kind: its type, as `type` or `list(int)`.
        default: the serialized `AttrValue`; None where every node must have the attribute.
        allowed: the values that it can have, numbers of dtypes or text; None for any.
        minimum: of an integer, or of the length of a list.
    """

    kind: str
    default: bytes | None = None
    allowed: tuple[Any, ...] | None = None
    minimum: int | None = None


@dataclass(frozen=True)
class Op:
    """An op as one release defines it.

    Attributes:
        attributes: by name.
        inputs: the dtype of each: its number, the attribute that gives it, or the attribute that
            gives a list; `T*N` for N tensors; `&` at the end of a reference.
        outputs: likewise.
        stateful: whether it has an effect, or gives another result each time.
        deprecated: the GraphDef version from which on a graph cannot use it; 0 for none.
        kernels: those that run on a CPU, each as the values that it takes by attribute.
        only_on_gpu: there are kernels, none of them for a CPU.
    """

    attributes: Mapping[str, Attribute]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stateful: bool
    deprecated: int
    kernels: tuple[Mapping[str, frozenset[Any]], ...]
    only_on_gpu: bool


@dataclass(frozen=True)
class Release:
    """A TensorFlow release.

    Attributes:
        name: its minor version, `2.15`.
        tensorflow: the patch release that was read, `2.15.1`.
        producer: its GraphDef version.
        min_producer: the oldest that it reads.
        dtypes: the numbers that it knows.
        ops: by name.
    """

    name: str
    tensorflow: str
    producer: int
    min_producer: int
    dtypes: frozenset[int]
    ops: Mapping[str, Op]

    def relatives(self, name: str) -> list[str]:
        """The ops whose names differ from this one in the version at the end alone."""
        base = _base(name)
        return sorted(x for x in self.ops if x != name and _base(x) == base)


@functools.cache
def known() -> Mapping[str, Release]:
    """The releases by name, the oldest first."""
    packed = resources.files("keras_export").joinpath("data/op_history.json.xz").read_bytes()
    history = json.loads(lzma.decompress(packed))
    ops: list[dict[str, Op]] = [{} for _ in history["releases"]]
    for name, states in history["ops"].items():
        for since, facts in states:
            op = None if facts is None else _op(facts)
            for release in ops[since:]:
                if op is not None:
                    release[name] = op
                else:
                    release.pop(name, None)
    releases = (
        Release(
            ".".join(about["tensorflow"].split(".")[:2]),
            about["tensorflow"],
            about["producer"],
            about["min_producer"],
            frozenset(about["dtypes"]),
            MappingProxyType(its_ops),
        )
        for about, its_ops in zip(history["releases"], ops, strict=True)
    )
    return MappingProxyType({release.name: release for release in releases})


def _op(facts: Mapping[str, Any]) -> Op:
    return Op(
        {name: _attribute(*values) for name, values in facts.get("attrs", {}).items()},
        tuple(facts.get("in", ())),
        tuple(facts.get("out", ())),
        facts.get("stateful", False),
        facts.get("deprecated", 0),
        tuple(
            {name: frozenset(values) for name, values in kernel.items()}
            for kernel in facts.get("kernels", ())
        ),
        facts.get("gpu", False),
    )


def _attribute(
    kind: str, default: str | None = None, allowed: Any = None, minimum: int | None = None
) -> Attribute:
    return Attribute(
        kind,
        None if default is None else bytes.fromhex(default),
        None if allowed is None else tuple(allowed),
        minimum,
    )


def _base(name: str) -> str:
    return re.sub(r"V\d+$", "", name)
