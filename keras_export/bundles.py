"""Reads a tensor bundle, the files below `variables/`, without TensorFlow.

In: the prefix of a bundle. Out: its entries by key, and their bytes or numpy arrays on demand. The
invariant: an index is believed only after the checksum of every block; data is mapped, and read
only when it is asked for.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from keras_export import protos
from keras_export.checksums import crc32c, masked
from keras_export.errors import DamagedFileError

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Source: tensorflow/core/lib/io/format.{h,cc}, the table format of LevelDB.
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # the kind of compression and a masked crc32c


@dataclass(frozen=True)
class BundleEntry:
    """Where a tensor is and what it is.

    Attributes:
        shape: of the tensor.
        dtype: its name.
        shard: number of the data file.
        offset: of its first byte there.
        size: in bytes.
        crc: masked crc32c of its bytes.
        sliced: stored in parts, each an entry of its own.
    """

    shape: tuple[int, ...]
    dtype: str
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


@dataclass(frozen=True)
class Bundle:
    """A tensor bundle whose index was read.

    Attributes:
        prefix: path without `.index`.
        shards: how many data files it has.
        entries: by key; the parts of sliced tensors have keys that are no text.
        parts: likewise, the entries of parts by raw key.
    """

    prefix: str
    shards: int
    entries: Mapping[str, BundleEntry]
    parts: Mapping[bytes, BundleEntry]

    def shard_path(self, shard: int) -> str:
        """The path of a data file."""
        return f"{self.prefix}.data-{shard:05d}-of-{self.shards:05d}"

    def stored(self) -> Iterator[tuple[str, BundleEntry]]:
        """Every run of bytes with a name for it."""
        for key, entry in self.entries.items():
            if not entry.sliced:
                yield key, entry
        for raw, entry in self.parts.items():
            yield f"part {raw!r}", entry

    def content(self, entry: BundleEntry) -> memoryview:
        """The bytes of an entry, mapped.

        Raises:
            DamagedFileError: the data file is missing or ends before.
        """
        path = self.shard_path(entry.shard)
        if _is_remote(path):
            return self._remote_content(path, entry)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if entry.offset + entry.size > size:
                    raise DamagedFileError(f"Cannot read {path}: it is truncated at {size} bytes.")
                if not entry.size:
                    return memoryview(b"")
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError as error:
            raise DamagedFileError(f"Cannot read {path}: the file is missing.") from error
        return view[entry.offset : entry.offset + entry.size]

    def _remote_content(self, path: str, entry: BundleEntry) -> memoryview:
        if not is_file(path):
            raise DamagedFileError(f"Cannot read {path}: the file is missing.")
        content = bytes_of(path)
        if entry.offset + entry.size > len(content):
            raise DamagedFileError(f"Cannot read {path}: it is truncated at {len(content)} bytes.")
        return memoryview(content)[entry.offset : entry.offset + entry.size]

    def array(self, key: str) -> Any:
        """A dense numeric tensor as a numpy array; None for strings and sliced tensors."""
        import numpy as np

        entry = self.entries[key]
        if entry.sliced or entry.dtype not in _numpy_names():
            return None
        dtype = numpy_dtype(entry.dtype)
        return np.frombuffer(self.content(entry), dtype).reshape(entry.shape)

    def strings(self, key: str) -> list[bytes]:
        """The elements of a string tensor.

        Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc: varint lengths, their
        checksum, the bytes.
        """
        entry = self.entries[key]
        content = bytes(self.content(entry))
        lengths, at = [], 0
        for _ in range(math.prod(entry.shape)):
            length, at = _varint(content, at)
            lengths.append(length)
        at += 4
        found = []
        for length in lengths:
            found.append(content[at : at + length])
            at += length
        return found

    def is_sound(self, entry: BundleEntry) -> bool:
        """Whether the bytes of an entry have the checksum that the index gives.

        A string's checksum covers each length as a 4-byte number (8 from 2^32 on), the checksum
        of the lengths, and the bytes.
        """
        content = self.content(entry)
        if entry.dtype != "string":
            return masked(crc32c(content)) == entry.crc
        return _string_crc(bytes(content), math.prod(entry.shape)) == entry.crc


def is_file(path: str) -> bool:
    """Whether there is a file, at a local path or a URL that `tf.io.gfile` handles."""
    return bool(_gfile().exists(path)) if _is_remote(path) else os.path.isfile(path)


def size_of(path: str) -> int:
    """The bytes of a file, at a local path or a URL that `tf.io.gfile` handles."""
    return int(_gfile().stat(path).length) if _is_remote(path) else os.path.getsize(path)


def bytes_of(path: str) -> bytes:
    """The content of a file, at a local path or a URL that `tf.io.gfile` handles."""
    if _is_remote(path):
        with _gfile().GFile(path, "rb") as remote:
            content: bytes = remote.read()
            return content
    with open(path, "rb") as file:
        return file.read()


def _is_remote(path: str) -> bool:
    return "://" in path


def _gfile() -> Any:
    import tensorflow as tf  # only it knows other file systems

    return tf.io.gfile


def _string_crc(content: bytes, count: int) -> int:
    crc, at = 0, 0
    for _ in range(count):
        length, at = _varint(content, at)
        crc = crc32c(length.to_bytes(4 if length < 1 << 32 else 8, "little"), crc)
    stored = content[at : at + 4]
    if int.from_bytes(stored, "little") != masked(crc):
        return -1
    return masked(crc32c(content[at + 4 :], crc32c(stored, crc)))


def _numpy_names() -> frozenset[str]:
    skipped = ("string", "resource", "variant")
    return frozenset(n for n, _ in protos.DTYPES.values() if n not in skipped and n[0] != "q")


def numpy_dtype(name: str) -> Any:
    """The numpy dtype of a TensorFlow dtype that has a size."""
    import numpy as np

    if name == "bfloat16" or name.startswith(("float8", "int4", "uint4", "int2", "uint2")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def read_bundle(prefix: str) -> Bundle | None:
    """Reads the index of a bundle.

    Args:
        prefix: path of the bundle without `.index`.

    Returns:
        None if there is no index.

    Raises:
        DamagedFileError: the index is damaged.
    """
    path = f"{prefix}.index"
    if not is_file(path):
        return None
    content = bytes_of(path)
    try:
        rows = dict(read_table(content))
        header = protos.BundleHeader.FromString(rows.pop(b""))
        entries: dict[str, BundleEntry] = {}
        parts: dict[bytes, BundleEntry] = {}
        for key, value in rows.items():
            entry = _entry(protos.BundleEntry.FromString(value))
            if key.startswith(b"\x00"):  # OrderedCode of a slice
                parts[key] = entry
            else:
                entries[key.decode()] = entry
    except (ValueError, KeyError, IndexError, protos.DecodeError) as error:
        raise DamagedFileError(
            f"Cannot read {path}: it is damaged ({error}). Export the model again."
        ) from error
    return Bundle(prefix, header.num_shards, entries, parts)


def _entry(proto: Any) -> BundleEntry:
    return BundleEntry(
        tuple(dim.size for dim in proto.shape.dim), protos.dtype_name(proto.dtype),
        proto.shard_id, proto.offset, proto.size, proto.crc32c, bool(proto.slices),
    )  # fmt: skip


def read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a table file.

    Raises:
        ValueError: a block's checksum or form is wrong.
    """
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or footer[-8:] != _MAGIC:
        raise ValueError("its end is not that of a table")
    _, at = _varint(footer, 0)
    _, at = _varint(footer, at)
    for _, handle in _rows(_block(content, footer, at)):
        yield from _rows(_block(content, handle, 0))


def _block(content: bytes, handle: bytes, at: int) -> bytes:
    offset, at = _varint(handle, at)
    size, at = _varint(handle, at)
    end = offset + size
    trailer = content[end : end + _TRAILER_BYTES]
    if len(trailer) < _TRAILER_BYTES:
        raise ValueError("a block is truncated")
    if masked(crc32c(content[offset : end + 1])) != int.from_bytes(trailer[1:], "little"):
        raise ValueError("a block has a wrong checksum")
    if trailer[0]:
        raise ValueError("a block is compressed, which TensorFlow never does here")
    return content[offset:end]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + added]
        at += added
        yield key, block[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
