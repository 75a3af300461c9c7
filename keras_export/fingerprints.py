"""What `fingerprint.pb` says of an artifact, computed from the bytes of its files.

In: the bytes of `saved_model.pb`, of `variables.index`, of `fingerprint.pb`. Out: the hashes that
stand there. The invariant: each bit of `saved_model.pb` counts; only the order of map entries,
which writers choose as they like, does not.
"""

from __future__ import annotations

from operator import itemgetter

from keras_export.checksums import fingerprint64
from keras_export.digests import derived_uuid

_UUID_FIELD = b"\x3a\x24"  # the tag of field 7 and its 36 characters
_MIN_DASHES = 3  # of the four in a UUID: TensorFlow writes a decimal number there

# The messages between a SavedModel and its maps: "number=Message" where one is on the way,
# "number~key" for a map and "number~key>Message" for one whose values are on the way.
# Sources: the protos of a SavedModel in tensorflow/core/{protobuf,framework}.
_PATHS = {
    "SavedModel": "2=MetaGraph",
    "MetaGraph": "1=MetaInfo 2=Graph 4~s 5~s>Signature 6=AssetFile 7=SavedObjects",
    "MetaInfo": "2=OpList 8~s",
    "OpList": "1=Op",
    "Op": "4=OpAttr",
    "OpAttr": "3=Attr 7=Attr",
    "Attr": "1=AttrList 10=NamedAttrs",
    "AttrList": "9=NamedAttrs",
    "NamedAttrs": "2~s>Attr",
    "Graph": "1=Node 2=Library 5=DebugInfo",
    "Node": "5~s>Attr",
    "Library": "1=Function",
    "Function": "1=Op 3=Node 4~s 5~s>Attr 6~s 7~i>ArgAttrs 8~i",
    "ArgAttrs": "1~s>Attr",
    "DebugInfo": "2~s 4~f 5~s 6~f",
    "Signature": "1~s>Tensor 2~s>Tensor 4~s",
    "AssetFile": "1=Tensor",
    "Tensor": "5=Composite",
    "Composite": "1=TypeSpec 2=Tensor",
    "TypeSpec": "2=Value",
    "Value": "34=TypeSpec 51=Values 52=Values 53=Dict 54=NamedTuple",
    "Values": "1=Value",
    "Dict": "1~s>Value",
    "NamedTuple": "2=Pair",
    "Pair": "2=Value",
    "SavedObjects": "1=SavedObject 2~s>Concrete",
    "SavedObject": "6=FunctionOf 8=BareConcrete 11~s",
    "FunctionOf": "2=FunctionSpec",
    "BareConcrete": "4=FunctionSpec",
    "FunctionSpec": "1=Value 5=Value",
    "Concrete": "3=Value 4=Value",
}


def _parsed(text: str) -> dict[int, tuple[str, str]]:
    """Kind of key (empty: no map) and the message below, by field number."""
    found = {}
    for field in text.split():
        if "~" in field:
            number, _, rest = field.partition("~")
            key, _, below = rest.partition(">")
        else:
            (number, _, below), key = field.partition("="), ""
        found[int(number)] = (key, below)
    return found


_FIELDS = {name: _parsed(text) for name, text in _PATHS.items()}


def saved_model_checksum(content: bytes) -> int:
    """The checksum of `saved_model.pb`: TensorFlow hashes its fields with all maps sorted.

    Raises:
        ValueError: it cannot be parsed.
    """
    try:
        return fingerprint64(_sorted(content, _FIELDS["SavedModel"]))
    except (IndexError, RecursionError) as error:
        raise ValueError("its fields are damaged") from error


def checkpoint_hash(content: bytes) -> int:
    """The hash of `variables.index`."""
    return fingerprint64(content)


def is_intact(content: bytes) -> bool | None:
    """Whether a `fingerprint.pb` is as it was written; None if it does not tell.

    Only one whose identifier was derived from the rest tells.
    """
    rest, field = content[: -len(_UUID_FIELD) - 36], content[-len(_UUID_FIELD) - 36 :]
    if field.count(b"-") < _MIN_DASHES:
        return None
    return content == identified(rest)


def identified(rest: bytes) -> bytes:
    """A whole `fingerprint.pb`: `rest`, which has no identifier, with the one derived from it.

    TensorFlow 2.16 knows no identifier: it skips the field.
    """
    return rest + _UUID_FIELD + derived_uuid(rest).encode()


def _sorted(content: bytes, fields: dict[int, tuple[str, str]]) -> bytes:
    """The bytes of a message with the entries of each map in the order of their keys."""
    pieces: list[bytes] = []
    maps: dict[int, tuple[int, list[tuple[bytes | int, bytes]]]] = {}
    at = 0
    while at < len(content):
        start = at
        tag, at = _varint(content, at)
        begin, at = _skip(content, at, tag & 7)
        field = fields.get(tag >> 3)
        if field is None or tag & 7 != 2:
            pieces.append(content[start:at])
            continue
        key, below = field
        value = content[begin:at]
        if key:
            entry = _entry(value, below)
            if tag not in maps:
                maps[tag] = (len(pieces), [])
                pieces.append(b"")
            whole = content[start:begin] + entry
            maps[tag][1].append((_key(value, key), whole))
        else:
            pieces.append(content[start:begin] + _sorted(value, _FIELDS[below]))
    for place, entries in maps.values():
        entries.sort(key=itemgetter(0))
        pieces[place] = b"".join(whole for _, whole in entries)
    return b"".join(pieces)


def _entry(content: bytes, below: str) -> bytes:
    return _sorted(content, {2: ("", below)}) if below else content


def _key(content: bytes, kind: str) -> bytes | int:
    """The key of a map's entry: its field 1, or the default where that is left out."""
    if not content or content[0] >> 3 != 1:
        return b"" if kind == "s" else 0
    if kind == "i":
        return _varint(content, 1)[0]
    if kind == "f":
        return int.from_bytes(content[1:9], "little")
    begin, end = _skip(content, 1, 2)
    return content[begin:end]


def _skip(content: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Where the value of a field begins and ends."""
    if wire_type == 2:
        size, at = _varint(content, at)
        end = at + size
    elif wire_type == 0:
        _, end = _varint(content, at)
    elif wire_type in (1, 5):
        end = at + (8 if wire_type == 1 else 4)
    else:
        raise ValueError(f"it has a field of wire type {wire_type}")
    if end > len(content):
        raise ValueError("a field of it is longer than the rest")
    return at, end


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
