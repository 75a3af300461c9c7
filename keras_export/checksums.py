"""The checksums of a SavedModel: crc32c of stored tensors, 64-bit fingerprints of whole files.

In: bytes. Out: an integer. The invariant: the numbers are those that TensorFlow computes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_MASK = (1 << 64) - 1
_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
_LANES = 4096
_MIN_LANE_BYTES = 64
_CHUNK_BYTES = 4 << 20  # what stays in the cache while it is read several times
# FarmHash's primes between 2^63 and 2^64.
_K0, _K1, _K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def crc32c(content: Any, crc: int = 0) -> int:
    """The CRC-32C of bytes, going on from `crc`.

    Args:
        content: an object with a buffer of bytes.
        crc: of what stands before them.
    """
    view = memoryview(content).cast("B")
    for start in range(0, len(view), _CHUNK_BYTES):
        part = view[start : start + _CHUNK_BYTES]
        wide = len(part) // (_LANES * 2) * _LANES * 2
        if wide >= _LANES * _MIN_LANE_BYTES:
            crc = _shifted(crc, wide) ^ _in_lanes(part[:wide])
            part = part[wide:]
        crc = _bytewise(part, crc)
    return crc


def _bytewise(content: memoryview, crc: int) -> int:
    table = _table()
    crc ^= 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _in_lanes(content: memoryview) -> int:
    """Runs along all lanes at once and joins neighbours until one is left."""
    import numpy as np

    table = _wide_table()
    words = np.frombuffer(content, "<u2").reshape(_LANES, -1)
    crc = np.full(_LANES, 0xFFFFFFFF, np.uint32)
    for column in np.ascontiguousarray(words.T):
        crc = table[(crc ^ column) & 0xFFFF] ^ (crc >> 16)
    crc = crc ^ np.uint32(0xFFFFFFFF)
    length = words.shape[1] * 2
    while len(crc) > 1:
        shift = np.array(_shift_columns(length), np.uint32)
        left, moved = crc[::2], np.zeros(len(crc) // 2, np.uint32)
        for bit in range(32):
            moved ^= np.where((left >> np.uint32(bit)) & np.uint32(1), shift[bit], np.uint32(0))
        crc, length = moved ^ crc[1::2], length * 2
    return int(crc[0])


@lru_cache(maxsize=1)
def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)


@lru_cache(maxsize=1)
def _wide_table() -> Any:
    import numpy as np

    table = np.array(_table(), np.uint32)
    value = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        value = table[value & 0xFF] ^ (value >> 8)
    return value


def _shifted(crc: int, length: int) -> int:
    return _apply(_shift_columns(length), crc) if crc else 0


@lru_cache(maxsize=64)
def _shift_columns(length: int) -> tuple[int, ...]:
    """The linear map of a CRC that `length` zero bytes follow, by column."""
    result = tuple(1 << bit for bit in range(32))
    square = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one zero bit
    remaining = length * 8
    while remaining:
        if remaining & 1:
            result = tuple(_apply(square, column) for column in result)
        square = tuple(_apply(square, column) for column in square)
        remaining >>= 1
    return result


def _apply(columns: tuple[int, ...], vector: int) -> int:
    result = 0
    for column in columns:
        if not vector:
            break
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


def masked(crc: int) -> int:
    """A CRC as files store it, so that the CRC of data that holds CRCs stays sound."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def fingerprint64(content: bytes) -> int:
    """FarmHash's Fingerprint64, as in `fingerprint.pb`."""
    size = len(content)
    if size <= 16:
        return _up_to_16(content)
    if size <= 32:
        return _up_to_32(content)
    if size <= 64:
        return _up_to_64(content)
    return _beyond_64(content)


def _word(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 8], "little")


def _half(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")


def _turned(value: int, by: int) -> int:
    value &= _MASK
    return ((value >> by) | (value << (64 - by))) & _MASK


def _mixed(value: int) -> int:
    value &= _MASK
    return value ^ (value >> 47)


def _pair(u: int, v: int, factor: int) -> int:
    a = _mixed(((u ^ v) & _MASK) * factor)
    return (_mixed(((v ^ a) & _MASK) * factor) * factor) & _MASK


def _up_to_16(s: bytes) -> int:
    size = len(s)
    factor = (_K2 + size * 2) & _MASK
    if size >= 8:
        a, b = (_word(s, 0) + _K2) & _MASK, _word(s, size - 8)
        c = (_turned(b, 37) * factor + a) & _MASK
        return _pair(c, ((_turned(a, 25) + b) * factor) & _MASK, factor)
    if size >= 4:
        return _pair(size + (_half(s, 0) << 3), _half(s, size - 4), factor)
    if size:
        y, z = s[0] + (s[size >> 1] << 8), size + (s[-1] << 2)
        return (_mixed((y * _K2) ^ (z * _K0)) * _K2) & _MASK
    return _K2


def _up_to_32(s: bytes) -> int:
    size = len(s)
    factor = (_K2 + size * 2) & _MASK
    a, b = (_word(s, 0) * _K1) & _MASK, _word(s, 8)
    c, d = (_word(s, size - 8) * factor) & _MASK, (_word(s, size - 16) * _K2) & _MASK
    left = (_turned(a + b, 43) + _turned(c, 30) + d) & _MASK
    return _pair(left, (a + _turned(b + _K2, 18) + c) & _MASK, factor)


def _up_to_64(s: bytes) -> int:
    size = len(s)
    factor = (_K2 + size * 2) & _MASK
    a, b = (_word(s, 0) * _K2) & _MASK, _word(s, 8)
    c, d = (_word(s, size - 8) * factor) & _MASK, (_word(s, size - 16) * _K2) & _MASK
    y = (_turned(a + b, 43) + _turned(c, 30) + d) & _MASK
    z = _pair(y, (a + _turned(b + _K2, 18) + c) & _MASK, factor)
    e, f = (_word(s, 16) * factor) & _MASK, _word(s, 24)
    g = ((y + _word(s, size - 32)) * factor) & _MASK
    h = ((z + _word(s, size - 24)) * factor) & _MASK
    left = (_turned(e + f, 43) + _turned(g, 30) + h) & _MASK
    return _pair(left, (e + _turned(f + a, 18) + g) & _MASK, factor)


def _weak(s: bytes, at: int, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = (_word(s, at + step) for step in (0, 8, 16, 24))
    a += w
    b = _turned(b + a + z, 21)
    c = a
    a += x + y
    b += _turned(a, 44)
    return (a + z) & _MASK, (b + c) & _MASK


def _beyond_64(s: bytes) -> int:
    size = len(s)
    y = (81 * _K1 + 113) & _MASK
    z = (_mixed(y * _K2 + 113) * _K2) & _MASK
    x = (81 * _K2 + _word(s, 0)) & _MASK
    state = (x, y, z, (0, 0), (0, 0))
    end = (size - 1) // 64 * 64
    for at in range(0, end, 64):
        state = _round(s, at, state, _K1, 1)
    x, y, z, v, w = state
    factor = (_K1 + ((z & 0xFF) << 1)) & _MASK
    w = (w[0] + ((size - 1) & 63), w[1])
    v = ((v[0] + w[0]) & _MASK, v[1])
    w = ((w[0] + v[0]) & _MASK, w[1])
    x, y, z, v, w = _round(s, size - 64, (x, y, z, v, w), factor, 9)
    left = (_pair(v[0], w[0], factor) + _mixed(y) * _K0 + z) & _MASK
    return _pair(left, (_pair(v[1], w[1], factor) + x) & _MASK, factor)


def _round(s: bytes, at: int, state: tuple[Any, ...], factor: int, weight: int) -> tuple[Any, ...]:
    x, y, z, v, w = state
    x = (_turned(x + y + v[0] + _word(s, at + 8), 37) * factor) & _MASK
    y = (_turned(y + v[1] + _word(s, at + 48), 42) * factor) & _MASK
    x ^= (w[1] * weight) & _MASK
    y = (y + v[0] * weight + _word(s, at + 40)) & _MASK
    z = (_turned(z + w[0], 33) * factor) & _MASK
    v = _weak(s, at, v[1] * factor, x + w[0])
    w = _weak(s, at + 32, z + w[1], y + _word(s, at + 16))
    return z, y, x, v, w
