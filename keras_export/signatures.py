"""The `signatures` argument → flat, named signature functions.

In: what the user passed as `signatures=`, or the tracked graph to search. Out: a
`SignatureFunction` per key: which function it calls, the name and spec of each input and output.
The invariant: a signature that leaves this module has unique valid names, tensors only, and is
what a TensorFlow 1 session, the C++ loader and Python can all call.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import tensorflow as tf

from keras_export import structures
from keras_export import tf_internals as tfi
from keras_export.errors import ReservedNameError, SignatureError, failure
from keras_export.functions import function_name
from keras_export.keras_objects import is_keras_layer
from keras_export.tracking import Node, TrackedGraph, path_text

DEFAULT_KEY = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY

# tensorflow/cc/saved_model/constants.h: the loader runs the op under this key to initialise tables.
INIT_OP_KEY = "__saved_model_init_op"

# Keras models name their signature by this attribute, in TensorFlow's artifacts and in ours.
DEFAULT_ATTRIBUTE = "_default_save_signature"

# tensorflow/core/framework/node_def_util.cc, IsValidNodeName
_VALID_NAME = re.compile(r"^[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")

_THREE_FORMS = (
    "a tf.function with an input_signature, the result of get_concrete_function(), or a dict from "
    "names to either"
)


@dataclass(frozen=True)
class SignatureInput:
    """One input: its name, its spec, and which argument of the function it feeds."""

    name: str
    spec: tf.TensorSpec
    position: int
    default: Any = None


@dataclass(frozen=True)
class SignatureOutput:
    """One output: its name, its spec, and which results of the function it is made of.

    A composite tensor (ragged, sparse) has several positions.
    """

    name: str
    spec: Any
    positions: tuple[int, ...]


@dataclass(frozen=True)
class SignatureFunction:
    """A signature, checked and named.

    Attributes:
        key: its key in the artifact.
        concrete: the function that it calls.
        inputs: in the order of the function's arguments.
        outputs: sorted by name, as a dict of the loaded function is.
        notes: what the user should know.
    """

    key: str
    concrete: Any
    inputs: tuple[SignatureInput, ...]
    outputs: tuple[SignatureOutput, ...]
    notes: tuple[str, ...] = field(default=())


def canonicalize(signatures: Any) -> dict[str, SignatureFunction]:
    """Checks what was passed as `signatures=`.

    Raises:
        SignatureError: it is none of the three accepted forms, or a function in it breaks a rule.
        ReservedNameError: a key that the format keeps for itself.
    """
    if not isinstance(signatures, Mapping):
        signatures = {DEFAULT_KEY: signatures}
    return {checked_key(key): signature_of(key, function) for key, function in signatures.items()}


def checked_key(key: Any) -> str:
    """Refuses what cannot be the key of a signature."""
    if not isinstance(key, str):
        raise SignatureError(
            failure(
                "export signatures",
                "keys of type str",
                f"key={key!r} ({type(key).__name__})",
                "Use names like 'serving_default'.",
            )
        )
    if key == INIT_OP_KEY:
        raise ReservedNameError(
            f"Cannot export the signature {key!r}: the SavedModel format keeps this key for the op "
            "that initialises tables. Choose another key."
        )
    return key


def signature_of(key: str, function: Any) -> SignatureFunction:
    """Checks one function and names what goes in and out of it."""
    concrete = concrete_of(function)
    if concrete is None:
        raise SignatureError(_nearly_meant(key, function))
    inputs, notes = _inputs(key, concrete, function)
    return SignatureFunction(key, concrete, inputs, _outputs(key, concrete), tuple(notes))


def concrete_of(function: Any) -> Any:
    """The ConcreteFunction that a signature would use, or None where there is no single one."""
    if isinstance(function, tfi.PolymorphicFunction) and function.input_signature is not None:
        return function.get_concrete_function()
    return function if isinstance(function, tfi.ConcreteFunction) else None


def untraced(signatures: Any) -> Any:
    """The same with each `tf.function` as it was before its first trace."""
    if isinstance(signatures, Mapping):
        return {key: untraced(function) for key, function in signatures.items()}
    if isinstance(signatures, tfi.PolymorphicFunction) and signatures.input_signature is not None:
        return signatures._clone(signatures.python_function)
    return signatures


def _nearly_meant(key: str, function: Any) -> str:
    what = f"export the signature {key!r}"
    received = f"signatures={function!r} ({type(function).__name__})"
    if isinstance(function, tfi.PolymorphicFunction):
        mend = (
            "It is a tf.function without input_signature: pass "
            "`f.get_concrete_function(tf.TensorSpec(...))`, or decorate it with "
            "`@tf.function(input_signature=[...])`."
        )
    elif is_keras_layer(function):
        mend = "To export a Keras model's forward pass, use `keras_export.export(model, dir)`."
    elif callable(function):
        mend = (
            "It is a plain Python callable: decorate it with `@tf.function(input_signature=[...])`."
        )
    else:
        mend = "For several signatures pass a dict from names to functions."
    return failure(what, _THREE_FORMS, received, mend)


# -- inputs -----------------------------------------------------------------------------------


def _inputs(key: str, concrete: Any, function: Any) -> tuple[tuple[SignatureInput, ...], list[str]]:
    _refuse_variables(key, concrete)
    specs = flat_input_specs(concrete)
    defaults = _defaults(function, concrete)
    notes = _check_names(key, concrete)
    found: dict[str, SignatureInput] = {}
    for position, (raw, spec) in enumerate(zip(concrete._arg_keywords, specs, strict=False)):
        name = _valid(tf.compat.as_str(raw), key, notes)
        if name in found:
            raise SignatureError(_same_name(key, concrete, name))
        spec = tf.TensorSpec(spec.shape, spec.dtype, name=name)
        found[name] = SignatureInput(name, spec, position, defaults.get(position))
    return tuple(found.values()), notes


def flat_input_specs(concrete: Any) -> list[tf.TensorSpec]:
    """The specs of a function's tensor arguments, without captures."""
    signature = concrete.structured_input_signature
    if signature is None:
        count = len(concrete.inputs) - len(concrete.captured_inputs)
        return [tf.TensorSpec(x.shape, x.dtype) for x in concrete.inputs[:count]]
    flat = tf.nest.flatten(signature, expand_composites=True)
    return [leaf for leaf in flat if isinstance(leaf, tf.TensorSpec)]


def _refuse_variables(key: str, concrete: Any) -> None:
    for leaf in tf.nest.flatten(concrete.structured_input_signature):
        if isinstance(leaf, tfi.VariableSpec):
            raise SignatureError(
                failure(
                    f"export the signature {key!r}",
                    "tensors as inputs",
                    f"an argument that is a tf.Variable ({leaf.shape}, {leaf.dtype.name})",
                    "Let the function read the variable from the object that holds it.",
                )
            )


def _check_names(key: str, concrete: Any) -> list[str]:
    """Refuses several tensors of one argument without names; notes what nobody can name.

    A composite tensor (ragged, sparse, an extension type) has no name in its spec: its author
    could not obey. Its components are numbered behind the argument's name, as for a single one.
    """
    notes, keywords = [], iter(concrete._arg_keywords)
    for name, structure, named in _arguments(concrete):
        leaves = [x for x in tf.nest.flatten(structure) if isinstance(x, tf.TypeSpec)]
        flags, unnamed, numbered = iter(named), [], []
        for leaf in leaves:
            width = len(tf.nest.flatten(leaf, expand_composites=True))
            is_named, inputs = all([*islice(flags, width)]), [*islice(keywords, width)]
            if not isinstance(leaf, tf.TensorSpec):
                numbered += inputs
            elif not is_named:
                unnamed.append(leaf)
        if len(leaves) > 1 and unnamed:
            raise SignatureError(_unnamed(key, concrete, name, len(leaves), unnamed))
        if len(leaves) > 1 and numbered:
            notes.append(
                f"signature {key!r}: the inputs {', '.join(map(tf.compat.as_str, numbered))} are "
                f"what the composite tensors in the argument {name!r} are made of, in their order; "
                "to choose the name of one, make it an argument of its own"
            )
    return notes


def _unnamed(key: str, concrete: Any, name: str, count: int, unnamed: list[Any]) -> str:
    listed = ", ".join(f"tf.TensorSpec({_shape(x)}, tf.{x.dtype.name}, name=...)" for x in unnamed)
    return failure(
        f"export the signature {key!r}",
        "one tensor per argument, or a name for each tensor",
        f"{count} tensors through the argument {name!r} of {function_name(concrete)!r}",
        f"Name each of them: {listed}.",
    )


def _shape(spec: Any) -> str:
    return str(spec.shape.as_list() if spec.shape.rank is not None else None)


def _arguments(concrete: Any) -> list[tuple[str, Any, list[bool]]]:
    """Each argument's name, its specs, and for each tensor in it whether the author named it."""
    function_type = getattr(concrete, "function_type", None)
    signature = concrete.structured_input_signature
    if function_type is None or signature is None:
        return []
    args, kwargs = signature
    positional = iter(args)
    found = []
    for parameter in function_type.parameters.values():
        by_name = parameter.name in kwargs
        structure = kwargs[parameter.name] if by_name else next(positional, None)
        constraint = parameter.type_constraint
        flat = constraint.flatten() if constraint is not None else []
        found.append((parameter.name, structure, [_is_named(x) for x in flat]))
    return found


def _is_named(spec: Any) -> bool:
    return getattr(spec, "name", None) is not None


def _defaults(function: Any, concrete: Any) -> dict[int, Any]:
    """Default values that are tensors, by the position of the flat input that they fill."""
    if not isinstance(function, tfi.PolymorphicFunction):
        return {}
    fullargspec = function.function_spec.fullargspec
    values = dict(fullargspec.kwonlydefaults or {})
    defaults = fullargspec.defaults or ()
    values.update(
        zip(fullargspec.args[len(fullargspec.args) - len(defaults) :], defaults, strict=False)
    )
    found, position = {}, 0
    for name, structure, _ in _arguments(concrete):
        flat = tf.nest.flatten(structure, expand_composites=True)
        tensors = [x for x in flat if isinstance(x, tf.TensorSpec)]
        default = tf.nest.flatten(values.get(name), expand_composites=True)
        if len(default) == len(tensors):
            pairs = enumerate(default, position)
            found.update({i: value for i, value in pairs if isinstance(value, tf.Tensor)})
        position += len(tensors)
    return found


def _valid(name: str, key: str, notes: list[str]) -> str:
    if keyword.iskeyword(name):  # graph readers are told what the author said
        notes.append(
            f"signature {key!r}: tf.saved_model.load refuses the input {name!r}, a keyword of "
            "Python, and with it the artifact; other readers load it"
        )
    if _VALID_NAME.match(name):
        return name
    mapped = re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", name)
    mapped = mapped if _VALID_NAME.match(mapped) else f"arg{mapped}"
    notes.append(
        f"signature {key!r}: the input {name!r} is called {mapped!r}, since its name cannot be the "
        "name of a graph node"
    )
    return mapped


def _same_name(key: str, concrete: Any, name: str) -> str:
    return failure(
        f"export the signature {key!r}",
        "a name of its own for each input",
        f"two inputs of {function_name(concrete)!r} called {name!r}",
        "Give one of them another name: `tf.TensorSpec(..., name=...)`.",
    )


# -- outputs ----------------------------------------------------------------------------------


def _outputs(key: str, concrete: Any) -> tuple[SignatureOutput, ...]:
    structure = structures.to_specs(concrete.structured_outputs)
    found = named_outputs(structure, f"the signature {key!r}")
    return tuple(sorted(found, key=lambda output: output.name))


def named_outputs(structure: Any, what: str) -> list[SignatureOutput]:
    """Names the results of a function by the documented rule, in the order of its results."""
    pairs = _output_pairs(structure, what)
    outputs, position = [], 0
    for name, spec in pairs:
        if not isinstance(spec, tf.TypeSpec):
            raise SignatureError(_not_flat(structure, name, spec, what))
        width = len(tf.nest.flatten(spec, expand_composites=True))
        outputs.append(SignatureOutput(name, spec, tuple(range(position, position + width))))
        position += width
    return outputs


def _output_pairs(structure: Any, what: str) -> list[tuple[str, Any]]:
    if isinstance(structure, Mapping):
        for name in structure:
            if not isinstance(name, (str, bytes)):
                raise SignatureError(
                    failure(
                        f"export {what}",
                        "a dict of outputs with keys of type str",
                        f"key={name!r} ({type(name).__name__})",
                        f"Return {{'{name}': ...}}.",
                    )
                )
        return [(tf.compat.as_str(name), structure[name]) for name in sorted(structure)]
    if hasattr(structure, "_asdict"):
        return list(structure._asdict().items())
    if not isinstance(structure, Sequence) or isinstance(structure, (str, bytes)):
        structure = [structure]
    return [(f"output_{index}", value) for index, value in enumerate(structure)]


def _not_flat(structure: Any, name: str, value: Any, what: str) -> str:
    if structure is None or (value is None and not isinstance(structure, (Mapping, Sequence))):
        return failure(
            f"export {what}",
            "a function that returns tensors",
            "a function that returns None",
            "Return a tensor, a list of tensors, or a dict from names to tensors.",
        )
    flat = [x for x in tf.nest.flatten(structure) if isinstance(x, tf.TypeSpec)]
    names = [f"output_{index}" for index in range(max(len(flat), 1))]
    if isinstance(structure, Mapping) and flat:
        with suppress(SignatureError):  # two of one name: they stay numbered
            named = structures.flat_names(structure, "output")
            names = [name for name, leaf in named if isinstance(leaf, tf.TypeSpec)]
    example = ", ".join(f"{name!r}: ..." for name in names)
    return failure(
        f"export {what}",
        "a tensor, a flat list of tensors, or a dict from names to tensors",
        f"{name}={value!r} in the result {structure!r}",
        f"Return a flat dict: {{{example}}}.",
    )


# -- search -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundSignature:
    """What a search of the root gave.

    Attributes:
        signature: under the default key; None where no function or several would do.
        several: whether several would.
        notes: on functions that were passed over.
    """

    signature: SignatureFunction | None
    several: bool
    notes: list[str]


def find_signature(graph: TrackedGraph) -> FoundSignature:
    """Searches the root for the one function that can be its signature."""
    candidates: dict[int, SignatureFunction] = {}
    notes: list[str] = []
    for name, node in graph.root.children.items():
        if node.kind not in ("function", "concrete_function"):
            continue
        if name == DEFAULT_ATTRIBUTE:
            return FoundSignature(signature_of(DEFAULT_KEY, node.obj), False, [])
        signature = _candidate(node, notes)
        if signature is not None:
            candidates[id(signature.concrete)] = signature
    if len(candidates) == 1:
        return FoundSignature(next(iter(candidates.values())), False, notes)
    if candidates:
        notes.append("no signature: several functions could be it; pass signatures= to choose")
    return FoundSignature(None, bool(candidates), notes)


def lost_note(obj: Any, kept: Iterable[str]) -> list[str]:
    """What a loaded SavedModel served and, saved again as it is, serves no more."""
    loaded = getattr(obj, "signatures", None)
    lost = sorted(set(loaded) - set(kept)) if isinstance(loaded, tfi.SignatureMap) else []
    if not lost:
        return []
    return [
        f"the loaded artifact's signatures {', '.join(map(repr, lost))} are left out; pass "
        "signatures=obj.signatures to keep them"
    ]


def _candidate(node: Node, notes: list[str]) -> SignatureFunction | None:
    concrete = concrete_of(node.obj)
    if concrete is None or not concrete.outputs:
        return None
    try:
        return signature_of(DEFAULT_KEY, node.obj)
    except SignatureError as error:
        notes.append(f"{path_text(node.path)} gives no signature: {error}")
        return None


def refuse_reserved_attribute(graph: TrackedGraph, root: str) -> None:
    """Refuses an object that uses `.signatures`, unless it came from a SavedModel.

    Raises:
        ReservedNameError: the attribute holds something else.
    """
    obj = graph.root.obj
    child = graph.root.children.get("signatures")
    value = child.obj if child is not None else getattr(obj, "__dict__", {}).get("signatures")
    if value is None or isinstance(value, tfi.SignatureMap):
        return
    raise ReservedNameError(_reserved(root, value))


def _reserved(root: str, value: Any) -> str:
    return (
        f"Cannot export {root}.signatures ({type(value).__name__}): the name `signatures` is "
        "reserved for the signatures of a loaded SavedModel. Rename the attribute, or delete it "
        f"with `del {root}.signatures`."
    )
