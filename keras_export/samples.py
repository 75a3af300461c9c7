"""Inputs of a signature from files, and its outputs to files.

In: paths, and what the signature takes. Out: arrays by name; or the other way. The invariant: the
form of a file is told by its ending, and an array is never changed to another kind of number.

    .npz            arrays by name
    .npy            the one input, or `name=file.npy`
    .json           {"x": [[1, 2]]}; also TensorFlow Serving's {"inputs": ...}, {"instances": ...}
    .csv            a column for each input, or x_0, x_1, ... for its elements; without a header:
                    the elements of the one input
    .png .jpg ...   pixels from 0 to 255, in the size that the input has; the bytes of the file for
                    an input of strings. Several make a batch.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras_export.errors import ArgumentError, failure
from keras_export.inspection import Spec

_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
_CHANNELS = (1, 3, 4)
_SERVING = ("inputs", "instances")


def read_inputs(
    files: Sequence[str], specs: Mapping[str, Spec], scale: float = 1.0
) -> dict[str, Any]:
    """Reads inputs.

    Args:
        files: paths, or `name=path` for one input.
        specs: what the signature takes, by name.
        scale: what the pixels of images are multiplied by.

    Returns:
        Arrays by name, of the dtypes in `specs`; inputs that no file gives are left out.

    Raises:
        ArgumentError: a file does not fit the signature.
        OSError: a file cannot be read.
    """
    found: dict[str, list[Any]] = {}
    for file in files:
        name, path = _named(file, specs)
        for key, value in _read(path, name, specs, scale).items():
            found.setdefault(key, []).append(value)
    return {
        name: _checked(name, _batch(name, values), specs[name]) for name, values in found.items()
    }


def _named(file: str, specs: Mapping[str, Spec]) -> tuple[str | None, str]:
    name, equals, path = file.partition("=")
    if equals and name in specs and not os.path.exists(file):
        return name, path
    return None, file


def _read(path: str, name: str | None, specs: Mapping[str, Spec], scale: float) -> dict[str, Any]:
    import numpy as np

    ending = os.path.splitext(path)[1].lower()
    try:
        if ending == ".npz":
            with np.load(path) as file:
                return _known(dict(file), specs, path)
        if ending == ".npy":
            return {_the_one(name, specs, path): np.load(path)}
        if ending == ".json":
            with open(path, encoding="utf-8") as text:
                return _from_json(json.load(text), name, specs, path)
        if ending == ".csv":
            with open(path, newline="", encoding="utf-8") as text:
                return _from_csv(list(csv.reader(text)), name, specs, path)
    except (ValueError, EOFError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"Cannot read {path}: {error}") from error
    if ending in _IMAGES:
        name = name or _the_image(specs, path)
        return {name: _from_image(path, specs[name], scale)}
    raise ArgumentError(
        failure(
            f"read {path}",
            f"one of .npz, .npy, .json, .csv, {', '.join(_IMAGES)}",
            f"{ending or 'no ending'}",
        )
    )


def _known(values: Mapping[str, Any], specs: Mapping[str, Spec], path: str) -> dict[str, Any]:
    unknown = sorted(set(values) - set(specs))
    if unknown:
        raise ArgumentError(failure(f"read {path}", f"inputs of {sorted(specs)}", f"{unknown}"))
    return dict(values)


def _the_one(name: str | None, specs: Mapping[str, Spec], path: str) -> str:
    if name is not None:
        return name
    if len(specs) == 1:
        return next(iter(specs))
    raise ArgumentError(
        failure(
            f"read {path}",
            "the name of its input",
            "a signature of several inputs",
            f"Write `NAME={path}` with a name of {sorted(specs)}.",
        )
    )


def _the_image(specs: Mapping[str, Spec], path: str) -> str:
    likely = [
        name
        for name, spec in specs.items()
        if spec.dtype == "string" or (spec.shape is not None and len(spec.shape) == 4)
    ]
    return likely[0] if len(likely) == 1 else _the_one(None, specs, path)


# -- JSON -----------------------------------------------------------------------------------------


def _from_json(value: Any, name: str | None, specs: Mapping[str, Spec], path: str) -> Any:
    if name is not None:
        return {name: _unpacked(value)}
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) not in specs:
        form = next(iter(value))
        if form == "instances":
            value = _columns(value[form])
        elif form in _SERVING:
            value = value[form]
    if not isinstance(value, dict) or set(value) == {"b64"}:
        return {_the_one(None, specs, path): _unpacked(value)}
    return _known({key: _unpacked(x) for key, x in value.items()}, specs, path)


def _columns(instances: Any) -> Any:
    """Rows of inputs as inputs of rows."""
    if not instances or not all(isinstance(x, dict) and set(x) != {"b64"} for x in instances):
        return instances
    return {name: [row[name] for row in instances] for name in instances[0]}


def _unpacked(value: Any) -> Any:
    """Text as bytes; `{"b64": ...}` as the bytes that it stands for."""
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"])
    if isinstance(value, list):
        return [_unpacked(x) for x in value]
    return value.encode() if isinstance(value, str) else value


# -- CSV ------------------------------------------------------------------------------------------


def _from_csv(
    rows: list[list[str]], name: str | None, specs: Mapping[str, Spec], path: str
) -> dict[str, Any]:
    import numpy as np

    rows = [row for row in rows if row]
    if len({len(row) for row in rows}) != 1:
        raise ArgumentError(failure(f"read {path}", "rows of one length", "none, or several"))
    columns = {} if name is not None else _by_header(rows[0], specs)
    if not columns:
        name = _the_one(name, specs, path)
        body = rows if specs[name].dtype == "string" or _is_number(rows[0][0]) else rows[1:]
        columns, rows = {name: list(range(len(rows[0])))}, [[], *body]
    table = np.array(rows[1:])
    found = {}
    for key, places in columns.items():
        flat = specs[key].shape is not None and len(specs[key].shape or ()) == 1
        values = table[:, places[0]] if len(places) == 1 and flat else table[:, places]
        found[key] = np.char.encode(values) if specs[key].dtype == "string" else _numbers(values)
    return found


def _numbers(values: Any) -> Any:
    whole = all(re.fullmatch(r"\s*[+-]?\d+\s*", text) for text in values.ravel())
    return values.astype("int64" if whole else "float64")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_header(header: list[str], specs: Mapping[str, Spec]) -> dict[str, list[int]]:
    """The places of each input's columns; empty if the first row is no header."""
    found: dict[str, list[int]] = {}
    for place, title in enumerate(header):
        stem, _, number = title.rpartition("_")
        name = title if title in specs else stem if number.isdigit() and stem in specs else None
        if name is None:
            return {}
        found.setdefault(name, []).append(place)
    return found


# -- images ---------------------------------------------------------------------------------------


def _from_image(path: str, spec: Spec, scale: float) -> Any:
    import numpy as np
    import tensorflow as tf

    with open(path, "rb") as file:
        content = file.read()
    if spec.dtype == "string":
        single = spec.shape == ()
        return np.array(content if single else [content], object)
    shape = spec.shape[-3:] if spec.shape is not None and len(spec.shape) >= 3 else (None,) * 3
    channels = shape[2] if shape[2] in _CHANNELS else 0
    try:
        image = tf.io.decode_image(content, channels, expand_animations=False)
    except (tf.errors.OpError, ValueError) as error:
        raise ArgumentError(f"Cannot read {path}: it is no image. {error}") from error
    if None not in shape[:2]:
        image = tf.image.resize(image, shape[:2], antialias=True)
    pixels = image.numpy() * scale if scale != 1.0 else image.numpy()
    dtype = np.dtype(tf.as_dtype(spec.dtype).as_numpy_dtype)
    if dtype.kind in "iu":
        pixels = np.rint(pixels).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    pixels = pixels.astype(dtype)
    return pixels if spec.shape is not None and len(spec.shape) == 3 else pixels[None]


def _batch(name: str, values: list[Any]) -> Any:
    import numpy as np

    if len(values) == 1:
        return values[0]
    try:
        return np.concatenate(values)
    except ValueError as error:
        raise ArgumentError(
            f"Cannot join the files for the input {name!r} in a batch: {error}"
        ) from error


# -- what a signature takes -----------------------------------------------------------------------


def _checked(name: str, value: Any, spec: Spec) -> Any:
    """The value as an array of the input's dtype and of a shape that it may have."""
    import numpy as np
    import tensorflow as tf

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"Cannot feed {name!r}: its rows differ in length.") from error
    if spec.dtype == "string":
        array = np.asarray(value, object) if array.dtype.kind != "U" else np.char.encode(array)
        array = array.astype(object)
    else:
        dtype = np.dtype(tf.as_dtype(spec.dtype).as_numpy_dtype)
        # ml_dtypes are of kind V. A Python float for an integer input would be cut off.
        if array.dtype.kind not in "biufcV" or not (
            dtype.kind == "V" or np.can_cast(array.dtype, dtype, "same_kind")
            or (array.dtype.kind in "iu" and np.array_equal(array.astype(dtype), array))
        ):  # fmt: skip
            raise ArgumentError(
                failure(f"feed {name!r}", f"values of {spec.dtype}", f"values of {array.dtype}")
            )
        array = array.astype(dtype)
    if not _fits(array.shape, spec.shape):
        raise ArgumentError(failure(f"feed {name!r}", str(spec), f"shape {list(array.shape)}"))
    return array


def _fits(shape: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    return declared is None or (
        len(shape) == len(declared)
        and all(size in (None, found) for found, size in zip(shape, declared, strict=True))
    )


# -- outputs --------------------------------------------------------------------------------------


def write_outputs(path: str, outputs: Mapping[str, Any]) -> None:
    """Writes outputs in the form that the ending tells.

    Args:
        path: the file.
        outputs: arrays by name.

    Raises:
        ArgumentError: that form cannot hold these outputs; nothing is written.
    """
    import numpy as np

    ending = os.path.splitext(path)[1].lower()
    if ending == ".npz":
        return np.savez(path, **{name: _storable(value) for name, value in outputs.items()})
    if ending == ".npy":
        return np.save(path, _storable(_only(path, outputs)))
    if ending == ".json":
        return _write(path, (to_json(outputs) + "\n").encode())
    if ending == ".csv":
        return _write(path, _csv_text(path, outputs).encode())
    if ending in (".png", ".jpg", ".jpeg"):
        return _write(path, _encoded_image(path, _only(path, outputs)))
    raise ArgumentError(
        failure(
            f"write {path}",
            "one of .npz, .npy, .json, .csv, .png, .jpg",
            ending or "no ending",
        )
    )


def to_json(outputs: Mapping[str, Any]) -> str:
    """Outputs as JSON: nested lists by name, bytes that are no text as `{"b64": ...}`."""
    return json.dumps({name: _packed(value.tolist()) for name, value in outputs.items()}, indent=2)


def _packed(value: Any) -> Any:
    if isinstance(value, list):
        return [_packed(x) for x in value]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, float) and value - value != 0:  # JSON has no infinity and no NaN
        return str(value)
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _storable(value: Any) -> Any:
    """Strings as numpy's own kind, which a file holds without pickling."""
    return value.astype("S") if value.dtype == object else value


def _only(path: str, outputs: Mapping[str, Any]) -> Any:
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    raise ArgumentError(
        failure(f"write {path}", "one output", f"{sorted(outputs)}", "Write .npz or .json.")
    )


def _csv_text(path: str, outputs: Mapping[str, Any]) -> str:
    import io

    columns: dict[str, Any] = {}
    for name, value in outputs.items():
        if value.ndim > 2:
            shape = list(value.shape)
            raise ArgumentError(
                failure(f"write {path}", "outputs of rank 2 at most", f"{name!r} of shape {shape}")
            )
        if value.ndim == 2:
            columns |= {f"{name}_{i}": value[:, i] for i in range(value.shape[1])}
        else:
            columns[name] = value.reshape(-1)
    if len({len(column) for column in columns.values()}) > 1:
        raise ArgumentError(
            failure(f"write {path}", "outputs of one length", "several", "Write .npz or .json.")
        )
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([x.decode(errors="replace") if isinstance(x, bytes) else x for x in row])
    return text.getvalue()


def _encoded_image(path: str, value: Any) -> bytes:
    import numpy as np
    import tensorflow as tf

    while value.ndim > 3 and value.shape[0] == 1:
        value = value[0]
    value = value[..., None] if value.ndim == 2 else value
    if value.ndim != 3 or value.shape[-1] not in _CHANNELS:
        raise ArgumentError(
            failure(
                f"write {path}",
                "an output of shape [height, width, 1, 3 or 4 channels]",
                f"{list(value.shape)}",
            )
        )
    if value.dtype.kind == "f":
        value = value * 255.0 if np.nanmax(value, initial=0.0) <= 1.0 else value
    pixels = np.rint(value).clip(0, 255).astype(np.uint8)
    encode = tf.io.encode_png if path.lower().endswith(".png") else tf.io.encode_jpeg
    content: bytes = encode(pixels).numpy()
    return content


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
