"""Weights go into an artifact and out of it, bit for bit and without the model's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from consumers import Consumers, assert_same
from legacy_files import write_weights

import keras_export as ke
from keras_export import bundles, cli

_REPOSITORY = Path(ke.__file__).parent.parent
_PATHS = (_REPOSITORY, _REPOSITORY / "tests")
_X = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")
# Keras merges low-rank updates into the kernel when it saves: they can't be taken apart again.
_MERGED = frozenset(("low_rank_dense", "low_rank_embedding", "quantized_with_low_rank"))
_SAMPLE = ("bidirectional_lstm", "spectral_normalization", "stateful_lstm", "subclassed_nested",
           "bfloat16", "quantized_to_four_bits", "functional_models_in_models")  # fmt: skip


def made(seed: int = 3) -> Any:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    x = keras.Input((6,), name="x")
    y = keras.layers.Dense(5, "relu", name="hidden")(x)
    y = keras.layers.BatchNormalization(name="norm")(y)
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name="in")], name="inner")
    y = keras.layers.Dropout(0.5, name="drop")(inner(y))
    model = keras.Model(x, keras.layers.Dense(2, name="y")(y))
    for weight in model.weights:
        weight.assign(np.random.default_rng(seed).uniform(0.1, 1, weight.shape))
    return model


def exported(model: Any, path: Path) -> Path:
    ke.export(model, path)
    return path


def kinds_with_weights() -> list[str]:
    return [name for name, kind in zoo.KINDS.items() if kind.available and name not in _MERGED]


def goes_around(name: str, folder: Path) -> None:
    """Model to file to artifact to file to model, bit for bit."""
    kind = zoo.KINDS[name]
    model = kind.make()
    if not hasattr(model, "save_weights") or not model.weights:
        return
    values = [np.array(x) for x in model.weights]
    options = {} if kind.input_signature is None else {"input_signature": kind.input_signature}
    model.save_weights(folder / "given.weights.h5")
    blank(model)
    ke.export(model, folder / "blank", **options)
    ke.reweight(folder / "blank", folder / "given.weights.h5", folder / "filled")
    ke.extract_weights(folder / "filled", folder / "taken.weights.h5")
    with warnings.catch_warnings():
        # A model that was compiled has an optimizer, which no artifact of `export` holds.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model.load_weights(folder / "taken.weights.h5")
    for weight, value in zip(model.weights, values, strict=True):
        assert np.array(weight).tobytes() == value.tobytes(), (name, weight.path)


def blank(model: Any) -> None:
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape, np.array(weight).dtype))


@pytest.mark.parametrize("name", [x for x in _SAMPLE if zoo.KINDS[x].available])
def test_weights_go_around_bit_for_bit(name: str, tmp_path: Path) -> None:
    goes_around(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", kinds_with_weights())
def test_weights_of_the_whole_zoo_go_around_bit_for_bit(name: str, tmp_path: Path) -> None:
    goes_around(name, tmp_path)


@pytest.mark.parametrize("source", ["w.weights.h5", "w.h5", "w.keras", "checkpoint", "artifact"])
def test_an_artifact_gets_the_weights_of_any_source(
    source: str, tmp_path: Path, consumers: Consumers
) -> None:
    later = made(9)
    path = tmp_path / source
    if source == "w.weights.h5":
        later.save_weights(path)
    elif source == "checkpoint":
        tf.train.Checkpoint(later).write(str(path))
    elif source == "artifact":
        exported(later, path)
    else:
        later.save(path)
    report = ke.reweight(exported(made(), tmp_path / "a"), path, tmp_path / "b")
    assert_same(consumers.everywhere(tmp_path / "b", x=_X), {"y": later(_X).numpy()})
    assert set(report.matched) >= {weight.path for weight in later.weights}
    fresh = made()
    status = tf.train.Checkpoint(fresh).restore(str(tmp_path / "b" / "variables" / "variables"))
    status.expect_partial()  # the state of a random generator
    assert_same(fresh(_X).numpy(), later(_X).numpy())


def test_the_fingerprint_tells_the_new_weights(tmp_path: Path, consumers: Consumers) -> None:
    made(9).save_weights(tmp_path / "w.weights.h5")
    ke.reweight(exported(made(), tmp_path / "a"), tmp_path / "w.weights.h5", tmp_path / "b")
    before, after = consumers.fingerprint(tmp_path / "a"), consumers.fingerprint(tmp_path / "b")
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"checkpoint_hash", "uuid"} and "checkpoint_hash" in changed
    assert (tmp_path / "a" / "saved_model.pb").read_bytes() == (
        tmp_path / "b" / "saved_model.pb"
    ).read_bytes()
    bundle = bundles.read_bundle(str(tmp_path / "b" / "variables" / "variables"))
    assert bundle is not None
    assert all(bundle.is_sound(entry) for _, entry in bundle.stored())


def test_an_artifact_is_reweighted_in_place(tmp_path: Path, consumers: Consumers) -> None:
    later = made(9)
    later.save_weights(tmp_path / "w.weights.h5")
    artifact = exported(made(), tmp_path / "a")
    ke.reweight(artifact, tmp_path / "w.weights.h5", artifact)
    assert_same(consumers.cpp(artifact).signature("serve", x=_X), {"y": later(_X).numpy()})


def test_every_mismatch_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    kernel = np.zeros((6, 4), "float32")
    write_weights(tmp_path / "w.h5", {"hidden": [("hidden/kernel:0", kernel)],
                                      "other": [("other/kernel:0", kernel)]})  # fmt: skip
    artifact = exported(made(), tmp_path / "a")
    with pytest.raises(ke.ConversionError) as refusal:
        ke.reweight(artifact, tmp_path / "w.h5", tmp_path / "b", names={"nobody": "x"})
    for words in ("hidden/kernel has the shape (6, 5), hidden: hidden/kernel:0 (6, 4)",
                  "hidden/bias has no weight", "y/kernel has no weight",
                  "other: other/kernel:0 is not used", "'nobody', which is no variable",
                  "allow="):  # fmt: skip
        assert words in str(refusal.value)
    assert not (tmp_path / "b").exists()
    report = ke.reweight(artifact, tmp_path / "w.h5", tmp_path / "b", allow=["*"])
    assert report.matched == {} and "hidden/kernel" in report.kept
    assert "other: other/kernel:0" in report.unused


def test_what_is_allowed_keeps_its_values(tmp_path: Path, consumers: Consumers) -> None:
    later, earlier = made(9), made()
    write_weights(tmp_path / "w.h5", {"y": [
        (f"{x.path}:0", x.numpy()) for x in later.get_layer("y").weights]})  # fmt: skip
    allow = ["hidden/*", "norm/*", "inner/*"]
    artifact = exported(earlier, tmp_path / "a")
    ke.reweight(artifact, tmp_path / "w.h5", tmp_path / "b", allow=allow)
    for old, new in zip(earlier.get_layer("y").weights, later.get_layer("y").weights, strict=True):
        old.assign(new)
    found = consumers.tf(tmp_path / "b").signature("serve", x=_X)
    assert_same(found, {"y": earlier(_X).numpy()})


@pytest.mark.parametrize("writer", ["keras", "tensorflow"])
def test_artifacts_of_others_go_by_the_names_of_variables(
    writer: str, tmp_path: Path, consumers: Consumers
) -> None:
    later, model = made(9), made()
    if writer == "keras":
        model.export(tmp_path / "a")
    else:
        tf.saved_model.save(model, tmp_path / "a")
    later.save(tmp_path / "w.h5")
    ke.reweight(tmp_path / "a", tmp_path / "w.h5", tmp_path / "b")
    found = consumers.tf(tmp_path / "b")
    key = "serve" if writer == "keras" else "serving_default"
    (value,) = found.signature(key, **{next(iter(found.signatures()[key]["inputs"])): _X}).values()
    assert_same(value, later(_X).numpy())
    with pytest.raises(ke.ConversionError, match=r"does not say where in it .*hidden/kernel"):
        ke.extract_weights(tmp_path / "b", tmp_path / "out.weights.h5")
    ke.extract_weights(tmp_path / "b", tmp_path / "out.h5")
    fresh = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="hidden")])
    with h5py.File(tmp_path / "out.h5") as file:
        assert "hidden" in file.attrs["layer_names"] or b"hidden" in file.attrs["layer_names"]
        kernel = file["hidden/hidden/kernel"][()]
    assert fresh.layers[0].kernel.shape == kernel.shape
    assert_same(kernel, later.get_layer("hidden").kernel.numpy())


def test_ambiguous_names_are_refused_until_a_map_settles_them(
    tmp_path: Path, consumers: Consumers, capsys: pytest.CaptureFixture[str]
) -> None:
    class Twins(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = tf.Variable([1.0], name="v"), tf.Variable([2.0], name="v")

        @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
        def serve(self, x: Any) -> Any:
            return {"y": x * self.a + self.b}

    tf.saved_model.save(Twins(), tmp_path / "a")
    write_weights(tmp_path / "w.h5", {"one": [("v:0", np.array([5.0], "float32"))],
                                      "two": [("v:0", np.array([7.0], "float32"))]})  # fmt: skip
    arguments = ["reweight", str(tmp_path / "a"), str(tmp_path / "w.h5"), str(tmp_path / "b")]
    assert cli.main(arguments) == 2
    assert "one: v:0" in capsys.readouterr().err
    (tmp_path / "map.json").write_text(json.dumps({"a": "one: v:0", "b": "two: v:0"}))
    assert cli.main([*arguments, "--map", str(tmp_path / "map.json")]) == 0
    assert "2 variables" in capsys.readouterr().out
    found = consumers.tf(tmp_path / "b").signature(x=np.float32(10))
    assert_same(found, {"y": np.array([57.0], "float32")})


def test_the_commands_put_weights_in_and_take_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later, fresh = made(9), made()
    later.save_weights(tmp_path / "w.weights.h5")
    exported(made(), tmp_path / "a")
    weights, out = str(tmp_path / "w.weights.h5"), str(tmp_path / "out.weights.h5")
    assert cli.main(["reweight", str(tmp_path / "a"), weights, str(tmp_path / "b")]) == 0
    assert cli.main(["weights", str(tmp_path / "b"), out]) == 0
    fresh.load_weights(out)
    assert_same(fresh(_X).numpy(), later(_X).numpy())
    assert cli.main(["weights", str(tmp_path / "b"), str(tmp_path / "out.txt")]) == 2
    assert ".weights.h5" in capsys.readouterr().err


def test_progress_is_told_in_bytes_up_to_the_last(tmp_path: Path) -> None:
    model, told = made(), []
    model.save_weights(tmp_path / "w.weights.h5")
    artifact = exported(model, tmp_path / "a")

    def tell(*what: Any) -> None:
        told.append(what)

    ke.reweight(artifact, tmp_path / "w.weights.h5", tmp_path / "b", on_progress=tell)
    ke.extract_weights(artifact, tmp_path / "x.weights.h5", on_progress=tell)
    size = sum(weight.numpy().nbytes for weight in model.weights)
    assert {what for what, _, _ in told} == {"weights"}
    done = [done for _, done, total in told if total == size]
    assert sorted(done) == done and done[-1] == size and len(done) == len(model.weights)
    whole = [done for _, done, total in told if total > size]  # with what the model counts
    assert sorted(whole) == whole and whole[-1] == max(total for *_, total in told)


def test_low_rank_updates_are_not_taken_apart(tmp_path: Path) -> None:
    model = zoo.KINDS["low_rank_dense"].make()
    artifact = exported(model, tmp_path / "a")
    with pytest.raises(ke.ConversionError, match="lora_kernel_a"):
        ke.extract_weights(artifact, tmp_path / "out.weights.h5")
    assert not (tmp_path / "out.weights.h5").exists()


_MEASURED = """
import sys
from keras_export import reweighting
from peak_memory import peak_bytes
artifact, weights, out = sys.argv[1:]
before = peak_bytes()
reweighting.reweight(artifact, weights, out)
reweighting.extract_weights(out, out + ".weights.h5")
assert not {"tensorflow", "keras"} & set(sys.modules)
print((peak_bytes() - before) / (1 << 20))
"""


def _measured_megabytes(units: int, layers: int, folder: Path) -> float:
    model = keras.Sequential([keras.Input((units,), name="x"), *(
        keras.layers.Dense(units, use_bias=False, kernel_initializer="zeros")
        for _ in range(layers))])  # fmt: skip
    exported(model, folder / "a")
    model.save_weights(folder / "w.weights.h5")
    found = subprocess.run(
        [sys.executable, "-c", _MEASURED, folder / "a", folder / "w.weights.h5", folder / "b"],
        check=True, capture_output=True, text=True, cwd=_REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _PATHS))},
    )  # fmt: skip
    return float(found.stdout)


def test_reweight_needs_no_tensorflow_and_little_memory(tmp_path: Path) -> None:
    # 200 MB of weights, of which the largest variable has 50.
    assert _measured_megabytes(3600, 4, tmp_path) < 50 + 400


@pytest.mark.soak
def test_reweight_of_a_large_model_needs_little_memory(tmp_path: Path) -> None:
    # 1.6 GB of weights, of which the largest variable has 400 MB.
    assert _measured_megabytes(10_000, 4, tmp_path) < 400 + 400
