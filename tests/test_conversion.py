"""A file of Keras becomes a SavedModel that computes what its model did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same
from legacy_files import layer, sequential, write

import keras_export as ke
from keras_export import cli

_X = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")


@keras.saving.register_keras_serializable("conversion")
class Scaled(keras.layers.Layer):
    """A layer that Keras does not have."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="uniform", name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


def half(x: Any) -> Any:
    return x / 2


def made() -> Any:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(5, "hard_sigmoid", name="hidden")(x)
    y = keras.layers.BatchNormalization(name="norm")(y) + 1.0
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "gelu")], name="inner")
    model = keras.Model(x, keras.layers.Dense(2, name="y")(inner(y)))
    for weight in model.weights:
        weight.assign(np.random.default_rng(2).uniform(0.1, 1, weight.shape))
    return model


def saved(model: Any, path: Path) -> Path:
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.suffix == ".json":
        path.write_text(model.to_json())
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_whole_model_is_served_as_it_was(name: str, tmp_path: Path, consumers: Consumers) -> None:
    model = made()
    report = ke.convert(saved(model, tmp_path / name), tmp_path / "out")
    assert str(report.signatures["serve"]) == "(x: float32[?, 6]) -> (y: float32[?, 2])"
    found = consumers.everywhere(tmp_path / "out", x=_X)
    assert_same(found, {"y": model(_X).numpy()})


@pytest.mark.parametrize("weights", ["w.weights.h5", "w.keras", "w.h5"])
def test_an_architecture_and_its_weights_make_a_model(
    weights: str, tmp_path: Path, consumers: Consumers
) -> None:
    model = made()
    source = saved(model, tmp_path / "config.json")
    ke.convert(source, tmp_path / "out", weights=saved(model, tmp_path / weights))
    assert_same(consumers.cpp(tmp_path / "out").signature(x=_X), {"y": model(_X).numpy()})
    if weights == "w.weights.h5":
        factory = f"{__name__}:made"
        ke.convert(factory, tmp_path / "again", weights=tmp_path / weights)
        assert_same(consumers.cpp(tmp_path / "again").signature(x=_X), {"y": model(_X).numpy()})


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_custom_class_must_be_given(ending: str, tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, Scaled(name="y")(x))
    path = saved(model, tmp_path / f"model.{ending}")
    with pytest.raises(ke.UnsafeFileError, match=r"layer 'y' .* custom class 'conversion>Scaled'"):
        ke.convert(path, tmp_path / "out")
    for name in ("Scaled", "conversion>Scaled"):
        ke.convert(path, tmp_path / "out", custom_objects={name: Scaled})
        assert_same(consumers.tf(tmp_path / "out").signature(x=_X), {"y": model(_X).numpy()})


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_the_function_of_a_lambda_is_given_by_the_name_of_its_layer(
    ending: str, tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, keras.layers.Lambda(lambda t: t * 7, name="sly")(x))
    path = saved(model, tmp_path / f"model.{ending}")
    report = ke.convert(path, tmp_path / "out", custom_objects={"sly": half})
    assert report.notes[0] == "The function of the Lambda 'sly' is the one that was given."
    assert_same(consumers.tf(tmp_path / "out").signature(x=_X), {"sly": _X / 2})


def test_vocabularies_in_an_archive_are_restored(tmp_path: Path, consumers: Consumers) -> None:
    lookup = keras.layers.TextVectorization(output_sequence_length=3, name="y")
    lookup.adapt(["one two three", "two three four"])
    x = keras.Input((), dtype="string", name="x")
    model = keras.Model(x, lookup(x))
    ke.convert(saved(model, tmp_path / "model.keras"), tmp_path / "out")
    texts = np.array(["two four", "five"])
    found = consumers.cpp(tmp_path / "out").signature(x=texts)
    assert_same(found, {"y": model(keras.ops.convert_to_tensor(texts)).numpy()})


class Doubled(keras.Model):
    """A model without weights, which no HDF5 file says how to build."""

    def call(self, x: Any) -> Any:
        return x + x


def test_a_model_without_weights_needs_none(tmp_path: Path, consumers: Consumers) -> None:
    model = Doubled(name="doubled")
    model(_X)
    ke.convert(
        saved(model, tmp_path / "model.h5"),
        tmp_path / "out",
        custom_objects={"Doubled": Doubled},
        input_signature=[tf.TensorSpec((None, 6), tf.float32)],
    )
    (found,) = consumers.cpp(tmp_path / "out").signature(x=_X).values()
    assert_same(found, _X + _X)


@keras.saving.register_keras_serializable("conversion")
class Faulty(keras.layers.Layer):
    """A layer that can be made, and not be run."""

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x: Any) -> Any:
        raise AttributeError("no such thing")


def test_a_model_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    x = keras.Input((6,), name="x")
    path = saved(keras.Model(x, Faulty(name="y")(x)), tmp_path / "model.keras")
    words = r"Cannot run the model of .*model\.keras: .*no such thing"
    with pytest.raises(ke.ConversionError, match=words):
        ke.convert(path, tmp_path / "out", custom_objects={"Faulty": Faulty})
    assert not (tmp_path / "out").exists()


def of_texts(mode: str) -> keras.Model:
    texts = keras.layers.TextVectorization(output_mode=mode, name="y")
    texts.adapt(["one two", "two three"])
    return keras.Sequential([keras.Input((1,), dtype="string", name="x"), texts])


_WITHOUT_TF_IDF = pytest.mark.skipif(
    int(keras.__version__.split(".")[1]) < 14, reason="Keras loads such a layer since 3.14"
)


@pytest.mark.parametrize("mode", ["int", pytest.param("tf_idf", marks=_WITHOUT_TF_IDF)])
def test_a_vocabulary_is_read_from_the_file_that_has_it(mode: str, tmp_path: Path) -> None:
    path = saved(of_texts(mode), tmp_path / "model.keras")
    assert ke.convert(path, tmp_path / "whole").signatures


@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_a_vocabulary_that_the_file_has_not_is_told(mode: str, tmp_path: Path) -> None:
    path = saved(of_texts(mode), tmp_path / "model.h5")
    with pytest.raises(ke.ConversionError, match=r"no vocabulary for .* Save the model as \.keras"):
        ke.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.keras", "old.h5"])
def test_progress_is_told_in_bytes(name: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    if name == "old.h5":
        config = sequential(layer("Dense", "y", batch_input_shape=[None, 6], units=5))
        weights = {"y": [("kernel:0", _X.T @ _X[:, :5]), ("bias:0", _X[0, :5])]}
        path = write(tmp_path / name, config, weights)
    else:
        path = saved(made(), tmp_path / name)
    ke.convert(path, tmp_path / "out", on_progress=lambda *what: told.append(what))
    for phase in ("read", "write"):
        first, *_, last = [(done, total) for what, done, total in told if what == phase]
        assert first[0] == 0 and last[0] == last[1] > 100
    assert told == sorted(told, key=lambda what: what[0])


def test_a_layer_whose_class_has_another_name_than_keras_gives_it(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((3, 4), name="x")
    y = keras.layers.GroupQueryAttention(2, 4, 2, name="y")(x, x)  # GroupedQueryAttention
    model = keras.Model(x, y)
    ke.convert(saved(model, tmp_path / "model.h5"), tmp_path / "out")
    value = _X[:, :4].reshape(1, 4, 4)[:, :3]
    found = consumers.tf(tmp_path / "out").signature(x=value)
    assert_same(found, {"y": model(value).numpy()}, rtol=1e-5, atol=1e-6)


def test_an_unpacked_archive_is_converted_and_not_touched(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(saved(made(), tmp_path / "model.keras")) as archive:
        archive.extractall(tmp_path / "folder")
    before = {path: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    assert ke.convert(tmp_path / "folder", tmp_path / "out").signatures
    assert {path: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == before


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9)])
    weights = saved(other, tmp_path / "other.weights.h5")
    with pytest.raises(ke.ConversionError, match=r"other\.weights\.h5"):
        ke.convert(saved(made(), tmp_path / "c.json"), tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "weights", "words"),
    [
        ("w.weights.h5", None, "expected the architecture of the model, received its weights"),
        ("c.json", None, "expected its weights too, received weights=None"),
        ("c.json", "c.json", "expected a file of weights, received an architecture"),
        ("nowhere.h5", None, "expected a file, received a path without one"),
        ("out", None, "received a directory"),
        ("no_such_module:factory", None, "expected a function 'package.module:factory'"),
    ],
)
def test_what_cannot_be_a_source_is_explained(
    source: str, weights: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(made(), tmp_path / "c.json")
    saved(made(), tmp_path / "w.weights.h5")
    (tmp_path / "out").mkdir()
    with pytest.raises(ke.ExportError, match=words):
        ke.convert(source, tmp_path / "artifact", weights=weights)
    assert not (tmp_path / "artifact").exists()


def test_the_command_converts_one_file_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own.py").write_text("def half(x):\n    return x / 2\n")
    x = keras.Input((6,), name="x")
    saved(keras.Model(x, keras.layers.Lambda(half, name="sly")(x)), tmp_path / "model.keras")
    assert cli.main(["convert", "model.keras", "out", "--custom", "sly=own:half"]) == 0
    assert "serve(x: float32[?, 6]) -> (sly: float32[?, 6])" in capsys.readouterr().out
    assert cli.main(["convert", "model.keras", "out", "--activation", "sly=relu"]) == 0
    assert cli.main(["convert", "model.keras", "refused"]) == 2
    assert "layer 'sly'" in capsys.readouterr().err
    weights, config = saved(made(), tmp_path / "w.weights.h5"), saved(made(), tmp_path / "c.json")
    assert cli.main(["convert", str(config), "b", "--weights", str(weights)]) == 0
    assert cli.main(["convert", str(weights), "c", "--config", str(config)]) == 0
    assert cli.main(["convert", str(weights), "d", "--model", f"{__name__}:made"]) == 0
    (tmp_path / "folder").mkdir()
    saved(made(), tmp_path / "folder" / "one.keras")
    saved(made(), tmp_path / "folder" / "two.h5")
    (tmp_path / "folder" / "three.h5").write_text("no model")
    assert cli.main(["convert", "--batch", "folder", "all"]) == 1
    assert sorted(os.listdir("all")) == ["one", "two"]
    printed = capsys.readouterr()
    assert "three.h5" in printed.err and "Traceback" not in printed.err
    assert not (tmp_path / "refused").exists()


def _more_memory(path: Path, layers: int) -> float:
    """In MB; the weights have 8 MB in each layer."""
    script = Path(__file__).with_name("conversion_process.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(ke.__file__).parent.parent)}
    for verb in ("make", "convert"):
        found = subprocess.run(
            [sys.executable, str(script), verb, str(path), str(layers)],
            check=True, capture_output=True, text=True, env=environment,
        )  # fmt: skip
    return float(found.stdout)


def test_a_conversion_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    # A fixed part counts more in a small model: 64 MB of weights here.
    assert _more_memory(tmp_path / "large.keras", 8) < 1.3 * 64 + 48


@pytest.mark.soak
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_the_conversion_of_400_megabytes_takes_little_more(ending: str, tmp_path: Path) -> None:
    assert _more_memory(tmp_path / f"large.{ending}", 50) < 1.3 * 400
