"""Promises of saving a loaded Keras artifact again: all loaders find what was served before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke

WORDS = np.array([[b"cat"], [b"cow"], [b"dog"]], object)
SIZES = np.float32([[1], [2], [3]])
X = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")

# Who writes first, and who writes what was loaded from there.
CHAINS = {
    "ours": (ke.save, ke.save),
    "ours twice": (ke.save, ke.save, ke.save),
    "by turns": (ke.save, tf.saved_model.save, ke.save),
    "served": (ke.export, ke.save, ke.save),
    "for TensorFlow": (ke.export, tf.saved_model.save),
}


def animals() -> keras.Model:
    """Two inputs, two outputs with names, and a table."""
    word = keras.Input((1,), dtype="string", name="word")
    size = keras.Input((1,), name="size")
    known = keras.layers.StringLookup(vocabulary=["cat", "dog"], output_mode="one_hot")(word)
    h = keras.layers.Concatenate()([known, size])
    outputs = [keras.layers.Dense(2, name=name)(h) for name in ("kind", "age")]
    return keras.Model([word, size], outputs)


def classifier() -> keras.Model:
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(5, "relu", name="hidden")(x)
    return keras.Model(x, keras.layers.Dense(4, "softmax", name="y")(h))


def saved_in_turn(obj: Any, chain: Sequence[Callable[..., Any]], folder: Path) -> Path:
    """Each writes what it loads from the one before, without a word about signatures."""
    for step, write in enumerate(chain):
        export_dir = folder / str(step)
        write(obj, str(export_dir))
        obj = tf.saved_model.load(str(export_dir))
    return export_dir


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_loaded_model_saved_again_serves_under_the_same_names(
    chain: Sequence[Callable[..., Any]], tmp_path: Path, consumers: Consumers
) -> None:
    model = animals()
    kind, age = model([tf.constant(WORDS), tf.constant(SIZES)])
    last = saved_in_turn(model, chain, tmp_path)
    os.rename(tmp_path / "0", tmp_path / "away")
    result = consumers.everywhere(last, "serving_default", word=WORDS, size=SIZES)
    assert_same(result, {"kind": kind.numpy(), "age": age.numpy()})


def test_copies_of_copies_stay_small_run_in_a_layer_and_restore_into_the_model(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    saved_in_turn(model, [ke.save] * 4, tmp_path)
    sizes = [(tmp_path / str(step) / "saved_model.pb").stat().st_size for step in (1, 2, 3)]
    assert len(set(sizes)) == 1
    layer = consumers.tfsm(tmp_path / "3", call_endpoint="serving_default")
    assert_same(layer(X), {"y": model(X).numpy()})
    values = model.get_weights()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable.value))
    checkpoint = tf.train.Checkpoint(model)
    status = checkpoint.restore(str(tmp_path / "3" / "variables" / "variables"))
    status.expect_partial()
    assert_same(model.get_weights(), values)


def test_several_endpoints_give_the_default_and_a_note_or_all_when_passed(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    hidden = keras.Model(model.input, model.get_layer("hidden").output)
    ke.export(model, tmp_path / "first", signatures={"embed": hidden})
    loaded = tf.saved_model.load(str(tmp_path / "first"))
    report = ke.save(loaded, tmp_path / "default")
    assert list(report.signatures) == ["serving_default"]
    assert report.notes == [
        "the loaded artifact's signatures 'embed', 'serve' are left out; pass "
        "signatures=obj.signatures to keep them"
    ]
    assert_same(
        consumers.everywhere(tmp_path / "default", "serving_default", x=X),
        {"y": model(X).numpy()},
    )
    assert_same(consumers.tf(tmp_path / "default").call("embed", X), hidden(X).numpy())
    report = ke.save(loaded, tmp_path / "all", signatures=loaded.signatures)
    assert (list(report.signatures), report.notes) == (["embed", "serve", "serving_default"], [])
    again = tf.saved_model.load(str(tmp_path / "all"))
    assert list(ke.save(again, tmp_path / "last").signatures) == ["serving_default"]
    result = consumers.everywhere(tmp_path / "all", "embed", x=X)
    assert_same(result, {"hidden": hidden(X).numpy()})


def test_a_model_saved_with_a_signature_of_its_own_keeps_that_one(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = classifier()
    twice = tf.function(lambda x: {"z": 2 * model(x)})
    served = twice.get_concrete_function(tf.TensorSpec([None, 3], name="x"))
    ke.save(model, tmp_path / "0", signatures=served)
    last = saved_in_turn(tf.saved_model.load(str(tmp_path / "0")), [ke.save] * 2, tmp_path / "1")
    result = consumers.everywhere(last, "serving_default", x=X)
    assert_same(result, {"z": 2 * model(X).numpy()})


def test_what_tells_the_signature_is_one_edge_of_the_object_graph(tmp_path: Path) -> None:
    ke.save(classifier(), tmp_path)
    nodes = artifacts.meta_graph(tmp_path).object_graph_def.nodes
    children = {child.local_name: child.node_id for child in nodes[0].children}
    (served,) = nodes[children["signatures"]].children
    assert children["_default_save_signature"] == served.node_id
