"""Trains a classifier of handwritten digits, publishes a version per epoch, serves the best.

`make demo` runs it. The training process exports with `keras_export.SavedModelCheckpoint`; a fresh
process, which knows nothing but the directories, classifies held-out digits with the best version
through TensorFlow's Python loader and through its C++ loader. The exit status is 1 unless both give
what the live model gave at the end of that epoch. `model.export()` of the same model is timed and
measured beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # 1,797 images of 8 × 8 need no GPU

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import keras_export as ke

_EPOCHS = 10
_ROUNDS = 3  # of each export that is timed: the median is shown
_TOLERANCE = 1e-5  # of probabilities: two runs of one graph may differ in the last bits
_READER = Path(__file__).with_name("read_digits.py")
_OUT = Path(__file__).resolve().parent.parent / "demo_output"

console = Console()


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images `[n, 8, 8, 1]` of float32 from 0 to 16, and what they show."""

    images: np.ndarray
    labels: np.ndarray

    def part(self, start: int, stop: int | None) -> Digits:
        return Digits(self.images[start:stop], self.labels[start:stop])


class HeldOutPredictions(keras.callbacks.Callback):
    """Keeps what the live model says about held-out digits at the end of each epoch."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self._images = images
        self.by_epoch: dict[int, np.ndarray] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.by_epoch[epoch + 1] = self.model.predict(self._images, verbose=0)


def main(out: Path) -> int:
    started = time.perf_counter()
    for name in ("versions", "keras_export", "keras"):
        shutil.rmtree(out / name, ignore_errors=True)
    training, validation, held_out = split_digits()
    model = build_model()
    reports, live = train(model, training, validation, held_out, out / "versions")
    best = max(reports, key=lambda report: report.logs["val_accuracy"])
    show_versions(reports, best)

    with console.status("Exporting by both ways, then reading in a fresh process …"):
        ours = timed_exports(lambda path: ke.export(model, path), out / "keras_export")
        keras_own = timed_exports(model.export, out / "keras")
        read = read_in_fresh_process(held_out.images, [best.export_dir, keras_own.export_dir])
    show_signature(best)
    same = show_answers(read, best, live[best.epoch], held_out.labels)
    stall = statistics.median(report.stall_seconds for report in reports)
    show_comparison(ours, keras_own, read, best, stall)
    console.print(f"\nDone in {time.perf_counter() - started:.0f} s. The versions are in {out}.")
    return 0 if same else 1


def split_digits() -> tuple[Digits, Digits, Digits]:
    """Training, validation and held-out digits, always the same."""
    bundled = load_digits()
    order = np.random.default_rng(0).permutation(len(bundled.target))
    images = bundled.images.astype(np.float32)[..., np.newaxis]
    digits = Digits(images[order], bundled.target[order])
    return digits.part(0, 1000), digits.part(1000, 1300), digits.part(1300, None)


def build_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 16)(image)
    for filters in (16, 32):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)  # 32 steps an epoch: short memory
        x = keras.layers.Activation("relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    digit = keras.layers.Dense(10, "softmax", name="digit")(x)
    model = keras.Model(image, digit, name="digits")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(
    model: keras.Model, training: Digits, validation: Digits, held_out: Digits, versions: Path
) -> tuple[list[Any], dict[int, np.ndarray]]:
    """Trains; each epoch becomes a version in the folder `versions`.

    Returns:
        The report of each export, and the live model's predictions by epoch.
    """
    reports: list[Any] = []
    predictions = HeldOutPredictions(held_out.images)
    checkpoint = ke.SavedModelCheckpoint(
        os.path.join(versions, "{epoch}"), monitor="val_accuracy", on_export=reports.append
    )
    with console.status(f"Training {_EPOCHS} epochs on {len(training.labels)} digits …"):
        model.fit(
            training.images,
            training.labels,
            validation_data=(validation.images, validation.labels),
            epochs=_EPOCHS,
            batch_size=32,
            verbose=0,
            callbacks=[predictions, checkpoint],
        )
    return sorted(reports, key=lambda report: report.epoch), predictions.by_epoch


@dataclasses.dataclass(frozen=True)
class TimedExport:
    """One way to export: where the last one lies, and the median time."""

    export_dir: str
    seconds: float


def timed_exports(export: Callable[[str], Any], folder: Path) -> TimedExport:
    seconds = []
    for version in range(1, _ROUNDS + 1):
        export_dir = str(folder / str(version))
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints what it exported
            export(export_dir)
        seconds.append(time.perf_counter() - started)
    return TimedExport(export_dir, statistics.median(seconds))


def read_in_fresh_process(images: np.ndarray, export_dirs: list[str]) -> dict[str, Any]:
    """What `read_digits.py` finds: `{directory: {loader: {"seconds", "probabilities"}}}`."""
    with tempfile.TemporaryDirectory() as folder:
        held_out, answers = Path(folder, "images.npy"), Path(folder, "answers.json")
        np.save(held_out, images)
        command = [sys.executable, str(_READER), str(held_out), str(answers), *export_dirs]
        reading = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        if reading.returncode != 0:
            raise SystemExit(f"The fresh process failed:\n{reading.stderr}")
        return json.loads(answers.read_text())


def show_versions(reports: list[Any], best: Any) -> None:
    columns = ("epoch", "val_accuracy", "size", "written", "export", "training stopped for")
    table = new_table("A version for each epoch", *columns)
    for report in reports:
        table.add_row(
            f"{report.epoch}{' (best)' if report is best else ''}",
            f"{report.logs['val_accuracy']:.4f}",
            in_bytes(size_of(report.export_dir)),
            in_bytes(report.bytes_written),
            in_seconds(sum(report.seconds.values())),
            in_seconds(report.stall_seconds),
            style="bold" if report is best else None,
        )
    console.print(table)


def show_signature(report: Any) -> None:
    console.print(f"\nSignatures of version {Path(report.export_dir).name}:", highlight=False)
    for key, signature in report.signatures.items():
        taken, given = in_words(signature.inputs), in_words(signature.outputs)
        console.print(f"  {key}({taken}) → {given}", highlight=False, markup=False)


def in_words(specs: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}: {spec.dtype.name} {list(spec.shape)}" for name, spec in specs.items()
    )


def show_answers(read: dict[str, Any], best: Any, live: np.ndarray, labels: np.ndarray) -> bool:
    """Prints the accuracies; whether every loader gives what the live model gave."""
    columns = ("who answers", "right", "accuracy", "farthest from live", "")
    table = new_table(f"{len(labels)} held-out digits, version {best.epoch}", *columns)
    all_same = True
    answers = {"live model": live} | {
        f"{loader} loader, fresh process": np.array(found["probabilities"], np.float32)
        for loader, found in read[best.export_dir].items()
    }
    for who, probabilities in answers.items():
        right = int(np.sum(probabilities.argmax(-1) == labels))
        distance = float(np.abs(probabilities - live).max())
        same = distance <= _TOLERANCE and right == int(np.sum(live.argmax(-1) == labels))
        all_same = all_same and same
        verdict = "[green]same[/]" if same else "[red]DIFFERENT[/]"
        table.add_row(who, str(right), f"{right / len(labels):.4f}", f"{distance:.1e}", verdict)
    console.print(table)
    return all_same


def show_comparison(
    ours: TimedExport, keras_own: TimedExport, read: dict[str, Any], best: Any, stall: float
) -> None:
    title = "One export of this model, by either way"
    table = new_table(title, "", "keras_export", "model.export()", "ratio")
    our_read, keras_read = read[best.export_dir], read[keras_own.export_dir]
    rows: list[tuple[str, Callable[[float], str], float, float]] = [
        ("time of an export", in_seconds, ours.seconds, keras_own.seconds),
        ("training stopped for", in_seconds, stall, keras_own.seconds),
        ("size", in_bytes, size_of(ours.export_dir), size_of(keras_own.export_dir)),
        ("saved_model.pb", in_bytes, graph_size(ours), graph_size(keras_own)),
    ]
    for loader in our_read:
        times = our_read[loader]["seconds"], keras_read[loader]["seconds"]
        rows.append((f"load by the {loader} loader", in_seconds, *times))
    for what, words, our_value, keras_value in rows:
        ratio = f"{keras_value / our_value:.1f} ×" if our_value else "–"
        table.add_row(what, words(our_value), words(keras_value), ratio)
    console.print(table)


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def size_of(export_dir: str) -> int:
    return sum(path.stat().st_size for path in Path(export_dir).rglob("*") if path.is_file())


def graph_size(export: TimedExport) -> int:
    return Path(export.export_dir, "saved_model.pb").stat().st_size


def in_bytes(count: float) -> str:
    return f"{count / 1000:,.1f} kB"


def in_seconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else _OUT))
