"""What a version shares on disk with those before it.

In: the plan and the values of a version, and a directory to write it into. Out: its large files
there, of which those that hold nothing new are hard links to files of earlier versions. The
invariant: a link is made only to a file that is as it was written and whose content was compared
with what it stands for, and every version is whole without the others.

Variables that are not expected to change go into a data file of their own, and are compared: first
by the address of their buffers, which is enough while the earlier tensor is held, then by bytes.
One that did change goes with those that train from then on.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_export import held_values, targets, variables
from keras_export.assembly import Plan
from keras_export.held_values import Entry, Values

BUNDLE = "variables/variables"
_Status = tuple[int, int, int, int]


@dataclass
class _File:
    """A file with a fixed content, and where it stands.

    Attributes:
        token: equal for equal contents.
        status: by which a file is known again.
        places: paths in versions, the newest last.
    """

    token: Any
    status: _Status | None = None
    places: list[str] = field(default_factory=list)


@dataclass
class _Shard:
    """A data file of a tensor bundle, with what it holds.

    Attributes:
        file: the data.
        index: the content of its own index file, by which it is joined with others.
        entries: what it holds; the tensors are kept, so that no other gets their buffers.
    """

    file: _File
    index: bytes
    entries: Mapping[tuple[str, str], Entry]


class SharedFiles:
    """The files of the versions of one exporter. A new object knows none: all is written.

    Args:
        still: ids of the `tf.Variable`s that are not expected to change.

    Attributes:
        bytes_linked: how many bytes of the version that was written last are links.
    """

    def __init__(self, still: Set[int] = frozenset()) -> None:
        self._still = still
        self._moved: set[str] = set()
        self._files: dict[str, _File] = {}
        self._shards: list[_Shard] = []
        self._written: list[tuple[str, _File]] = []
        self.bytes_linked = 0

    def expect(self, still: Set[int]) -> None:
        """Says anew which variables are not expected to change, such as at the start of `fit`."""
        self._still = still
        self._moved.clear()

    def write_into(self, directory: str, plan: Plan, values: Values | None) -> None:
        """Writes the values, the graph and the assets of a version.

        Args:
            directory: empty but for the folders `variables` and `assets`.
            plan: of the artifact.
            values: of the moment; None if they are there already.
        """
        self._written, self.bytes_linked = [], 0
        join = tf.io.gfile.join
        if values is not None:
            stored = held_values.cast(values, plan.stored_as)
            self._write_values(join(directory, BUNDLE), directory, plan, stored)
        for asset in plan.meta_graph.assets:
            name = join("assets", asset.filename)
            stamp = _modified(asset.source)
            if stamp is None or not self._link(name, (asset.source, stamp), directory):
                tf.io.gfile.copy(asset.source, join(directory, name), overwrite=True)
        for name, content in _contents(plan):
            if not self._link(name, content, directory):
                with tf.io.gfile.GFile(join(directory, name), "wb") as file:
                    file.write(content)

    def published(self, target: str) -> None:
        """Takes note of where the version that was written last can be read."""
        for name, file in self._written:
            place = os.path.join(target, name)
            with suppress(OSError):  # a remote target, or deleted already
                status = _status(place)
                file.status = file.status or status
                if status == file.status:
                    file.places = [x for x in file.places if x != place] + [place]

    # -- files -------------------------------------------------------------------------------------

    def _link(self, name: str, token: Any, directory: str) -> bool:
        """Links a file of this content if there is one; else notes that it is to be written."""
        file = self._files.get(name)
        if file is not None and file.token == token and self._linked(file, directory, name):
            self._written.append((name, file))
            return True
        self._files[name] = _File(token)
        self._written.append((name, self._files[name]))
        return False

    def _linked(self, file: _File, directory: str, name: str) -> bool:
        for place in reversed(file.places):
            try:
                if _status(place) == file.status:
                    os.link(place, os.path.join(directory, name))
                    self.bytes_linked += file.status[2]
                    return True
            except FileNotFoundError:
                file.places = [x for x in file.places if x != place]
            except OSError:  # no hard links there, or no more of them
                return False
        return False

    # -- values ------------------------------------------------------------------------------------

    def _write_values(self, prefix: str, directory: str, plan: Plan, values: Values) -> None:
        device = plan.options.experimental_io_device
        sharding = getattr(plan.options, "experimental_sharding_callback", None)
        if sharding is not None:
            held_values.write_bundle(prefix, held_values.shard(values, sharding), device)
            return
        if device is not None or not targets.is_local(directory):
            held_values.write_bundle(prefix, values, device)
            return
        self._write_shards(prefix, directory, plan, values)

    def _write_shards(self, prefix: str, directory: str, plan: Plan, values: Values) -> None:
        rest = {(entry.key, entry.slice_spec): entry for group in values.groups for entry in group}
        self._shards = [shard for shard in self._shards if self._is_unchanged(shard, rest)]
        os.mkdir(f"{prefix}_temp")
        parts: list[str] = []
        for shard in list(self._shards):
            part = f"{prefix}_temp/linked-{len(parts):05d}"
            if self._linked(shard.file, "", f"{part}.data-00000-of-00001"):
                _write(f"{part}.index", shard.index)
                parts.append(part)
                rest = {key: entry for key, entry in rest.items() if key not in shard.entries}
            else:
                self._shards.remove(shard)
        linked = list(self._shards)
        still = self._keys_of_still(plan) if len(rest) else frozenset()
        waiting = {key: entry for key, entry in rest.items() if key[0] in still}
        moving = [entry for key, entry in rest.items() if key not in waiting]
        groups = [tuple(group) for group in (waiting.values(), moving) if group]
        if not parts and len(groups) == 1:
            os.rmdir(f"{prefix}_temp")
            held_values.write_bundle(prefix, Values(tuple(groups)))
            return
        for group in groups:
            parts.append(f"{prefix}_temp/new-{len(parts):05d}")
            held_values.write_bundle(parts[-1], Values((group,)))
        new = []
        if waiting:
            new.append(_Shard(_File(None), _read(f"{parts[len(linked)]}.index"), waiting))
        held_values.merge_bundles(prefix, parts)
        self._shards += new
        for number, shard in enumerate([*linked, *new]):
            name = f"{BUNDLE}.data-{number:05d}-of-{len(parts):05d}"
            self._written.append((name, shard.file))

    def _keys_of_still(self, plan: Plan) -> Set[str]:
        keys = {
            key
            for source in plan.checkpoint.sources
            if id(source.node.obj) in self._still
            for _, key in source.names
        }
        keys -= self._moved
        return keys | {variables.OBJECT_GRAPH_KEY} if keys else keys

    def _is_unchanged(self, shard: _Shard, entries: Mapping[tuple[str, str], Entry]) -> bool:
        changed = {
            key
            for key, entry in shard.entries.items()
            if key not in entries or not same(entry.tensor, entries[key].tensor)
        }
        self._moved |= {key for key, _ in changed} - {variables.OBJECT_GRAPH_KEY}
        return not changed


def _contents(plan: Plan) -> Iterable[tuple[str, bytes]]:
    yield "saved_model.pb", plan.meta_graph.saved_model
    if plan.debug_info is not None:
        yield "debug/saved_model_debug_info.pb", plan.debug_info


def same(one: Any, other: Any) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == tf.string:
        return bool(np.array_equal(one.numpy(), other.numpy()))
    address = _address(one)
    if address is not None and address == _address(other):
        return True
    pair = (np.ascontiguousarray(tensor.numpy()).reshape(-1) for tensor in (one, other))
    first, second = (array.view(np.uint8) for array in pair)
    return bool(np.array_equal(first, second))


def _address(tensor: Any) -> int | None:
    """Where a tensor's buffer begins, on whatever device; None if that cannot be told."""
    try:
        capsule = tf.experimental.dlpack.to_dlpack(tensor)
    except Exception:  # not every type has a form in DLPack
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The first field of a DLManagedTensor is its DLTensor, the first field of that the address.
    return ctypes.c_void_p.from_address(pointer(capsule, b"dltensor")).value


def _status(path: str) -> _Status:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _modified(path: str) -> _Status | None:
    with suppress(OSError):
        return _status(path)
    return None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
