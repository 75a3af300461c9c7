"""Writes a tensor bundle without TensorFlow, in a stream.

In: the rows of a bundle's index, and for each of them bytes from anywhere. Out: one data file and
its index, which TensorFlow reads. The invariant: no more than one block of a tensor is held, and
every checksum is computed from what is written.

Source: tensorflow/core/util/tensor_bundle, tensorflow/core/lib/io/{format,table_builder}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from keras_export import protos
from keras_export.checksums import crc32c, masked

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_HANDLES_BYTES = 40  # of the footer, in front of the magic number
_BLOCK_BYTES = 1 << 18
_RESTART_INTERVAL = 16


class BundleWriter:
    """Writes `<prefix>.data-00000-of-00001` row by row, and `<prefix>.index` at the end.

    Args:
        prefix: path without suffix.
        header: the header row of the bundle whose rows are written again.
    """

    def __init__(self, prefix: str, header: bytes) -> None:
        self._prefix = prefix
        self._header = protos.BundleHeader.FromString(header)
        self._header.num_shards = 1
        self._rows: dict[bytes, bytes] = {}
        self._offset = 0
        self._file = open(f"{prefix}.data-00000-of-00001", "wb")  # noqa: SIM115

    def add(self, key: bytes, row: bytes, blocks: Iterable[Any]) -> None:
        """Writes one tensor.

        Args:
            key: of its row.
            row: the entry, of which place and checksum are replaced.
            blocks: its bytes, in order.
        """
        entry = protos.BundleEntry.FromString(row)
        crc = size = 0
        for block in blocks:
            view = memoryview(block).cast("B")
            crc = crc32c(view, crc)
            size += len(view)
            self._file.write(view)
        entry.shard_id, entry.offset, entry.size, entry.crc32c = 0, self._offset, size, masked(crc)
        self._offset += size
        self._rows[key] = entry.SerializeToString(deterministic=True)

    def keep(self, key: bytes, row: bytes, content: Any) -> None:
        """Writes a tensor as it was, with the checksum that it had."""
        entry = protos.BundleEntry.FromString(row)
        entry.shard_id, entry.offset = 0, self._offset
        self._file.write(content)
        self._offset += len(content)
        self._rows[key] = entry.SerializeToString(deterministic=True)

    def close(self) -> None:
        """Writes the index."""
        self._file.close()
        rows = {b"": self._header.SerializeToString(deterministic=True), **self._rows}
        with open(f"{self._prefix}.index", "wb") as file:
            file.write(table(rows))

    def abandon(self) -> None:
        """Closes the file of a bundle that will not be finished."""
        self._file.close()


def table(rows: Mapping[bytes, bytes]) -> bytes:
    """A table file of rows."""
    content, index = bytearray(), {}
    waiting: dict[bytes, bytes] = {}
    size = 0
    for key in sorted(rows):
        waiting[key] = rows[key]
        size += len(key) + len(rows[key])
        if size >= _BLOCK_BYTES:
            index[key] = _append(content, waiting)
            waiting, size = {}, 0
    if waiting:
        index[max(waiting)] = _append(content, waiting)
    handles = _append(content, {}) + _append(content, index)
    return bytes(content) + handles.ljust(_HANDLES_BYTES, b"\0") + _MAGIC


def _append(content: bytearray, rows: Mapping[bytes, bytes]) -> bytes:
    """Adds a block and returns its handle."""
    block, restarts, last = bytearray(), [0], b""
    for number, (key, value) in enumerate(rows.items()):
        shared = 0
        if number % _RESTART_INTERVAL:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        elif number:
            restarts.append(len(block))
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        block += key[shared:] + value
        last = key
    for number in (*restarts, len(restarts)):
        block += number.to_bytes(4, "little")
    handle = _varint(len(content)) + _varint(len(block))
    block.append(0)  # not compressed
    content += block + masked(crc32c(bytes(block))).to_bytes(4, "little")
    return handle


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
