"""Endpoints beside a model's own: any callable with specs, and steps before or behind a model.

In: what was passed as `signatures=` of a Keras model. Out: an `Endpoint` for each step that clients
should not do themselves, and the `Forward` of each that can be traced. The invariant: an endpoint
holds no copy of a model; it shares the variables with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from keras_export import input_specs, keras_models
from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, ArgumentTypeError, failure
from keras_export.forward_traces import Forward
from keras_export.keras_objects import is_keras_layer
from keras_export.signatures import DEFAULT_KEY, checked_key

# tensorflow/core/example/feature.proto knows three types of values.
_STORED_AS = {
    tf.bool: tf.int64,
    tf.int8: tf.int64,
    tf.int16: tf.int64,
    tf.int32: tf.int64,
    tf.int64: tf.int64,
    tf.uint8: tf.int64,
    tf.uint16: tf.int64,
    tf.uint32: tf.int64,
    tf.bfloat16: tf.float32,
    tf.float16: tf.float32,
    tf.float32: tf.float32,
    tf.float64: tf.float32,
    tf.string: tf.string,
}

# What `tf.io.decode_image` can give: https://www.tensorflow.org/api_docs/python/tf/io/decode_image
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Endpoint:
    """A callable and what it takes, to be exported under a key of `signatures=`.

    It is traced when it is exported, and again when the model changed.

    Attributes:
        call: takes its arguments by position and returns a tensor, a flat list of tensors, or a
            dict from names to tensors.
        input_signature: a list of specs, one for each argument, nested as the argument is; anything
            else is the only argument. `tf.TensorSpec`, `keras.InputSpec`, KerasTensor or arrays.
        uses: layers, tables or modules that `call` uses and the model does not hold.

    Example:
        >>> import tempfile, keras, tensorflow as tf, keras_export as ke
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="y")(x))
        >>> twice = ke.Endpoint(lambda x: {"z": model(x) * 2}, tf.TensorSpec([None, 4]))
        >>> report = ke.export(model, tempfile.mkdtemp(), signatures={"twice": twice})
        >>> print(report.signatures["twice"])
        (x: float32[?, 4]) -> (z: float32[?, 2])
        >>> sorted(report.signatures)
        ['serve', 'serving_default', 'twice']
    """

    call: Callable[..., Any]
    input_signature: Any
    uses: Sequence[Any] = ()

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def by_key(given: Any) -> dict[str, Any]:
    """What was passed as `signatures=` of a model, by key.

    Raises:
        SignatureError: a key is no string.
        ReservedNameError: a key that the format keeps for itself.
    """
    if given is None:
        return {}
    by_name = given if isinstance(given, Mapping) else {DEFAULT_KEY: given}
    return {checked_key(key): value for key, value in by_name.items()}


def forward_of(key: str, given: Any) -> Forward | None:
    """How to call what stands under a key; None for what TensorFlow's rules are for.

    Raises:
        ArgumentError: an unbuilt model, or specs that do not fit the callable.
        ArgumentTypeError: the parts of an endpoint have wrong types.
    """
    endpoint = _endpoint_of(key, given)
    if endpoint is not None:
        what = f"the signature {key!r}"
        return input_specs.function_forward(endpoint.call, endpoint.input_signature, what)
    return keras_models.forward_of(given) if is_keras_layer(given) else None


def used_by(given: Any) -> dict[str, Any]:
    """What endpoints use and the model does not hold, by names for the root of the artifact.

    Raises:
        ArgumentTypeError: the parts of an endpoint have wrong types.
    """
    endpoints = [_endpoint_of(key, value) for key, value in by_key(given).items()]
    used = [x for endpoint in endpoints if endpoint is not None for x in endpoint.uses]
    unique = {id(x): x for x in used}.values()
    return {f"_used_{index}": x for index, x in enumerate(unique)}


def _endpoint_of(key: str, given: Any) -> Endpoint | None:
    if isinstance(given, tuple) and len(given) == 2:
        given = Endpoint(*given)
    if not isinstance(given, Endpoint):
        return None
    _check(key, given)
    return given


def _check(key: str, endpoint: Endpoint) -> None:
    if not callable(endpoint.call):
        received = f"call={endpoint.call!r} ({type(endpoint.call).__name__})"
        raise ArgumentTypeError(failure(f"export the signature {key!r}", "a callable", received))
    for used in endpoint.uses:
        if not isinstance(used, tfi.Trackable):
            raise ArgumentTypeError(
                failure(
                    f"export the signature {key!r}",
                    "uses=[...] of Keras layers or TensorFlow trackables",
                    f"{used!r} ({type(used).__name__})",
                )
            )


def _forward(model: Any) -> Forward:
    """How to call a model or an endpoint, one behind the other."""
    if isinstance(model, Endpoint):
        return input_specs.function_forward(model.call, model.input_signature, "the endpoint")
    if not is_keras_layer(model):
        raise ArgumentTypeError(
            failure(
                "make an endpoint",
                "a Keras model or layer, or an Endpoint",
                f"model={model!r} ({type(model).__name__})",
            )
        )
    return keras_models.forward_of(model)


def _uses(model: Any, *more: Any) -> tuple[Any, ...]:
    held = tuple(model.uses) if isinstance(model, Endpoint) else ()
    return (*held, *(x for x in more if isinstance(x, tfi.Trackable)))


# -- in front of a model --------------------------------------------------------------------------


def from_examples(
    model: Any,
    features: Mapping[str, Any] | None = None,
    *,
    input_name: str = "examples",
) -> Endpoint:
    """Puts the parsing of serialized `tf.train.Example` protos in front of a model.

    Args:
        model: a Keras model, or an endpoint to stand before. Its inputs are filled by name.
        features: for each input its feature, as `tf.io.parse_example` takes them. By default each
            input is read from the feature of its name: a dense one of fixed shape by
            `FixedLenFeature`, a dense one of one free dimension by `FixedLenSequenceFeature`,
            padded to the longest, a ragged or sparse one as such; booleans and integers are stored
            as int64, floats as float32.
        input_name: of the endpoint's only input, string[?].

    Returns:
        The endpoint; its outputs are those of the model.

    Raises:
        ArgumentError: when it is exported: an input has no feature, or none can be derived.

    Example:
        >>> import tempfile, keras, tensorflow as tf, keras_export as ke
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="y")(x))
        >>> endpoints = {"examples": ke.from_examples(model)}
        >>> report = ke.export(model, tempfile.mkdtemp(), signatures=endpoints)
        >>> print(report.signatures["examples"])
        (examples: string[?]) -> (y: float32[?, 2])
    """

    def parse(examples: Any) -> Any:
        forward = _forward(model)
        wanted = _features(forward) if features is None else dict(features)
        _refuse_missing(forward, wanted)
        parsed = tf.io.parse_example(examples, wanted)
        fed = {name: _cast(parsed[name], spec) for name, spec in forward.inputs.items()}
        return forward.call_by_name(fed)

    return Endpoint(parse, _strings(input_name), _uses(model))


def _strings(name: str) -> list[Any]:
    return [tf.TensorSpec([None], tf.string, name)]


def _features(forward: Forward) -> dict[str, Any]:
    return {name: _feature(name, spec) for name, spec in forward.inputs.items()}


def _feature(name: str, spec: Any) -> Any:
    dtype = _STORED_AS.get(getattr(spec, "dtype", None))
    rest = spec.shape[1:] if spec.shape.rank else None
    if dtype is not None and rest is not None:
        if isinstance(spec, tf.SparseTensorSpec) and rest.rank == 1:
            return tf.io.VarLenFeature(dtype)
        if isinstance(spec, tf.RaggedTensorSpec) and spec.ragged_rank == 1 and rest.rank == 1:
            return tf.io.RaggedFeature(dtype, row_splits_dtype=spec.row_splits_dtype)
        if isinstance(spec, tf.TensorSpec) and rest.is_fully_defined():
            return tf.io.FixedLenFeature(rest, dtype)
        if isinstance(spec, tf.TensorSpec) and rest[1:].is_fully_defined():
            return tf.io.FixedLenSequenceFeature(rest[1:], dtype, allow_missing=True)
    raise ArgumentError(
        failure(
            f"parse the input {name!r} from tf.train.Example",
            "a shape whose every dimension but the first two is known",
            f"{spec}",
            f"Say how it is stored: `from_examples(model, {{{name!r}: tf.io....}})`.",
        )
    )


def _refuse_missing(forward: Forward, features: Mapping[str, Any]) -> None:
    missing = sorted(set(forward.inputs) - set(features))
    if missing:
        raise ArgumentError(
            failure(
                "parse tf.train.Example",
                f"a feature for each input ({', '.join(map(repr, forward.inputs))})",
                f"none for {', '.join(map(repr, missing))}",
                "Name the features as the inputs.",
            )
        )


def _cast(tensor: Any, spec: Any) -> Any:
    return tensor if tensor.dtype == spec.dtype else tf.cast(tensor, spec.dtype)


def from_image_bytes(
    model: Any,
    *,
    size: tuple[int, int] | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    method: Literal["bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5"] = "bilinear",
    input_name: str = "image_bytes",
) -> Endpoint:
    """Puts the decoding and resizing of encoded images in front of a model.

    Args:
        model: a Keras model, or an endpoint, with one image as its only input: [?, height, width,
            channels], or channels first.
        size: height and width in pixels, for a model that takes any.
        preprocess: is given float32[?, height, width, channels] from 0 to 255 and returns what the
            model takes, for instance `keras.applications.resnet50.preprocess_input`. None for a
            model that takes 0 to 255.
        method: of `tf.image.resize`, which does not keep the aspect ratio and smooths what it makes
            smaller.
        input_name: of the endpoint's only input, string[?]: JPEG, PNG, GIF (the first frame) or
            BMP. In a JSON request such a value is `{"b64": "..."}`.

    Returns:
        The endpoint; its outputs are those of the model.

    Raises:
        ArgumentError: when it is exported: the model's input is no image, or `size` is missing.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> image = keras.Input((32, 32, 3), name="image")
        >>> model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="y")(image))
        >>> endpoints = {"bytes": ke.from_image_bytes(model, preprocess=lambda x: x / 255)}
        >>> report = ke.export(model, tempfile.mkdtemp(), signatures=endpoints)
        >>> print(report.signatures["bytes"])
        (image_bytes: string[?]) -> (y: float32[?, 3])
    """

    def decode(image_bytes: Any) -> Any:
        forward = _forward(model)
        name, spec = _only_input(forward, "an image")
        height, width, channels, is_first = _image_shape(name, spec, size)

        def decoded(content: Any) -> Any:
            image = tf.io.decode_image(content, channels, expand_animations=False)
            return tf.image.resize(image, [height, width], method, antialias=True)

        result = tf.TensorSpec([height, width, channels], tf.float32)
        images = tf.map_fn(decoded, image_bytes, fn_output_signature=result)
        images = images if preprocess is None else preprocess(images)
        images = tf.transpose(images, [0, 3, 1, 2]) if is_first else images
        return forward.call_by_name({name: _as_pixels(images, spec.dtype)})

    return Endpoint(decode, _strings(input_name), _uses(model, preprocess))


def _only_input(forward: Forward, what: str) -> tuple[str, Any]:
    if len(forward.inputs) != 1:
        raise ArgumentError(
            failure(
                "make an endpoint",
                f"a model whose only input is {what}",
                f"inputs {', '.join(map(repr, forward.inputs)) or 'none'}",
                "Write the endpoint yourself: `Endpoint(call, input_signature)`.",
            )
        )
    return next(iter(forward.inputs.items()))


def _image_shape(name: str, spec: Any, size: tuple[int, int] | None) -> tuple[int, int, int, bool]:
    """Height, width, channels, and whether these come first."""
    shape = spec.shape.as_list() if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 4 else []
    is_first = bool(shape) and shape[3] not in _CHANNELS and shape[1] in _CHANNELS
    channels = shape[1 if is_first else 3] if shape else None
    if channels not in _CHANNELS:
        raise ArgumentError(
            failure(
                f"feed the input {name!r} with images",
                "a shape [?, height, width, channels] with 1, 3 or 4 channels",
                f"{spec}",
            )
        )
    own = shape[2:] if is_first else shape[1:3]
    height, width = size if size is not None else own
    if height is None or width is None:
        raise ArgumentError(
            failure(
                f"feed the input {name!r} with images",
                "a model that fixes height and width, or size=",
                f"shape={shape}",
                "Write `from_image_bytes(model, size=(224, 224))`.",
            )
        )
    return height, width, channels, is_first


def _as_pixels(images: Any, dtype: tf.DType) -> Any:
    if images.dtype != dtype and dtype.is_integer and images.dtype.is_floating:
        return tf.saturate_cast(tf.round(images), dtype)
    return tf.cast(images, dtype)


def from_text(
    model: Any, vectorize: Callable[[Any], Any] | None = None, *, input_name: str = "text"
) -> Endpoint:
    """Puts raw text in front of a model.

    Args:
        model: a Keras model, or an endpoint, with one input: token ids, or strings where it
            vectorizes itself.
        vectorize: is given string[?] and returns what the model takes: a
            `keras.layers.TextVectorization`, whose vocabulary is exported too, or any callable.
            None for a model that takes strings.
        input_name: of the endpoint's only input, string[?].

    Returns:
        The endpoint; its outputs are those of the model.

    Raises:
        ArgumentError: when it is exported: the model has several inputs, or takes no strings and
            `vectorize` is missing.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> words = keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["a", "b"])
        >>> tokens = keras.Input((3,), dtype="int64", name="tokens")
        >>> model = keras.Model(tokens, keras.layers.Embedding(4, 2, name="y")(tokens))
        >>> endpoints = {"text": ke.from_text(model, words)}
        >>> report = ke.export(model, tempfile.mkdtemp(), signatures=endpoints)
        >>> print(report.signatures["text"])
        (text: string[?]) -> (y: float32[?, 3, 2])
    """

    def read(text: Any) -> Any:
        forward = _forward(model)
        name, spec = _only_input(forward, "text")
        if vectorize is None and spec.dtype != tf.string:
            raise ArgumentError(
                failure(
                    f"feed the input {name!r} with text",
                    "a model that takes strings, or vectorize=",
                    f"{spec}",
                    "Write `from_text(model, vectorization_layer)`.",
                )
            )
        tokens = text if vectorize is None else vectorize(text)
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 2 and tokens.shape.rank == 1:
            tokens = tf.expand_dims(tokens, 1)
        return forward.call_by_name({name: _cast(tokens, spec)})

    return Endpoint(read, _strings(input_name), _uses(model, vectorize))


# -- behind a model -------------------------------------------------------------------------------


def with_top_classes(
    model: Any,
    labels: Sequence[str],
    k: int = 5,
    *,
    output: str | None = None,
    from_logits: bool = False,
) -> Endpoint:
    """Puts the choice of the best classes, by their labels, behind a model.

    Args:
        model: a Keras model, or an endpoint, that returns scores [?, classes].
        labels: what the classes are called, in their order.
        k: how many of the best are returned, at most as many as there are labels.
        output: the output that holds the scores; None for the only one.
        from_logits: whether the scores are logits, of which the softmax is returned.

    Returns:
        The endpoint. Its inputs are those of the model, its outputs `classes`, string[?, k], and
        `scores`, float[?, k], the best first.

    Raises:
        ArgumentError: `k` is out of range; or, when it is exported, there are not as many labels as
            classes, or several outputs and none chosen.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(3, "softmax", name="y")(x))
        >>> endpoints = {"classify": ke.with_top_classes(model, ["cat", "dog", "fox"], k=2)}
        >>> report = ke.export(model, tempfile.mkdtemp(), signatures=endpoints)
        >>> print(report.signatures["classify"])
        (x: float32[?, 4]) -> (classes: string[?, 2], scores: float32[?, 2])
    """
    if isinstance(labels, str) or not all(isinstance(x, (str, bytes)) for x in labels):
        raise ArgumentTypeError(failure("make an endpoint", "labels of type str", f"{labels!r}"))
    if not 1 <= k <= len(labels):
        raise ArgumentError(
            failure("make an endpoint", f"k from 1 to {len(labels)}, as many as labels", f"k={k!r}")
        )
    forward = _forward(model)
    names = list(forward.inputs)

    def classify(*arguments: Any) -> dict[str, Any]:
        fed = dict(zip(names, tf.nest.flatten(arguments), strict=True))
        scores = _scores(_forward(model).call_by_name(fed), output, len(labels))
        scores = tf.nn.softmax(scores) if from_logits else scores
        best = tf.math.top_k(scores, k)
        return {
            "classes": tf.gather(tf.constant(list(labels)), best.indices),
            "scores": best.values,
        }

    return Endpoint(classify, list(forward.arguments), _uses(model))


def _scores(outputs: Mapping[str, Any], wanted: str | None, count: int) -> Any:
    listed = ", ".join(map(repr, outputs))
    if wanted is None and len(outputs) > 1:
        raise ArgumentError(failure("choose classes", f"output= one of {listed}", "output=None"))
    if wanted is not None and wanted not in outputs:
        raise ArgumentError(failure("choose classes", f"output= one of {listed}", repr(wanted)))
    name = wanted if wanted is not None else next(iter(outputs))
    scores = outputs[name]
    if scores.shape.rank != 2 or scores.shape[-1] not in (None, count):
        raise ArgumentError(
            failure(
                "choose classes",
                f"scores of shape [?, {count}], a column for each label",
                f"{name!r} of shape {scores.shape}",
            )
        )
    return scores
