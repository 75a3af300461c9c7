"""Which weights of a `.keras` archive of Keras 2 belong to which layer.

In: the layers of a model with the names of their classes in the file, and the paths of its arrays.
Out: for each layer that has weights, its arrays in the order of its variables. The invariant: a
layer comes with all of its weights, or it is named as one that lacks them.

Source: what TensorFlow 2.12 to 2.15 write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_export import weight_paths
from keras_export.hdf5 import StoredWeight

# The layers of a model, of which TensorFlow 2.12 and 2.13 list those with weights twice.
_CONTAINERS = (("layers", 1), ("_layer_checkpoint_dependencies", 2))

Children = Callable[[Any], Sequence[tuple[str, Any]]]


def matched(
    model: Any, children: Children, stored: Mapping[str, StoredWeight]
) -> Iterator[tuple[Any, str, list[StoredWeight]]]:
    """Yields each layer with weights, its path in the file, and what it has there.

    Args:
        model: of the file.
        children: the layers of a model in the order of the file, each with the name of its class
            there; without a layer where nothing can have weights.
        stored: the arrays by path. A layer that lacks any comes with an empty list.
    """
    yield from _below(model, "", children, stored, set())


def _below(
    model: Any, path: str, children: Children, stored: Mapping[str, StoredWeight], seen: set[int]
) -> Iterator[tuple[Any, str, list[StoredWeight]]]:
    container, times = next(
        (x for x in _CONTAINERS if any(key.startswith(f"{path}{x[0]}/") for key in stored)),
        _CONTAINERS[0],
    )
    used: dict[str, int] = {}
    for class_name, layer in children(model):
        name = weight_paths.in_snake_case(class_name.rpartition(">")[2])
        number = used.get(name, 0)
        has_weights = layer is not None and bool(layer.weights)
        used[name] = number + (times if has_weights else 1)
        own = f"{path}{container}/{name}_{number}/" if number else f"{path}{container}/{name}/"
        if not has_weights or id(layer) in seen:
            continue
        seen.add(id(layer))
        inner = getattr(layer, "layer", None)
        if isinstance(layer, keras.Model):
            yield from _below(layer, own, children, stored, seen)
        elif isinstance(inner, keras.Model):
            yield from _below(inner, f"{own}layer/", children, stored, seen)
        else:
            yield layer, own, _of_layer(layer, own, stored)


def _of_layer(layer: Any, path: str, stored: Mapping[str, StoredWeight]) -> list[StoredWeight]:
    """Keras 3 dropped the underscores in front of the names of layers in layers."""
    below = {_plain(key[len(path) :]): x for key, x in stored.items() if key.startswith(path)}
    if isinstance(layer, keras.layers.Normalization):
        return list(below.values())
    paths = weight_paths.paths_of(layer).of
    found = []
    for variable in (*layer.trainable_weights, *layer.non_trainable_weights):
        names = [_plain(x) for x in paths.get(id(getattr(variable, "value", variable)), ())[:1]]
        names += [name.replace("cell/vars", "vars") for name in names]  # cuDNN's had no cells
        found += [below[name] for name in names if name in below][:1]
    return found if len(found) == len(layer.weights) else []


def _plain(path: str) -> str:
    return "/".join(part.lstrip("_") for part in path.split("/"))
