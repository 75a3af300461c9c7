"""What a model's configuration asks to be made, and whether it may be.

In: a parsed configuration that anybody may have written, and the names of the objects that the
caller gave. Out: the configuration without what an export does not need, or every reason to refuse
it. The invariant: no class that it names is imported or constructed; names are only looked up
among those of Keras itself.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from keras_export.sources import refuse, wrong_name

# Where Keras keeps what a model is made of, and the functions among it. Others of its modules
# hold functions that read files, fetch addresses or switch safety off (CVE-2025-8747, -9906).
_NAMESPACES = ("layers", "activations", "initializers", "regularizers", "constraints", "losses",
               "metrics", "models", "optimizers", "optimizers.schedules", "quantizers",
               "dtype_policies", "random", "ops", "ops.nn", "ops.numpy", "ops.image")  # fmt: skip
_PUBLIC = frozenset(("keras", *(f"keras.{name}" for name in _NAMESPACES)))
_PRIVATE = ("keras.src.layers.", "keras.src.ops.", "keras.src.models.", "keras.src.activations.",
            "keras.src.initializers.", "keras.src.regularizers.", "keras.src.constraints.",
            "keras.src.dtype_policies.", "keras.src.quantizers.", "keras.src.losses.",
            "keras.src.metrics.", "keras.src.random.", "keras.src.optimizers.")  # fmt: skip
_FUNCTIONS = ("activations", "initializers", "regularizers", "constraints", "losses", "metrics",
              "ops")  # fmt: skip
# They run code of the file or load another one.
_FOREIGN = {
    "TorchModuleWrapper": "runs a pickled PyTorch module",
    "TFSMLayer": "loads a SavedModel from a path",
    "JaxLayer": "runs functions of JAX",
    "FlaxLayer": "runs a module of Flax",
}
LAMBDA_FUNCTIONS = ("function", "output_shape", "mask")
_VALUES = frozenset(("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__",
                     "__slice__"))  # fmt: skip
_ARRAYS = ("__numpy__", "__tensor__")
_DTYPE = re.compile(r"[a-z]+\d{0,3}(_[a-z0-9]+)?")
# Functions that make what their arguments say.
_MAKERS = frozenset(("get", "deserialize"))
_KERAS_2 = frozenset(("keras", "tf_keras"))
_TRAINING = ("_initializer", "_regularizer", "_constraint")
_MERGERS = frozenset(("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average", "Dot"))
_TYPE_SPECS = frozenset(("TensorSpec", "RaggedTensorSpec", "SparseTensorSpec"))
_SHAPES = frozenset(("batch_shape", "batch_input_shape", "input_shape", "target_shape", "shape"))
_SIZES = frozenset(("units", "filters", "input_dim", "output_dim", "num_heads", "key_dim",
                    "kernel_size", "depth_multiplier", "state_size", "max_tokens", "num_tokens",
                    "nb_filter", "n", "pool_size", "size", "rank"))  # fmt: skip
# What Python counts up to, and the most that has been seen, by far.
_COUNTS = {"ngrams": 1 << 10, "num_oov_indices": 1 << 24, "indices_or_sections": 1 << 16,
           "num": 1 << 16}  # fmt: skip
# Sizes up to here have been seen; beyond, an array of bytes would not fit into any machine.
_MAX_ELEMENTS = 1 << 44
_MAX_SIZE = 1 << 31


def check(
    config: Any, path: str, custom: Collection[str] = (), legacy: Collection[str] = ()
) -> None:
    """Refuses a configuration that names what the caller did not give.

    Args:
        config: parsed JSON.
        path: of its file, for the error.
        custom: names of classes, functions and layers that the caller gave.
        legacy: names of classes of earlier Kerases that may stand without a module.

    Raises:
        UnsafeFileError: with all reasons, each with the name of its layer.
    """
    refuse(path, list(_Check(custom, legacy).reasons(config, "the model")), _MEND)


_MEND = (
    "Give classes and functions of yours by custom_objects={name: object}, a Lambda's function by "
    "the name of its layer; or pass safe_mode=False if you trust who made the file."
)


def without_training(config: Any) -> Any:
    """A copy without what tells how to train: an export needs no optimizer, loss or metric."""
    if isinstance(config, list):
        return [without_training(x) for x in config]
    if not isinstance(config, dict):
        return config
    return {key: without_training(x) for key, x in config.items() if key != "compile_config"}


def qualified(config: Any, custom: Collection[str] = ()) -> Any:
    """Says where the classes of Keras are, which Keras leaves out in HDF5.

    Args:
        config: parsed JSON of Keras 3, changed in place.
        custom: names of what the caller gave.

    Returns:
        The same configuration.
    """
    nodes = [config, *(node for _, node in _layers(config))]
    for node in nodes:
        name = node.get("class_name")
        if isinstance(name, str) and "module" not in node and name not in custom:
            module = _module_of(name, node)
            if module is not None:
                node.update(module=module, registered_name=None)
    return config


def _layers(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configurations themselves of the layers in a model's, and of those in them."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and isinstance(value.get("config"), dict):
                yield value["class_name"], value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _module_of(name: str, node: Mapping[str, Any]) -> str | None:
    if name == "Functional":
        return "keras.src.models.functional"
    is_operation = _is_operation(name, node)
    found = None if is_operation else _space_of(name)
    if found is not None:
        return f"keras.{found}".rstrip(".")
    # Operations on tensors are classes without a public name, some layers have another there.
    for place in ("keras.src.ops.", *(() if is_operation else ("keras.src.layers.",))):
        for module in sorted(sys.modules):
            if module.startswith(place) and _is_class_of_keras(module, name):
                return module
    return None


def _is_operation(name: str, node: Mapping[str, Any]) -> bool:
    """`Add` is a layer of a list of tensors, or the sum of two arguments."""
    nodes = node.get("inbound_nodes")
    first: Any = nodes[0] if isinstance(nodes, list) and nodes else None
    arguments: Any = first.get("args") if isinstance(first, dict) else None
    return name in _MERGERS and bool(arguments) and not isinstance(arguments[0], list)


def _space_of(name: str) -> str | None:
    for space in ("", *_NAMESPACES):
        if isinstance(_in_namespace(space, name), type):
            return space
    return None


def custom_names(config: Any) -> Iterator[tuple[str, str]]:
    """The class or function name and the registered name of every object that has both."""
    for _, node in _nodes(config, ""):
        registered = node.get("registered_name")
        name = node.get("config") if node["class_name"] == "function" else node["class_name"]
        if isinstance(registered, str) and isinstance(name, str):
            yield name, registered
        elif isinstance(name, str) and ">" in name:  # how HDF5 has it
            yield name.rpartition(">")[2], name


def in_old_form(config: Any) -> Any:
    """A copy of what Keras 2 wrote without what it says of training and of its own modules.

    The names of its classes are enough: they are looked up in a list, wherever they were.
    """
    if isinstance(config, list):
        return [in_old_form(x) for x in config]
    if not isinstance(config, dict):
        return config
    module = config.get("module")
    ours = isinstance(module, str) and module.partition(".")[0] in _KERAS_2
    dropped: tuple[str, ...] = ("compile_config",)
    if ours and config.get("registered_name") in (None, config.get("class_name")):
        dropped = (*dropped, "module", "registered_name")
    return {
        key: in_old_form(x)
        for key, x in config.items()
        if key not in dropped and not key.endswith(_TRAINING)
    }


def with_lambdas(config: Any, custom: Mapping[str, Any]) -> tuple[Any, dict[str, Any], list[str]]:
    """Puts the functions that the caller gave by layer names into their Lambdas.

    Returns:
        The configuration, changed in place; the functions by the names that it now has for them;
        a note for each.
    """
    functions, notes = {}, []
    for _, node in _nodes(config, ""):
        name = name_of(node)
        if node["class_name"] == "Lambda" and name in custom:
            key = f"function of {name}"
            functions[key] = custom[name]
            for part in LAMBDA_FUNCTIONS:
                node["config"].pop(part, None)
            node["config"]["function"] = _reference(key)
            notes.append(f"The function of the Lambda {name!r} is the one that was given.")
    return config, functions, notes


def _reference(name: str) -> dict[str, str]:
    return {"module": "builtins", "class_name": "function", "config": name,
            "registered_name": "function"}  # fmt: skip


def name_of(node: Mapping[str, Any]) -> str:
    """The name of the layer that a configuration makes; empty if it makes none."""
    inner = node.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else ""


def _nodes(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a configuration with the name of the layer that holds it."""
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(where, x) for x in reversed(value)]
        elif isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                name = name_of(value)
                where = f"layer {name[:200]!r}" if name else where
                yield where, value
            waiting += [(where, x) for x in reversed(value.values())]


class _Check:
    def __init__(self, custom: Collection[str], legacy: Collection[str]) -> None:
        self._custom, self._legacy = frozenset(custom), frozenset(legacy)

    def reasons(self, config: Any, root: str) -> Iterator[str]:
        replaced: set[int] = set()
        for where, node in _nodes(config, root):
            what = f"{where} ({node['class_name'][:200]})"
            inner = node.get("config")
            if isinstance(inner, dict):
                yield from (f"{what} {reason}" for reason in _oddities(inner))
            if node["class_name"] == "Lambda" and name_of(node) in self._custom:
                # The caller gave its function, so that the file's is not looked at.
                inner = node["config"]
                replaced |= {id(x) for key in LAMBDA_FUNCTIONS for x in _values(inner.get(key))}
            elif id(node) not in replaced and (reason := self._reason(node)):
                yield f"{what} {reason}"

    def _reason(self, node: dict[str, Any]) -> str:
        name, module, inner = node["class_name"], node.get("module"), node.get("config")
        registered = node.get("registered_name")
        if name == "__lambda__":
            return "is Python byte code"
        if name == "__typespec__":
            return self._type_spec(node)
        if name in _VALUES:
            dtype = inner.get("dtype") if isinstance(inner, dict) and name in _ARRAYS else "int8"
            fine = isinstance(dtype, str) and _DTYPE.fullmatch(dtype)
            # `S1000000000` makes a gigabyte of each element.
            return "" if fine else f"has the absurd dtype {dtype!r:.100}"
        if name == "function":
            return self._function(inner, module, registered)
        if {name, registered, name.rpartition(">")[2]} & self._custom:
            return ""
        if isinstance(registered, str) and registered != name:
            return f"is the custom class {registered!r} that was not given"
        if name in _FOREIGN:
            return _FOREIGN[name]
        if name == "Lambda":
            return self._lambda(inner)
        if module is None:
            known = name in self._legacy or _module_of(name, node) is not None
            return "" if known else f"is the custom class {name!r} that was not given"
        if not isinstance(module, str) or not _is_class_of_keras(module, name):
            return f"is {str(module)[:200]}.{name[:200]}, a custom class that was not given"
        return ""

    def _function(self, name: Any, module: Any, registered: Any) -> str:
        if not isinstance(name, str):
            return "names a function by something else than text"
        if {name, registered} & self._custom:
            return ""
        expected = ("function", name, None)
        if registered not in expected or not isinstance(module, str | None):
            return f"uses the custom function {registered!r} that was not given"
        spaces: tuple[str, ...] = _FUNCTIONS
        if module not in (None, "builtins", "keras"):
            spaces = tuple(x for x in _FUNCTIONS if f"keras.{x}" == module)
        known = any(inspect.isroutine(_in_namespace(space, name)) for space in spaces)
        if known and name not in _MAKERS:
            return ""
        return f"uses the function {str(module)[:200]}.{name[:200]} that was not given"

    def _lambda(self, inner: Any) -> str:
        """Keras 1 and 2 keep a Lambda's functions as a name or as marshalled code."""
        for key in LAMBDA_FUNCTIONS:
            value = inner.get(key) if isinstance(inner, dict) else None
            kind = inner.get(f"{key}_type") if isinstance(inner, dict) else None
            if kind == "lambda" or (key == "function" and isinstance(value, list)):
                return "holds Python byte code"
            if isinstance(value, str) and key == "function" and value not in self._custom:
                return f"uses the function {value[:200]!r} that was not given"
        return ""

    def _type_spec(self, node: Mapping[str, Any]) -> str:
        module = node.get("module")
        ours = isinstance(module, str) and module.partition(".")[0] == "tensorflow"
        if ours and node.get("spec_name") in _TYPE_SPECS:
            return ""
        return f"names the type {str(module)[:200]}.{str(node.get('spec_name'))[:200]}"


def _values(value: Any) -> Iterator[Any]:
    """A dict or list and those in it."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _values(part)


def _oddities(inner: Mapping[str, Any]) -> Iterator[str]:
    """What no layer of a sane model has among its own arguments."""
    name = inner.get("name")
    if isinstance(name, str) and (reason := wrong_name(name)):
        yield f"has a name that {reason}"
    if isinstance(inner.get("vocabulary"), str):
        # CVE-2025-12058: any file of the machine would end up in the artifact.
        yield f"reads its vocabulary from the file {inner['vocabulary'][:200]!r}"
    for key, value in inner.items():
        if key in _SHAPES and isinstance(value, list) and _elements(value) > _MAX_ELEMENTS:
            yield f"has the absurd shape {key}={value[:20]}"
        elif key in _SIZES and _largest(value) > _MAX_SIZE:
            yield f"has the absurd size {key}={value!r:.100}"
        elif isinstance(value, int) and value > _COUNTS.get(key, _MAX_SIZE**2):
            yield f"has the absurd number {key}={value}"


def _elements(shape: list[Any]) -> int:
    sizes = [size for size in shape if isinstance(size, int)]
    return math.prod(abs(size) for size in sizes) if len(sizes) <= 64 else _MAX_ELEMENTS + 1


def _largest(value: Any) -> float:
    values = value if isinstance(value, list) else [value]
    return max((abs(x) for x in values if isinstance(x, int | float)), default=0)


def _is_class_of_keras(module: str, name: str) -> bool:
    if module in _PUBLIC:
        space = module.partition(".")[2]
        return isinstance(_in_namespace(space, name), type)
    if module.startswith(_PRIVATE):
        # What is not imported by now belongs to no model of this Keras.
        found = getattr(sys.modules.get(module), name, None)
        return isinstance(found, type) and found.__module__ == module
    return False


def _in_namespace(space: str, name: str) -> Any:
    import keras

    module: Any = keras
    for part in filter(None, space.split(".")):
        module = getattr(module, part, None)
    return None if name.startswith("_") else getattr(module, name, None)
