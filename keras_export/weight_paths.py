"""Where Keras keeps each variable of a model in a `.weights.h5` file, and how an artifact says so.

In: a model at its export; or the text that its artifact holds, when weights go in or out. Out: the
path of each variable in such a file, as `layers/dense_1/vars/0`. The invariant: what cannot be
told is left out, never guessed; nothing of the model is changed, and reading needs no TensorFlow.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What marks our text in an artifact's object graph; the number is that of the format.
_MARK = "keras_export.weights.1:"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_MAX_TEXT_BYTES = 64 << 20


@dataclass(frozen=True)
class WeightPaths:
    """What a file of weights has.

    Attributes:
        of: the paths of each variable: a variable that two layers save has two. At an export by
            `id` of the `tf.Variable`, in an artifact by key in the checkpoint.
        computed: the paths of what Keras computes of several variables when it saves.
    """

    of: Mapping[Any, tuple[str, ...]]
    computed: tuple[str, ...] = ()


def paths_of(model: Any) -> WeightPaths:
    """The paths of a model's variables; none if Keras cannot tell."""
    found: dict[int, tuple[str, ...]] = {}
    computed: tuple[str, ...] = ()
    try:
        for value, path in _walk(model, "", set()):
            held = getattr(value, "value", value)
            if hasattr(held, "handle"):
                found[id(held)] = (*found.get(id(held), ()), path)
            elif not path.startswith("optimizer/"):
                computed = (*computed, path)
    except Exception:  # layers of users do what they like when they are asked for their state
        return WeightPaths({})
    return WeightPaths(found, computed)


def encoded(paths: WeightPaths) -> str:
    """The text for an artifact.

    >>> text = encoded(WeightPaths({"a/.ATTRIBUTES/VARIABLE_VALUE": ("layers/dense/vars/0",)}))
    >>> decoded(text).of
    {'a/.ATTRIBUTES/VARIABLE_VALUE': ('layers/dense/vars/0',)}
    """
    groups: dict[str, list[str]] = {}
    for key, several in paths.of.items():
        for path in several:
            folder, _, number = path.rpartition("/")
            if not number.isdigit():
                continue
            group = groups.setdefault(folder, [])
            group += [""] * (int(number) + 1 - len(group))
            group[int(number)] = key.removesuffix(_VALUE)
    text = json.dumps([groups, paths.computed], separators=(",", ":"))
    return _MARK + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def decoded(text: str) -> WeightPaths:
    """What `encoded` was given; nothing for the text of others."""
    if not text.startswith(_MARK):
        return WeightPaths({})
    found: dict[str, tuple[str, ...]] = {}
    try:
        packed = zlib.decompressobj()
        content = packed.decompress(base64.b64decode(text[len(_MARK) :]), _MAX_TEXT_BYTES)
        groups, computed = json.loads(content)
        for folder, names in groups.items():
            for number, name in enumerate(names):
                if name:
                    key = name + _VALUE
                    found[key] = (*found.get(key, ()), f"{folder}/{number}")
    except (ValueError, zlib.error, AttributeError, TypeError):
        return WeightPaths({})
    return WeightPaths(found, tuple(computed))


def _walk(saveable: Any, path: str, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """Source: what a `.weights.h5` file of Keras 3.4 to 3.15 holds, group by group."""
    if id(saveable) in seen:
        return
    if hasattr(saveable, "save_own_variables"):
        store: dict[str, Any] = {}
        saveable.save_own_variables(store)
        for key, value in store.items():
            yield value, _joined(path, f"vars/{key}")
    seen.add(id(saveable))
    for name, child in _children(saveable):
        if hasattr(child, "_obj_type"):
            yield from _walk(child, _joined(path, name), seen)
        elif isinstance(child, list | tuple | dict | set):
            yield from _walk_container(child, _joined(path, name), seen, set())


def _walk_container(
    container: Any, path: str, seen: set[int], open_: set[int]
) -> Iterator[tuple[Any, str]]:
    if id(container) in open_:
        return
    open_.add(id(container))
    used: dict[str, int] = {}
    for child in container.values() if isinstance(container, dict) else container:
        if hasattr(child, "_obj_type"):
            name = _numbered(in_snake_case(type(child).__name__), used)
            yield from _walk(child, _joined(path, name), seen)
        elif isinstance(child, list | dict | tuple) and _recurses_into_containers():
            name = _numbered("container", used)
            yield from _walk_container(child, _joined(path, name), seen, open_)


@functools.lru_cache(maxsize=1)
def _internals() -> Any:
    # Reading needs no TensorFlow, and an import costs time each time.
    from keras_export import tf_internals

    return tf_internals


def _children(saveable: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that Keras visits; a layer without layers in it has none worth a visit."""
    inner = getattr(saveable, "_layers", None)
    if type(saveable).__name__ in ("Functional", "Sequential") and type(
        saveable
    ).__module__.startswith("keras."):
        yield "layers", saveable.layers
    elif inner is None or inner or saveable._obj_type() != "Layer":
        yield from _internals().keras_walk_saveable(saveable)


def _recurses_into_containers() -> bool:
    recurses: bool = _internals().keras_saves_nested_containers()
    return recurses


@functools.lru_cache(maxsize=1024)
def in_snake_case(name: str) -> str:
    """The name of a class as Keras writes it in lower case.

    >>> in_snake_case("Conv2DTranspose"), in_snake_case("LSTMCell"), in_snake_case("MyLayer")
    ('conv2d_transpose', 'lstm_cell', 'my_layer')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _numbered(name: str, used: dict[str, int]) -> str:
    used[name] = used.get(name, -1) + 1
    return f"{name}_{used[name]}" if used[name] else name


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
