"""Classifies digits with SavedModels, by two loaders, knowing nothing of who wrote them.

    python read_digits.py IMAGES.npy ANSWERS.json EXPORT_DIR [EXPORT_DIR ...]

`digits.py` runs it as the process that would serve the model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

import numpy as np
import tensorflow as tf

from keras_export import cpp_loader

_SIGNATURE = "serving_default"
_ROUNDS = 3  # the first load in a process also starts TensorFlow: the fastest is reported


def by_python(export_dir: str) -> Callable[[np.ndarray], np.ndarray]:
    loaded = tf.saved_model.load(export_dir)
    signature = loaded.signatures[_SIGNATURE]
    (name,) = signature.structured_input_signature[1]

    def classify(images: np.ndarray, loaded: Any = loaded) -> np.ndarray:  # keeps the variables
        (output,) = signature(**{name: tf.constant(images)}).values()
        return output.numpy()

    return classify


def by_cpp(export_dir: str) -> Callable[[np.ndarray], np.ndarray]:
    session = cpp_loader.Session(export_dir)
    (name,) = session.signatures[_SIGNATURE].inputs

    def classify(images: np.ndarray) -> np.ndarray:
        with session:
            (output,) = session.run(_SIGNATURE, {name: images}).values()
        return output

    return classify


LOADERS = {"Python": by_python, "C++": by_cpp}


def main(images: Path, answers: Path, *export_dirs: str) -> None:
    pixels = np.load(images)
    found: dict[str, Any] = {export_dir: {} for export_dir in export_dirs}
    for loader, load in LOADERS.items():
        seconds: dict[str, list[float]] = {export_dir: [] for export_dir in export_dirs}
        for export_dir in export_dirs * _ROUNDS:
            started = time.perf_counter()
            classify = load(export_dir)
            seconds[export_dir].append(time.perf_counter() - started)
            found[export_dir][loader] = {
                "seconds": min(seconds[export_dir]),
                "probabilities": classify(pixels).tolist(),
            }
    answers.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
