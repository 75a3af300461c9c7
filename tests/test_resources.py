"""Promises of `resources`: tables are made and filled by every reader, from the artifact alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers, assert_same

import keras_export as ke
from keras_export.errors import UnsupportedError

WORDS = np.array([b"cat", b"dog", b"bird", b"unknown"], object)
WORD = tf.TensorSpec([None], tf.string, name="words")


def bytes_of(*texts: str) -> np.ndarray:
    return np.array([[text.encode()] for text in texts], object)


def string_lookup() -> tuple[keras.Model, np.ndarray]:
    x = keras.Input((1,), dtype="string", name="x")
    layer = keras.layers.StringLookup(vocabulary=["cat", "dog", "bird"], name="y")
    return keras.Model(x, layer(x)), bytes_of("dog", "cow", "cat")


def one_hot_lookup() -> tuple[keras.Model, np.ndarray]:
    x = keras.Input((1,), dtype="string", name="x")
    layer = keras.layers.StringLookup(vocabulary=["b", "a"], output_mode="multi_hot", name="y")
    return keras.Model(x, layer(x)), bytes_of("a", "b", "c")


def inverse_lookup() -> tuple[keras.Model, np.ndarray]:
    x = keras.Input((1,), dtype="int64", name="x")
    layer = keras.layers.StringLookup(vocabulary=["a", "b"], invert=True, name="y")
    return keras.Model(x, layer(x)), np.int64([[0], [1], [2]])


def integer_lookup() -> tuple[keras.Model, np.ndarray]:
    x = keras.Input((1,), dtype="int64", name="x")
    layer = keras.layers.IntegerLookup(vocabulary=[12, 7], name="y")
    return keras.Model(x, layer(x)), np.int64([[7], [12], [99]])


def text_vectorization() -> tuple[keras.Model, np.ndarray]:
    layer = keras.layers.TextVectorization(output_sequence_length=4, name="vectors")
    layer.adapt(["the cat sat", "the dog sat down"])
    x = keras.Input((1,), dtype="string", name="x")
    y = keras.layers.Embedding(10, 3, name="y")(layer(x))
    return keras.Model(x, y), bytes_of("The cat!", "a dog sat", "")


def tf_idf() -> tuple[keras.Model, np.ndarray]:
    layer = keras.layers.TextVectorization(output_mode="tf_idf", name="y")
    layer.adapt(["the cat sat", "the dog sat down"])
    x = keras.Input((1,), dtype="string", name="x")
    return keras.Model(x, layer(x)), bytes_of("the cat", "dog dog")


def normalization() -> tuple[keras.Model, np.ndarray]:
    layer = keras.layers.Normalization(name="y")
    layer.adapt(np.float32([[1, 10], [3, 30], [5, 50]]))
    x = keras.Input((2,), name="x")
    return keras.Model(x, layer(x)), np.float32([[3, 30], [0, 0]])


def several() -> tuple[keras.Model, np.ndarray]:
    x = keras.Input((1,), dtype="string", name="x")
    first = keras.layers.StringLookup(vocabulary=["a", "b"], name="first")
    second = keras.layers.StringLookup(vocabulary=["b", "c", "a"], name="second")
    y = keras.layers.Subtract(name="y")([first(x), second(x)])
    return keras.Model(x, y), bytes_of("a", "b", "c", "d")


LAYERS: list[Callable[[], tuple[keras.Model, np.ndarray]]] = [
    string_lookup, one_hot_lookup, inverse_lookup, integer_lookup, text_vectorization, tf_idf,
    normalization, several,
]  # fmt: skip


@pytest.mark.parametrize("write", [ke.save, ke.export])
@pytest.mark.parametrize("make", LAYERS)
def test_a_preprocessing_layer_works_in_every_reader(
    tmp_path: Path, consumers: Consumers, make: Any, write: Any
) -> None:
    model, x = make()
    write(model, tmp_path)
    (expected,) = (np.asarray(y) for y in [model(tf.constant(x))])
    result = consumers.everywhere(tmp_path, x=x)
    assert list(result) == ["y"]
    assert_same(result["y"], expected, rtol=1e-5)


class Tables(tf.Module):
    def __init__(self, path: str | None = None, keys: Any = ("cat", "dog")) -> None:
        super().__init__()
        if path is None:
            initializer = tf.lookup.KeyValueTensorInitializer(
                list(keys), [3, 5], value_dtype=tf.int64
            )
        else:
            initializer = tf.lookup.TextFileInitializer(
                path, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )  # fmt: skip
        self.table = tf.lookup.StaticHashTable(initializer, -1)
        self.offset = tf.Variable(10, dtype=tf.int64)

    @tf.function(input_signature=[WORD])
    def f(self, words: tf.Tensor) -> Any:
        return {"ids": self.table.lookup(words) + self.offset}


def test_a_table_is_filled_by_the_init_op(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(Tables(), tmp_path)
    result = consumers.everywhere(tmp_path, words=WORDS)
    assert_same(result, {"ids": np.int64([13, 15, 9, 9])})
    meta_graph = artifacts.meta_graph(tmp_path)
    init = meta_graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name
    (node,) = (x for x in meta_graph.graph_def.node if x.name == init)
    assert node.op == "NoOp" and len(node.input) == 1
    assert list(meta_graph.collection_def["saved_model_main_op"].node_list.value) == [init]


def test_a_vocabulary_file_is_copied_and_the_original_is_not_needed(
    tmp_path: Path, consumers: Consumers
) -> None:
    source = tmp_path / "source" / "words.txt"
    source.parent.mkdir()
    source.write_text("bird\ncat\n")
    export_dir = tmp_path / "artifact"
    ke.save(Tables(str(source)), export_dir)
    assert (export_dir / "assets/words.txt").read_text() == "bird\ncat\n"
    source.unlink()
    moved = export_dir.rename(tmp_path / "moved")
    result = consumers.everywhere(moved, words=WORDS)
    assert_same(result, {"ids": np.int64([11, 9, 10, 9])})
    content = (moved / "saved_model.pb").read_bytes()
    assert str(source).encode() not in content
    assert str(source.parent).encode() not in content


def test_files_of_one_name_do_not_collide(tmp_path: Path, consumers: Consumers) -> None:
    both = tf.Module()
    for name, text in (("one", "cat\n"), ("two", "dog\ncat\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "words.txt").write_text(text)
        setattr(both, name, Tables(str(tmp_path / name / "words.txt")))
    ke.save(both, tmp_path / "a", {"one": both.one.f, "two": both.two.f})
    assert len(list((tmp_path / "a/assets").iterdir())) == 2
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        artifact = reader(tmp_path / "a")
        for key, ids in (("one", [10, 9, 9, 9]), ("two", [11, 10, 9, 9])):
            assert_same(artifact.signature(key, words=WORDS), {"ids": np.int64(ids)})


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_text("cat\n")
    module = Tables(str(source))
    source.unlink()
    words = f"expected a file that exists, received asset_path={str(source)!r}"
    with pytest.raises(FileNotFoundError, match=re.escape(words)) as caught:
        ke.save(module, tmp_path / "a")
    assert isinstance(caught.value, ke.ExportError)
    assert list(tmp_path.iterdir()) == []


def test_an_asset_that_a_function_reads_is_found_in_the_artifact(
    tmp_path: Path, consumers: Consumers
) -> None:
    source = tmp_path / "text.txt"
    source.write_text("hello")

    class Reader(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asset = tf.saved_model.Asset(str(source))

        @tf.function(input_signature=[])
        def read(self) -> Any:
            return {"text": tf.io.read_file(self.asset)}

    module = Reader()
    ke.save(module, tmp_path / "a", module.read)
    source.unlink()
    assert_same(consumers.everywhere(tmp_path / "a"), {"text": np.array(b"hello", object)})


def test_two_artifacts_in_one_process_keep_their_tables_apart(
    tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(Tables(keys=("cat", "dog")), tmp_path / "a")
    ke.save(Tables(keys=("bird", "cat")), tmp_path / "b")
    for reader in (consumers.tf, consumers.v1, consumers.cpp):
        first, second = reader(tmp_path / "a"), reader(tmp_path / "b")
        for _ in range(2):
            assert_same(first.signature(words=WORDS), {"ids": np.int64([13, 15, 9, 9])})
            assert_same(second.signature(words=WORDS), {"ids": np.int64([15, 9, 13, 9])})


def test_a_table_has_the_same_name_in_every_process(tmp_path: Path) -> None:
    for name in ("1", "2"):
        ke.save(Tables(), tmp_path / name)
        ke.export(several()[0], tmp_path / f"several{name}")
        keras.utils.clear_session()
    for name in ("", "several"):
        first, second = (artifacts.files(tmp_path / f"{name}{i}") for i in ("1", "2"))
        assert [key for key in first if first[key] != second[key]] == []
    names = {
        node.attr["shared_name"].s.decode()
        for node in artifacts.nodes(tmp_path / "several1")
        if "HashTable" in node.op
    }
    assert names == {"table_0", "table_1"}


def test_a_shared_table_is_one_table(tmp_path: Path, consumers: Consumers) -> None:
    module = Tables()
    module.again = module.table
    module.other = tf.Module()
    module.other.deep = [module.table]
    ke.save(module, tmp_path)
    tables = [x for x in artifacts.nodes(tmp_path) if "HashTable" in x.op]
    assert len({table.attr["shared_name"].s for table in tables}) == 1
    main_graph = artifacts.meta_graph(tmp_path).graph_def.node
    assert len([node for node in main_graph if "HashTable" in node.op]) == 1
    assert_same(consumers.everywhere(tmp_path, words=WORDS), {"ids": np.int64([13, 15, 9, 9])})


def test_a_mutable_table_keeps_what_was_put_into_it(tmp_path: Path, consumers: Consumers) -> None:
    class Mutable(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

        @tf.function(input_signature=[WORD])
        def f(self, words: tf.Tensor) -> Any:
            return {"ids": self.table.lookup(words)}

    module = Mutable()
    module.table.insert(tf.constant(["dog", "bird"]), tf.constant([1, 2], tf.int64))
    exporter = ke.Exporter(module)
    exporter.write(tmp_path / "1")
    module.table.insert(tf.constant(["cat"]), tf.constant([9], tf.int64))
    exporter.write(tmp_path / "2")
    for name, ids in (("1", [-1, 1, 2, -1]), ("2", [9, 1, 2, -1])):
        result = consumers.everywhere(tmp_path / name, words=WORDS)
        assert_same(result, {"ids": np.int64(ids)})


def test_a_resource_that_cannot_be_made_in_a_graph_is_refused_with_its_path(
    tmp_path: Path,
) -> None:
    class Broken(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

        def _export_to_saved_model_graph(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("not in a graph")

    module = tf.Module()
    module.parts = [Broken()]
    words = (
        "Cannot export obj.parts[0] (Broken): making it in a graph failed with RuntimeError: not "
        "in a graph"
    )
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_table_is_saved_again(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(Tables(), tmp_path / "1")
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    ke.save(loaded, tmp_path / "2", signatures=loaded.signatures)
    result = consumers.everywhere(tmp_path / "2", words=WORDS)
    assert_same(result, {"ids": np.int64([13, 15, 9, 9])})


def test_a_damaged_vocabulary_file_is_noticed_by_the_reader(
    tmp_path: Path, consumers: Consumers
) -> None:
    (tmp_path / "words.txt").write_text("cat\n")
    ke.save(Tables(str(tmp_path / "words.txt")), tmp_path / "a")
    (tmp_path / "a/assets/words.txt").unlink()
    with pytest.raises(ConsumerError, match=r"words\.txt"):
        consumers.cpp(tmp_path / "a")
