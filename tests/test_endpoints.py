"""Promises of `endpoints`: what stands beside, before and behind a model, through every loader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export.errors import ArgumentError, ArgumentTypeError, UntrackedCaptureError

LABELS = ["ant", "bee", "cow", "dog"]
X = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")


def classifier() -> keras.Model:
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(5, "relu", name="hidden")(x)
    return keras.Model(x, keras.layers.Dense(4, "softmax", name="probabilities")(h), name="model")


def images(dtype: str = "float32", shape: Any = (8, 6, 3)) -> keras.Model:
    image = keras.Input(shape, dtype=dtype, name="image")
    h = keras.layers.Rescaling(1 / 255)(image)
    h = keras.layers.Conv2D(2, 3, name="conv")(h)
    return keras.Model(image, keras.layers.GlobalMaxPooling2D(name="y")(h))


def example(**features: Any) -> bytes:
    made = {}
    for name, value in features.items():
        array = np.ravel(np.asarray(value))
        if array.dtype.kind == "f":
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=array))
        elif array.dtype.kind in "iub":
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=array.astype(int)))
        else:
            content = [str(x).encode() for x in array]
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=content))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def strings(*values: Any) -> np.ndarray:
    return np.array(values, dtype=object)


# -- beside the model -----------------------------------------------------------------------------


def test_endpoints_stand_beside_the_model_and_share_its_variables(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    traces: list[str] = []

    def twice(x: Any, scale: Any) -> Any:
        traces.append("twice")
        return {"z": model(x) * scale}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])
    def logits(x: Any) -> Any:
        traces.append("logits")
        return model.layers[1](x)

    hidden = keras.Model(model.input, model.get_layer("hidden").output)
    specs = [keras.InputSpec(shape=(None, 3), dtype="float32"), tf.TensorSpec([], name="by")]
    signatures = {"twice": (twice, specs), "logits": logits, "embed": hidden}
    exporter = ke.Exporter(model, signatures)
    report = exporter.write(tmp_path)
    exporter.write(tmp_path)
    assert sorted(traces) == ["logits", "twice"]
    assert {key: str(x) for key, x in report.signatures.items()} == {
        "embed": "(x: float32[?, 3]) -> (hidden: float32[?, 5])",
        "logits": "(x: float32[?, 3]) -> (output_0: float32[?, 5])",
        "serve": "(x: float32[?, 3]) -> (probabilities: float32[?, 4])",
        "serving_default": "(x: float32[?, 3]) -> (probabilities: float32[?, 4])",
        "twice": "(by: float32[], x: float32[?, 3]) -> (z: float32[?, 4])",
    }
    expected = model(X).numpy()
    embedded = hidden(X).numpy()
    assert_same(consumers.everywhere(tmp_path, "serve", x=X), {"probabilities": expected})
    by = np.float32(3)
    assert_same(consumers.everywhere(tmp_path, "twice", x=X, by=by), {"z": expected * 3})
    assert_same(consumers.everywhere(tmp_path, "embed", x=X), {"hidden": embedded})
    assert_same(consumers.everywhere(tmp_path, "logits", x=X), {"output_0": embedded})
    loaded = consumers.tf(tmp_path)
    assert_same(loaded.call("twice", X, by)["z"], expected * 3)
    assert_same(loaded.call("embed", X), embedded)
    assert len(consumers.checkpoint(tmp_path).values()) == len(model.variables)
    assert artifacts.ops(tmp_path).count("VarHandleOp") == len(model.variables)


def test_the_users_keys_replace_the_models_own(tmp_path: Path, consumers: Consumers) -> None:
    model = classifier()
    spec = tf.TensorSpec([None, 3])
    doubled = ke.Endpoint(lambda x: {"z": model(x) * 2}, spec)
    for name, given, of_serve, of_default in (
        ("alone", doubled, "probabilities", "z"),
        ("serve", {"serve": doubled}, "z", "z"),
        ("default", {"serving_default": doubled}, "probabilities", "z"),
        ("both", {"serve": doubled, "serving_default": model}, "z", "probabilities"),
    ):
        report = ke.export(model, tmp_path / name, signatures=given)
        assert sorted(report.signatures) == ["serve", "serving_default"]
        assert list(report.signatures["serve"].outputs) == [of_serve], name
        assert list(report.signatures["serving_default"].outputs) == [of_default], name
    found = consumers.cpp(tmp_path / "serve").signature(x=X)
    assert_same(found, {"z": model(X).numpy() * 2})


def test_a_model_that_was_never_called_is_served_by_its_endpoints_alone(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Quiet(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="quiet")
            self.dense = keras.layers.Dense(2)
            self.dense.build((None, 3))

        def call(self, x: Any) -> Any:
            return self.dense(x)

    model = Quiet()
    endpoint = ke.Endpoint(lambda x: {"y": model.dense(x)}, tf.TensorSpec([None, 3]))
    report = ke.export(model, tmp_path, signatures={"dense": endpoint})
    assert list(report.signatures) == ["dense"]
    assert any(note.startswith("no signature 'serve': Cannot export") for note in report.notes)
    assert_same(consumers.cpp(tmp_path).signature("dense", x=X), {"y": model.dense(X).numpy()})


def test_endpoints_are_traced_anew_with_a_model_that_changed(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(4, name="y")])
    spec = tf.TensorSpec([None, 3], name="x")
    function = tf.function(lambda x: {"z": model(x)}, input_signature=[spec])
    signatures = {"plain": (lambda x: {"z": model(x)}, spec), "function": function}
    exporter = ke.Exporter(model, signatures)
    exporter.write(tmp_path / "1")
    model.add(keras.layers.Dense(2))
    exporter.write(tmp_path / "2")
    for key in signatures:
        assert_same(consumers.cpp(tmp_path / "2").signature(key, x=X), {"z": model(X).numpy()})


def test_our_trace_of_an_endpoint_is_no_recorded_call(tmp_path: Path) -> None:
    class Counts(ke.Model):
        def call(self, counts: Any) -> Any:
            return {"y": counts * 2}

    model = Counts()
    model(tf.constant([[1, 2]]))
    fixed = ke.Endpoint(lambda x: model(x), tf.TensorSpec([1, 9], tf.float32))
    spec = tf.TensorSpec([1, 9], tf.float32)
    function = tf.function(lambda x: model(x), input_signature=[spec])
    for _ in range(2):
        report = ke.export(model, tmp_path, signatures={"fixed": fixed, "function": function})
        assert str(report.signatures["serve"]) == "(counts: int32[?, 2]) -> (y: int32[?, 2])"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"a": (3, [])}, ArgumentTypeError, "signature 'a': expected a callable, received call=3"),
        ({"a": (lambda x: x, [1])}, ArgumentTypeError, "read input_signature"),
        (
            {"a": (lambda x: x, [tf.TensorSpec([]), tf.TensorSpec([])])},
            ArgumentError,
            "expected at most 1 specs",
        ),
        ({"a": lambda x: x}, ValueError, "plain Python callable"),
        ({3: (lambda x: x, [tf.TensorSpec([])])}, ValueError, "keys of type str"),
        ({"a": (lambda x: None, [tf.TensorSpec([])])}, ValueError, "the signature 'a'"),
        (
            {"a": ke.Endpoint(lambda x: x, [tf.TensorSpec([])], uses=["table"])},
            ArgumentTypeError,
            "uses=",
        ),
    ],
)
def test_what_is_no_endpoint_is_refused(
    given: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        ke.export(classifier(), tmp_path / "a", signatures=given)
    assert list(tmp_path.iterdir()) == []


def test_what_an_endpoint_uses_and_nothing_holds_is_refused_or_declared(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    spec = tf.TensorSpec([None, 3])
    loose = ke.Endpoint(lambda x: {"y": other(x)}, spec)
    with pytest.raises(UntrackedCaptureError, match="which model does not track"):
        ke.export(model, tmp_path / "a", signatures={"other": loose})
    held = ke.Endpoint(loose.call, spec, uses=[other])
    ke.export(model, tmp_path / "a", signatures={"other": held})
    assert_same(consumers.everywhere(tmp_path / "a", "other", x=X), {"y": other(X).numpy()})
    assert len(consumers.tf(tmp_path / "a").attribute("trainable_variables")) == 4


# -- before a model -------------------------------------------------------------------------------


def test_serialized_examples_are_parsed_before_the_model(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((3,), name="x")
    count = keras.Input((), dtype="int32", name="count")
    flag = keras.Input((2,), dtype="bool", name="flag")
    half = keras.Input((1,), dtype="float16", name="half")
    word = keras.Input((), dtype="string", name="word")
    steps = keras.Input((None, 2), name="steps")
    ids = keras.layers.StringLookup(vocabulary=["a", "b"])(word)
    total = keras.ops.sum(keras.layers.Dense(2)(x), 1) + keras.ops.cast(count + 0, "float32")
    total = total + keras.ops.sum(keras.ops.cast(flag, "float32"), 1)
    total = total + keras.ops.cast(half, "float32")[:, 0] + keras.ops.sum(steps, (1, 2))
    model = keras.Model([x, count, flag, half, word, steps], {"total": total, "ids": ids})
    ke.export(model, tmp_path, signatures={"examples": ke.from_examples(model)})
    rows: list[dict[str, Any]] = [
        {"x": [1.0, 2, 3], "count": 4, "flag": [True, False], "half": 0.5, "word": "b"},
        {"x": [0.0, 1, 0], "count": -4, "flag": [True, True], "half": 2.0, "word": "z"},
    ]
    rows[0]["steps"], rows[1]["steps"] = [[1.0, 2], [3, 4]], [[5.0, 6]]
    padded = np.float32([[[1, 2], [3, 4]], [[5, 6], [0, 0]]])
    batch = [np.stack([np.asarray(row[name]) for row in rows]) for name in ("x", "count", "flag")]
    batch = [batch[0].astype("float32"), batch[1].astype("int32"), batch[2]]
    batch += [np.float16([[0.5], [2]]), tf.constant(["b", "z"]), padded]
    expected = {name: value.numpy() for name, value in model(list(map(tf.constant, batch))).items()}
    serialized = strings(*(example(**row) for row in rows))
    found = consumers.cpp(tmp_path).signature("examples", examples=serialized)
    assert_same(found, expected, rtol=1e-5)


def test_ragged_and_sparse_inputs_are_parsed_from_examples(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Sums(keras.Model):
        def call(self, words: Any, weights: Any) -> Any:
            return {
                "words": tf.strings.reduce_join(words, 1),
                "weights": tf.sparse.reduce_sum(weights, 1),
            }

    model = Sums()
    specs = [
        tf.RaggedTensorSpec([None, None], tf.string, 1),
        tf.SparseTensorSpec([None, None], tf.float32),
    ]
    exported = {"examples": ke.from_examples(ke.Endpoint(model.__call__, specs))}
    model_specs = {"input_signature": specs}
    ke.export(model, tmp_path, signatures=exported, **model_specs)
    rows = [example(args_0=["a", "b"], args_1=[1.0, 2]), example(args_0=["c"], args_1=[3.0])]
    found = consumers.cpp(tmp_path).signature("examples", examples=strings(*rows))
    assert_same(found, {"words": strings(b"ab", b"c"), "weights": np.float32([3, 3])})


def test_features_can_be_given(tmp_path: Path, consumers: Consumers) -> None:
    model = classifier()
    features = {
        "x": tf.io.FixedLenFeature([3], tf.float32, default_value=[1.0, 2.0, 3.0]),
        "more": tf.io.VarLenFeature(tf.int64),
    }
    ke.export(model, tmp_path / "a", signatures={"e": ke.from_examples(model, features)})
    found = consumers.cpp(tmp_path / "a").signature("e", examples=strings(example(other=1)))
    assert_same(found, {"probabilities": model(np.float32([[1, 2, 3]])).numpy()})
    with pytest.raises(ArgumentError, match="none for 'x'"):
        wrong = ke.from_examples(model, {"y": features["x"]})
        ke.export(model, tmp_path / "b", signatures={"e": wrong})
    free = keras.Sequential([keras.Input((None, None, 3), name="image")])
    free.add(keras.layers.GlobalMaxPooling2D())
    with pytest.raises(ArgumentError, match=r"from_examples\(model, \{'image': tf.io"):
        ke.export(free, tmp_path / "b", signatures={"e": ke.from_examples(free)})


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_encoded_images_are_decoded_and_resized_before_the_model(
    dtype: str, tmp_path: Path, consumers: Consumers
) -> None:
    model = images(dtype)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape).astype("uint8") for shape in ((8, 6, 3), (16, 12, 3))]
    grey = rng.integers(0, 256, (8, 6, 1)).astype("uint8")
    encoded = [tf.io.encode_png(pictures[0]), tf.io.encode_png(pictures[1]), tf.io.encode_png(grey)]
    encoded.append(tf.io.encode_jpeg(pictures[0], quality=100))
    ke.export(model, tmp_path, signatures={"bytes": ke.from_image_bytes(model)})
    decoded = [tf.io.decode_image(x, 3).numpy() for x in encoded]
    resized = [tf.image.resize(x, [8, 6], antialias=True).numpy() for x in decoded]
    batch = np.stack(resized)
    batch = np.clip(np.round(batch), 0, 255).astype("uint8") if dtype == "uint8" else batch
    content = strings(*(x.numpy() for x in encoded))
    found = consumers.cpp(tmp_path).signature("bytes", image_bytes=content)
    assert_same(found, {"y": model(batch).numpy()}, rtol=1e-4, atol=1e-5)


def test_images_are_preprocessed_by_a_layer_of_its_own_and_sized(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = images(shape=(None, None, 1))
    norm = keras.layers.Normalization(axis=None)
    norm.adapt(np.float32([0, 255]))
    endpoint = ke.from_image_bytes(model, size=(4, 4), preprocess=norm, method="area")
    ke.export(model, tmp_path, signatures={"bytes": endpoint})
    picture = np.arange(16, dtype="uint8").reshape(4, 4, 1)
    encoded = strings(tf.io.encode_png(picture).numpy())
    found = consumers.cpp(tmp_path).signature("bytes", image_bytes=encoded)
    expected = model(norm(picture[None].astype("float32"))).numpy()
    assert_same(found, {"y": expected}, rtol=1e-4)


def test_channels_that_come_first_are_put_first(tmp_path: Path, consumers: Consumers) -> None:
    image = keras.Input((3, 4, 5), name="image")
    model = keras.Model(image, keras.layers.Flatten(name="y")(image))
    ke.export(model, tmp_path, signatures={"bytes": ke.from_image_bytes(model)})
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype("uint8")
    encoded = strings(tf.io.encode_png(picture).numpy())
    found = consumers.cpp(tmp_path).signature("bytes", image_bytes=encoded)
    expected = picture.transpose(2, 0, 1).reshape(1, -1).astype("float32")
    assert_same(found, {"y": expected})


def test_what_takes_no_image_is_refused(tmp_path: Path) -> None:
    free = images(shape=(None, 6, 3))
    for model, words in (
        (classifier(), "expected a shape [?, height, width, channels]"),
        (free, "expected a model that fixes height and width, or size="),
    ):
        with pytest.raises(ArgumentError, match=re.escape(words)):
            ke.export(model, tmp_path / "a", signatures={"b": ke.from_image_bytes(model)})
    with pytest.raises(ArgumentTypeError, match="a Keras model or layer, or an Endpoint"):
        ke.export(free, tmp_path / "a", signatures={"b": ke.with_top_classes(3, ["a"], 1)})
    assert list(tmp_path.iterdir()) == []


def test_raw_text_is_vectorized_before_the_model(tmp_path: Path, consumers: Consumers) -> None:
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["the cat sat", "the dog"])
    tokens = keras.Input((4,), dtype="int32", name="tokens")
    h = keras.layers.Embedding(words.vocabulary_size(), 3)(tokens)
    model = keras.Model(tokens, keras.layers.Dense(2, name="y")(h))
    ke.export(model, tmp_path / "a", signatures={"text": ke.from_text(model, words)})
    text = strings("The cat", "a DOG sat.")
    found = consumers.everywhere(tmp_path / "a", "text", text=text)
    assert_same(found, {"y": model(words(tf.constant(text))).numpy()}, rtol=1e-5)
    with pytest.raises(ArgumentError, match="a model that takes strings, or vectorize="):
        ke.export(model, tmp_path / "b", signatures={"text": ke.from_text(model)})


def test_a_model_that_vectorizes_itself_takes_a_flat_batch_of_text(
    tmp_path: Path, consumers: Consumers
) -> None:
    words = keras.layers.TextVectorization(output_mode="multi_hot", vocabulary=["cat", "dog"])
    text = keras.Input((1,), dtype="string", name="words")
    model = keras.Model(text, keras.layers.Dense(2, name="y")(words(text)))
    ke.export(model, tmp_path, signatures={"text": ke.from_text(model)})
    found = consumers.cpp(tmp_path).signature("text", text=strings("a cat", "dog cat"))
    assert_same(found, {"y": model(tf.constant([["a cat"], ["dog cat"]])).numpy()}, rtol=1e-5)


# -- behind a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("from_logits", [False, True])
def test_the_best_classes_are_named(
    from_logits: bool, tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    endpoint = ke.with_top_classes(model, LABELS, k=2, from_logits=from_logits)
    report = ke.export(model, tmp_path, signatures={"classify": endpoint})
    assert str(report.signatures["classify"]) == (
        "(x: float32[?, 3]) -> (classes: string[?, 2], scores: float32[?, 2])"
    )
    scores = model(X).numpy()
    scores = tf.nn.softmax(scores).numpy() if from_logits else scores
    order = np.argsort(-scores, axis=1)[:, :2]
    found = consumers.everywhere(tmp_path, "classify", x=X)
    best = [[LABELS[i].encode() for i in row] for row in order]
    assert_same(found["classes"], np.array(best, dtype=object))
    assert_same(found["scores"], np.take_along_axis(scores, order, 1), rtol=1e-5)


def test_steps_before_and_behind_are_put_together(tmp_path: Path, consumers: Consumers) -> None:
    model = images()
    labelled = ke.with_top_classes(model, ["a", "b"], k=1)
    endpoints = {"classify": ke.from_image_bytes(labelled), "examples": ke.from_examples(labelled)}
    ke.export(model, tmp_path, signatures=endpoints)
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype("uint8")
    scores = model(picture[None].astype("float32")).numpy()
    expected = strings("ab"[int(scores.argmax())].encode()).reshape(1, 1)
    cpp = consumers.cpp(tmp_path)
    encoded = strings(tf.io.encode_png(picture).numpy())
    assert_same(cpp.signature("classify", image_bytes=encoded)["classes"], expected)
    serialized = strings(example(image=picture.astype("float32")))
    assert_same(cpp.signature("examples", examples=serialized)["classes"], expected)


def test_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = classifier()
    x = keras.Input((3,), name="x")
    two = keras.Model(x, {"a": model(x), "b": keras.layers.Dense(3)(x)})
    for k in (0, 5):
        with pytest.raises(ArgumentError, match="k from 1 to 4"):
            ke.with_top_classes(model, LABELS, k)
    with pytest.raises(ArgumentTypeError, match="labels of type str"):
        ke.with_top_classes(model, [1, 2], 1)  # type: ignore[list-item]
    for given, words in (
        (ke.with_top_classes(model, LABELS[:3], 1), "scores of shape [?, 3], a column for each"),
        (ke.with_top_classes(two, LABELS, 1), "output= one of 'a', 'b', received output=None"),
        (ke.with_top_classes(two, LABELS, 1, output="c"), "output= one of 'a', 'b'"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(words)):
            ke.export(two, tmp_path / "a", signatures={"c": given})
    report = ke.export(
        two, tmp_path / "a", signatures={"c": ke.with_top_classes(two, LABELS, 1, output="a")}
    )
    assert list(report.signatures["c"].outputs) == ["classes", "scores"]
