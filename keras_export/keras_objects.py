"""What is a Keras object, and what it holds that TensorFlow's checkpoints do not list.

In: any object. Out: whether Keras made its class, and the functions, lists and dicts in it that a
SavedModel holds. The invariant: a program that never imported Keras does not import it here.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from keras_export import tf_internals as tfi

# Keras keeps its compiled step functions in these attributes; they are no part of a model.
_KERAS_STEP_FUNCTIONS = frozenset({"train_function", "test_function", "predict_function"})


@dataclass(frozen=True)
class Collection:
    """A list or dict of trackables that Keras tracks but TensorFlow does not wrap."""

    items: dict[str, Any]
    identifier: Literal["trackable_list_wrapper", "trackable_dict_wrapper"]


def is_keras_layer(obj: Any) -> bool:
    """Whether `obj` is a Keras 3 layer or model."""
    return (keras := _keras()) is not None and isinstance(obj, keras.layers.Layer)


def is_keras_optimizer(obj: Any) -> bool:
    """Whether `obj` is a Keras 3 optimizer."""
    return (keras := _keras()) is not None and isinstance(obj, keras.optimizers.Optimizer)


def uses_keras() -> bool:
    """Whether the program has imported Keras."""
    return _keras() is not None


_IMPORTED: list[Any] = []


def _keras() -> Any:
    # A program that never imported Keras holds no Keras object, and need not wait for the import.
    if _IMPORTED:
        return _IMPORTED[0]
    module = sys.modules.get("keras")
    if module is None or not hasattr(module, "optimizers"):  # while it is being imported
        return None
    _IMPORTED.append(module)
    return module


def is_keras_variable(obj: Any) -> bool:
    """Whether `obj` is a `keras.Variable`, or what a layer of an older Keras holds."""
    return _keras() is not None and isinstance(obj, tfi.keras_variable_class())


@functools.lru_cache(maxsize=1024)
def function_kind(cls: type) -> Literal["function", "concrete_function"] | None:
    """What of TensorFlow's functions a class is the class of; None for any other class."""
    # These are abstract base classes, which take long to say that they do not know an object.
    if issubclass(cls, tfi.PolymorphicFunction):
        return "function"
    return "concrete_function" if issubclass(cls, tfi.ConcreteFunction) else None


@functools.lru_cache(maxsize=1024)
def _has_no_functions(cls: type) -> bool:
    # A proxy says of itself that it is of another class.
    is_proxy = any("__class__" in vars(base) for base in cls.__mro__[:-1])
    return not is_proxy and function_kind(cls) is None


def keras_functions(layer: Any, of_class: Iterable[str]) -> dict[str, Any]:
    """The `tf.function`s that are methods or attributes of a Keras layer.

    TensorFlow finds them by `dir()` and `getattr`, which runs every property of every layer.
    """
    names = dict.fromkeys(of_class)
    attributes = vars(layer)
    # A layer has dozens of attributes of a dozen classes.
    if not all(map(_has_no_functions, set(map(type, attributes.values())))):
        names.update((k, None) for k, value in attributes.items() if function_kind(value.__class__))
    return {
        name: getattr(layer, name) for name in sorted(names) if name not in _KERAS_STEP_FUNCTIONS
    }


def function_names(cls: type) -> list[str]:
    """The attributes of a class that are `tf.function`s."""
    # Most attributes are plain methods; others may give a function only when they are looked up.
    names = {
        name: None
        for base in cls.__mro__
        for name, value in vars(base).items()
        if not isinstance(value, _NO_FUNCTIONS)
    }
    return [name for name in names if isinstance(getattr(cls, name, None), tfi.PolymorphicFunction)]


_NO_FUNCTIONS = (types.FunctionType, property, str, int, float, dict, type(None))


def keras_collections(layer: Any) -> dict[str, Collection]:
    """The lists and dicts of layers or variables that Keras tracks and a checkpoint leaves out."""
    found = {}
    for name in getattr(layer, "_tracked", ()):
        value = getattr(layer, name, None)
        if not isinstance(value, _COLLECTIONS):
            continue
        # Most are empty, or hold what Keras notes of a call.
        items = value.values() if isinstance(value, dict) else value
        if not any(isinstance(item, _TRACKABLE) for item in items):
            continue
        collection = _as_trackable(value)
        if isinstance(collection, Collection) and collection.items:
            found[name] = collection
    return found


def _as_trackable(value: Any) -> Any:
    """Lists, tuples, sets and dicts as `Collection`s of what is trackable in them."""
    if isinstance(value, tfi.Trackable):
        return value
    if isinstance(value, dict):
        return Collection(_trackable_items(value.items()), "trackable_dict_wrapper")
    if isinstance(value, _CONTAINERS):
        return Collection(_trackable_items(enumerate(value)), "trackable_list_wrapper")
    return value


_CONTAINERS = (list, tuple, set, frozenset)
_COLLECTIONS = (dict, *_CONTAINERS)
_TRACKABLE = (tfi.Trackable, *_COLLECTIONS)


def _trackable_items(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    items = {}
    for key, value in pairs:
        found = _as_trackable(value)
        if bool(found.items) if isinstance(found, Collection) else isinstance(found, tfi.Trackable):
            items[str(key)] = found
    return items
