"""Requests that TensorFlow Serving sends a model to itself before it serves it.

In: what the caller gave as `warmup`, and the signatures. Out: the bytes of
`assets.extra/tf_serving_warmup_requests`, a TFRecord file of `PredictionLog` messages. The
invariant: each request in it has the names, dtypes and shapes of its signature, and was run on the
artifact before that was published, for a server gives up a model of which a request fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_export import protos
from keras_export.checksums import crc32c, masked
from keras_export.errors import ArgumentError, ArgumentTypeError, failure

# tensorflow_serving/servables/tensorflow/saved_model_warmup_util.h
FILE = "tf_serving_warmup_requests"
_MOST_REQUESTS = 1000
# A message is read only up to this size; the names and shapes in it take a part.
_MOST_BYTES = 2**31 - 2**20

_GIVE = "Give a batch: `warmup={input name: array}`."
_ONE_OR_MANY = f"{_GIVE} A list stands for several requests."


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        signature: the key of the signature that it calls.
        inputs: an array for each input.
    """

    signature: str
    inputs: Mapping[str, Any]


def requests_of(warmup: Any, signatures: Mapping[str, Any]) -> list[Request]:
    """Makes the requests for every signature that `warmup` fits.

    Args:
        warmup: None for no request; True or a batch size, for requests of zeros and empty strings;
            `{input name: array}`, or one array for signatures with one input; `{signature key: one
            of these}`; a list of any of these, for several requests each. An input that may be
            left out has its default then.
        signatures: `{key: Signature}`.

    Raises:
        ArgumentError: it fits no signature, or an input by shape, dtype or value; there would be
            more requests than a server reads, 1000, or one larger than 2 GB; an input to generate
            has no known rank.
        ArgumentTypeError: it is none of what it can be.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export.reports import Signature
        >>> from keras_export.warmups import requests_of
        >>> doubles = Signature({"x": tf.TensorSpec([None, 2], tf.float32)}, {})
        >>> [request] = requests_of([[[1.0, 2.0]]], {"double": doubles})
        >>> request.signature, request.inputs["x"].tolist()
        ('double', [[1.0, 2.0]])
    """
    if warmup is None or warmup is False:
        return []
    found = [
        request
        for item in (warmup if isinstance(warmup, list) else [warmup])
        for request in _requests_of_one(item, signatures)
    ]
    if len(found) > _MOST_REQUESTS:
        raise ArgumentError(
            failure(
                "write warm-up requests",
                f"{_MOST_REQUESTS} at most, which is what TensorFlow Serving reads",
                f"{len(found)}",
            )
        )
    return found


def encode(requests: Sequence[Request]) -> bytes:
    """The content of the file.

    Source: tensorflow/core/lib/io/record_writer.h for the frame, and
    tensorflow_serving/apis/{prediction_log,predict,model}.proto for the messages.
    """
    return b"".join(_record(_log(request)) for request in requests)


def try_out(directory: str, requests: Sequence[Request]) -> None:
    """Runs each request on an artifact.

    Raises:
        ArgumentError: one fails.
    """
    loaded = tf.saved_model.load(directory)
    for request in requests:
        try:
            inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
            loaded.signatures[request.signature](**inputs)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            shapes = ", ".join(f"{k}={v.dtype}{list(v.shape)}" for k, v in request.inputs.items())
            raise ArgumentError(
                f"Cannot write a warm-up request for {request.signature!r} with {shapes}: the "
                f"model fails on it with {type(error).__name__}: {error}. {_GIVE}"
            ) from error


def _requests_of_one(warmup: Any, signatures: Mapping[str, Any]) -> Iterator[Request]:
    if isinstance(warmup, bool | int):
        for key, signature in sorted(signatures.items()):
            yield Request(key, _generated(key, signature, int(warmup)))
    elif not isinstance(warmup, Mapping):
        yield from _fitting({None: warmup}, signatures)
    elif warmup and warmup.keys() <= signatures.keys() and not _fits(warmup, signatures):
        for key, inner in sorted(warmup.items()):
            yield from requests_of(inner, {key: signatures[key]})
    else:
        yield from _fitting(warmup, signatures)


def _fits(inputs: Mapping[Any, Any], signatures: Mapping[str, Any]) -> list[str]:
    """The signatures that take these inputs; a value without a name fits a single input."""
    names = set(inputs)
    return [
        key
        for key, signature in sorted(signatures.items())
        if _wanted(signature) <= names <= set(signature.inputs)
        or (names == {None} and len(_wanted(signature) or signature.inputs) == 1)
    ]


def _wanted(signature: Any) -> set[str]:
    """The inputs that may not be left out."""
    return set(signature.inputs) - set(signature.defaults)


def _fitting(inputs: Mapping[Any, Any], signatures: Mapping[str, Any]) -> Iterator[Request]:
    keys = _fits(inputs, signatures)
    if not keys:
        expected = "; ".join(f"{k}: {', '.join(x.inputs)}" for k, x in sorted(signatures.items()))
        received = "one array" if None in inputs else f"warmup={{{', '.join(map(repr, inputs))}}}"
        raise ArgumentError(
            failure(
                "write warm-up requests",
                f"the inputs of a signature ({expected or 'there is none'})",
                received,
                _GIVE,
            )
        )
    for key in keys:
        signature = signatures[key]
        values = inputs
        if None in inputs:
            (name,) = _wanted(signature) or signature.inputs
            values = {name: inputs[None]}
        request = {
            name: _value(key, name, values[name], spec)
            if name in values
            else np.asarray(signature.defaults[name])
            for name, spec in signature.inputs.items()
        }
        _refuse_large(key, sum(array.nbytes for array in request.values()))
        yield Request(key, request)


def _refuse_large(key: str, size: int) -> None:
    if size > _MOST_BYTES:
        where = f"write a warm-up request for {key!r}"
        raise ArgumentError(
            failure(where, f"{_MOST_BYTES} bytes at most", f"{size} bytes", "Give a smaller batch.")
        )


def _value(key: str, name: str, value: Any, spec: Any) -> Any:
    where = f"write a warm-up request for {name!r} of {key!r}"
    dtype = np.dtype(object) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(
            failure(where, "an array", f"{name}={type(value).__name__}")
        ) from error
    is_text = array.dtype.kind in "OSU"
    if is_text != (spec.dtype == tf.string) or not (
        is_text or np.can_cast(array.dtype, dtype, "same_kind") or not hasattr(value, "dtype")
    ):
        raise ArgumentError(failure(where, spec.dtype.name, f"{name}={array.dtype}"))
    if not spec.shape.is_compatible_with(array.shape):
        shape = f"the shape {spec.shape}"
        raise ArgumentError(failure(where, shape, f"{list(array.shape)}", _ONE_OR_MANY))
    if not (is_text or _has_room(array, dtype)):
        values = f"values that {spec.dtype.name} can have"
        raise ArgumentError(failure(where, values, f"{name}={array.dtype}"))
    return array.astype(dtype)


def _has_room(array: Any, dtype: Any) -> bool:
    """Whether a dtype has the values of an array: whole numbers exactly, others nearly."""
    if array.dtype == dtype:
        return True
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if array.dtype.kind in "fc" and dtype.kind in "iub":
            return bool(np.all(cast == array))
        if array.dtype.kind in "iub" and dtype.kind in "iub":
            return bool(np.all(cast.astype(object) == array.astype(object)))
        return bool(np.all(np.isfinite(cast) == np.isfinite(array)))


def _generated(key: str, signature: Any, batch: int) -> dict[str, Any]:
    if batch < 1:
        raise ArgumentError(failure("write warm-up requests", "a batch size from 1 on", f"{batch}"))
    found = {}
    for name, spec in signature.inputs.items():
        if name in signature.defaults:
            found[name] = np.asarray(signature.defaults[name])
            continue
        if spec.shape.rank is None:
            where = f"generate {name!r} of a warm-up request for {key!r}"
            raise ArgumentError(failure(where, "a known rank", f"shape={spec.shape}", _GIVE))
        sizes = [batch if at == 0 else 1 for at in range(spec.shape.rank)]
        shape = [
            free if known is None else known
            for free, known in zip(sizes, spec.shape.as_list(), strict=True)
        ]
        _refuse_large(key, math.prod(shape) * max(spec.dtype.size, 1))
        if spec.dtype == tf.string:
            found[name] = np.full(shape, b"", object)
        else:
            found[name] = np.zeros(shape, spec.dtype.as_numpy_dtype)
    return found


def _log(request: Request) -> bytes:
    log = protos.PredictionLog()
    call = log.predict_log.request
    call.model_spec.signature_name = request.signature
    for name, value in sorted(request.inputs.items()):
        tensor = tf.make_tensor_proto(value)
        call.inputs.add(key=name, value=tensor.SerializeToString(deterministic=True))
    content: bytes = log.SerializeToString(deterministic=True)
    return content


def _record(content: bytes) -> bytes:
    length = len(content).to_bytes(8, "little")
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return masked(crc32c(content)).to_bytes(4, "little")
