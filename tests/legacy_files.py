"""HDF5 files as Keras 1 and 2 wrote them, put together by hand.

In: a configuration and arrays. Out: a file. The invariant: nothing of Keras is used, so that a
file holds what the old Keras would have written and no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Weights = Mapping[str, Sequence[tuple[str, np.ndarray]]]


def layer(class_name: str, name: str, *inbound: Any, **config: Any) -> dict[str, Any]:
    """The configuration of a layer; `inbound` are the entries of its only node."""
    node = [list(x) if isinstance(x, tuple) else [x, 0, 0, {}] for x in inbound]
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [node] if node else [],
    }


def inputs(name: str, *shape: Any, **config: Any) -> dict[str, Any]:
    """An input with a free batch."""
    config = {"batch_input_shape": [None, *shape], "dtype": "float32", "sparse": False, **config}
    return layer("InputLayer", name, **config)


def sequential(*layers: dict[str, Any], old: bool = False) -> dict[str, Any]:
    """A Sequential model; in Keras 2.0 to 2.2 its configuration is a list."""
    config = [{k: x[k] for k in ("class_name", "config")} for x in layers]
    return {
        "class_name": "Sequential",
        "config": config if old else {"name": "sequential_1", "layers": config},
    }


def functional(
    layers: Sequence[dict[str, Any]],
    starts: Sequence[str],
    ends: Sequence[Any],
    class_name: str = "Model",
    name: str = "model_1",
) -> dict[str, Any]:
    """A functional model."""
    return {
        "class_name": class_name,
        "config": {
            "name": name,
            "layers": list(layers),
            "input_layers": [[x, 0, 0] for x in starts],
            "output_layers": [list(x) if isinstance(x, tuple) else [x, 0, 0] for x in ends],
        },
    }


def write(
    path: Path,
    config: Any,
    weights: Weights | None = None,
    version: str = "2.2.4",
    backend: str = "tensorflow",
) -> Path:
    """Writes a whole model, with the optimizer's state that they always have."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["backend"] = backend.encode()
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["training_config"] = json.dumps({"optimizer_config": {"class_name": "Own"}})
        file["optimizer_weights/Own/iterations:0"] = np.int64(5)
        _write_layers(file.create_group("model_weights"), weights or {})
    return path


def write_weights(path: Path, weights: Weights, version: str = "2.2.4") -> Path:
    """Writes what `save_weights` wrote."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        file.attrs["backend"] = b"tensorflow"
        _write_layers(file, weights)
    return path


def _write_layers(group: Any, weights: Weights) -> None:
    group.attrs["layer_names"] = [name.encode() for name in weights]
    for name, arrays in weights.items():
        own = group.create_group(name)
        own.attrs["weight_names"] = [weight.encode() for weight, _ in arrays]
        for weight, array in arrays:
            own[weight] = array
