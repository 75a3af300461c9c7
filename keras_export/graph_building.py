"""Graphs that grow in less time than TensorFlow's Python takes.

In: the graph of a function that is being traced. Out: a scope in which its ops are made by fewer
steps. The invariant: the graph is the one that TensorFlow makes. What follows from the kind of an
op, its dtypes and its attributes is learned from the first one that TensorFlow makes; where a scope
of devices, control dependencies or the like is open, or anything is unusual, TensorFlow makes every
one.

Most of the time of a trace goes into Python that works all this out anew for each op.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import substitution
from keras_export import tf_internals as tfi

# Where a graph keeps who builds it.
_BUILDER = "_keras_export_builder"

# Source: Operation.from_node_def in tensorflow/python/framework/ops.py
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*$")

# Attributes of these types are compared, each with its class: 1, 1.0 and True are equal.
_PLAIN = frozenset({bool, int, str, bytes, type(None)})

_RESOURCE = tf.resource.as_datatype_enum
_ANY = frozenset(tfi.types_pb2.DataType.values())


@contextlib.contextmanager
def quick_building(graph: Any) -> Iterator[None]:
    """While it lasts, ops that are added to `graph` are made by fewer steps.

    The ops do not know the lines of code that made them.

    Args:
        graph: the FuncGraph that is being traced. Graphs inside it, of branches and loops, grow as
            they always do.
    """
    if type(graph) is not tfi.FuncGraph or graph.capture_by_value or tfi.observes_ops():
        yield
        return
    builder = _Builder(graph)
    library = tfi.op_def_library
    changed = functools.partial(_apply, library._apply_op_helper)
    graph._create_op_internal, graph.capture = builder.create, builder.capture
    setattr(graph, _BUILDER, builder)
    try:
        with substitution.substituted([(library, "_apply_op_helper", changed)]):
            yield
        builder.end()
    finally:
        # Those of the class come to light again.
        del graph._create_op_internal, graph.capture
        delattr(graph, _BUILDER)


def _apply(original: Callable[..., Any], op_type: str, name: Any = None, **keywords: Any) -> Any:
    # Other threads trace, too, and so do functions that the one that is being traced calls.
    builder = getattr(tfi.get_default_graph(), _BUILDER, None)
    if builder is None:
        return original(op_type, name, **keywords)
    return builder.apply(original, op_type, name, keywords)


@dataclass(frozen=True)
class _Input:
    """An input of a kind of op.

    Attributes:
        name: in the OpDef.
        is_list: whether it is several tensors.
        dtype: its dtype, as a number, where the kind fixes it, else 0.
        type_attr: the attribute that its dtype is, or "".
        default: the dtype that a Python value is to have if it can, where no tensor decided, as a
            number; else 0.
        allowed: dtypes, as numbers, of which a Python value may decide for another; None if
            TensorFlow does not leave that to the value.
    """

    name: str
    is_list: bool
    dtype: int
    type_attr: str
    default: int
    allowed: frozenset[int] | None


@dataclass(frozen=True)
class _Kind:
    """What is known of a kind of op.

    Attributes:
        inputs: its inputs; None if TensorFlow makes all its ops.
        names: those of the inputs.
        defaults: of its attributes, serialized.
        inferred: the attributes that follow from its inputs.
    """

    inputs: tuple[_Input, ...] | None = None
    names: frozenset[str] = frozenset()
    defaults: tuple[tuple[str, bytes], ...] = ()
    inferred: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Recipe:
    """What TensorFlow made of a kind of op with some dtypes and attributes.

    Attributes:
        attributes: those that must be told, serialized.
        structure: of its outputs, as TensorFlow describes it.
        is_stateful: likewise.
    """

    attributes: tuple[tuple[str, bytes], ...]
    structure: Any
    is_stateful: bool


class _Builder:
    """Makes the ops of one graph."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._create: Callable[..., Any] = graph._create_op_internal
        self._capture: Callable[..., Any] = graph.capture
        self._kinds: dict[str, _Kind] = {}
        self._recipes: dict[Any, _Recipe] = {}
        self._last: tuple[Any, Any] = (None, None)
        self._first = graph.num_operations()
        self._made = 0
        self._only_reads = True

    # -- what is called in place of TensorFlow's functions ----------------------------------------

    def apply(
        self, original: Callable[..., Any], op_type: str, name: Any, keywords: dict[str, Any]
    ) -> Any:
        """Makes an op of what may have to become tensors first, as `_apply_op_helper` does."""
        kind = self._kinds.get(op_type) or self._learn_kind(op_type)
        scope = name or op_type
        if kind.inputs is None or not self._is_plain() or not _NAME.match(scope):
            return original(op_type, name, **keywords)
        said = _comparable_attributes(kind, keywords)
        values = [keywords.get(x.name) for x in kind.inputs]
        dtypes, are_tensors = _dtypes_of(kind.inputs, values)
        if said is None or dtypes is None:
            return original(op_type, name, **keywords)
        key = op_type, dtypes, said
        recipe = self._recipes.get(key)
        if recipe is None:
            return self._learn(kind, key, original, name, keywords)
        if are_tensors:
            return self._follow(recipe, op_type, self._unique(scope), values)
        with self._graph.name_scope(scope) as opened:
            tensors = _converted(kind.inputs, values)
        # What was opened is opened again by its name, and gives the op its own.
        if tensors is None:  # TensorFlow is to say what is wrong with them
            return original(op_type, opened, **keywords)
        key = op_type, _dtypes_of(kind.inputs, tensors)[0], said
        recipe = self._recipes.get(key)
        if recipe is None:
            keywords |= {x.name: tensor for x, tensor in zip(kind.inputs, tensors, strict=True)}
            return self._learn(kind, key, original, opened, keywords)
        return self._follow(recipe, op_type, opened[:-1], tensors)

    def create(
        self,
        op_type: str,
        inputs: Sequence[Any],
        dtypes: Any = None,
        input_types: Any = None,
        name: str | None = None,
        attrs: Any = None,
        op_def: Any = None,
        compute_device: bool = True,
    ) -> Any:
        """Makes an op of tensors, as `FuncGraph._create_op_internal` does."""
        # Constants come here; nothing can be known of them.
        if not inputs and name and _NAME.match(name) and self._is_plain():
            said = [(key, value.SerializeToString()) for key, value in (attrs or {}).items()]
            return self._make(op_type, self._unique(name), (), said)
        op = self._create(op_type, inputs, dtypes, input_types, name, attrs, op_def, compute_device)
        self._last = op, attrs
        self._note(op_type)
        return op

    def capture(self, tensor: Any, name: str | None = None, shape: Any = None) -> Any:
        """Makes a tensor from elsewhere one of this graph, as `FuncGraph.capture` does."""
        if isinstance(tensor, tfi.EagerTensor):
            captures = self._graph.function_captures
            known = captures.by_val_internal.get(id(tensor))
            if known is not None:
                known._record_tape(tensor)  # a GradientTape may be open that was not before
                return known
            if tensor.dtype == tf.resource and not tensor.is_packed and self._is_plain():
                placeholder = self._placeholder_for(tensor)
                captures.add_or_replace(
                    key=id(tensor),
                    external=tensor,
                    internal=placeholder,
                    tracetype=tensor.__tf_tracing_type__(None),
                )
                self._graph.inputs.append(placeholder)
                placeholder._record_tape(tensor)
                return placeholder
        return self._capture(tensor, name, shape)

    def end(self) -> None:
        """Where nothing is written, spares TensorFlow to look for what must be put in order."""
        graph = self._graph
        is_known = self._first + self._made == graph.num_operations()
        if is_known and self._only_reads and graph.experimental_acd_manager is not None:
            graph.experimental_acd_manager._n_operations = graph.num_operations()

    # -- how it is done ---------------------------------------------------------------------------

    def _is_plain(self) -> bool:
        """Whether no scope is open that changes the ops made in it."""
        graph = self._graph
        return not (
            graph._control_dependencies_stack
            or graph._colocation_stack
            or graph._device_function_stack
            or graph._attr_scope_map
            or graph._op_to_kernel_label_map
            or graph._gradient_function_map
            or graph._control_flow_context is not None
            or graph._default_original_op is not None
            or graph._container
        )

    def _unique(self, name: str) -> str:
        # What ends with a slash is a scope that was made for the op.
        return name[:-1] if name[-1] == "/" else self._graph.unique_name(name)

    def _learn_kind(self, op_type: str) -> _Kind:
        op_def = tfi.op_def_of(op_type)
        kind = self._kinds[op_type] = _Kind() if op_def is None else _kind_of(op_def)
        return kind

    def _learn(
        self,
        kind: _Kind,
        key: tuple[str, Any, Any],
        original: Callable[..., Any],
        name: Any,
        keywords: dict[str, Any],
    ) -> Any:
        """Lets TensorFlow make an op and notes how it is made."""
        op_type, dtypes, said = key
        result = original(op_type, name, **keywords)
        structure, is_stateful, op, _ = result
        made, attributes = self._last
        self._last = None, None
        if made is op and kind.inputs is not None:
            told = {name: value.SerializeToString() for name, value in attributes.items()}
            recipe = _Recipe(
                tuple(
                    (name, value)
                    for name, value in told.items()
                    if name not in kind.inferred and (name, value) not in kind.defaults
                ),
                structure,
                is_stateful,
            )
            lengths = [len(keywords[x.name]) if x.is_list else 0 for x in kind.inputs]
            found, _ = _dtypes_of(kind.inputs, _grouped(op.inputs, kind.inputs, lengths))
            self._recipes[op_type, found, said] = recipe
            # Where a value decided, the next one may decide otherwise: its dtype is looked up.
            self._recipes[op_type, dtypes, said] = recipe
        return result

    def _follow(self, recipe: _Recipe, op_type: str, name: str, values: list[Any]) -> Any:
        """What `_apply_op_helper` returns, of an op made by a recipe."""
        op = self._make(op_type, name, [self._own(x) for x in values], recipe.attributes)
        return recipe.structure, recipe.is_stateful, op, op.outputs

    def _own(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._own(x) for x in value]
        is_own = type(value) is tfi.SymbolicTensor and value.graph is self._graph
        return value if is_own else self.capture(value)

    def _make(
        self,
        op_type: str,
        name: str,
        inputs: Iterable[Any],
        attributes: Iterable[tuple[str, bytes]],
    ) -> Any:
        """Makes an op of tensors of this graph and serialized attributes."""
        session = tfi.pywrap_tf_session
        with self._graph._c_graph.get() as c_graph:
            op = session.TF_NewOperation(c_graph, op_type, name)
        for value in inputs:
            if type(value) is list:
                session.TF_AddInputList(op, [x._as_tf_output() for x in value])
            else:
                session.TF_AddInput(op, value._as_tf_output())
        for key, serialized in attributes:
            session.TF_SetAttrValueProto(op, key, serialized)
        gradient = self._graph._gradient_override_map.get(op_type)
        if gradient is not None:
            value = tfi.attr_value_pb2.AttrValue(s=gradient.encode())
            session.TF_SetAttrValueProto(op, "_gradient_op_type", value.SerializeToString())
        try:
            finished = session.TF_FinishOperation(op)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(error.message) from None  # as TensorFlow does, and Keras expects
        self._note(op_type)
        return tfi.Operation._from_c_op(finished, self._graph)

    def _placeholder_for(self, handle: Any) -> Any:
        name = self._graph.unique_name(f"handle{self._made}")
        (placeholder,) = self._make("Placeholder", name, (), _HANDLE).outputs
        tfi.set_handle_data(placeholder, handle._handle_data)
        return placeholder

    def _note(self, op_type: str) -> None:
        self._made += 1
        if self._only_reads and op_type != "ReadVariableOp":
            op_def = tfi.op_def_of(op_type)
            self._only_reads = op_def is not None and not op_def.is_stateful


_HANDLE = (
    ("dtype", tfi.attr_value_pb2.AttrValue(type=_RESOURCE).SerializeToString()),
    (
        "shape",
        tfi.attr_value_pb2.AttrValue(shape=tf.TensorShape([]).as_proto()).SerializeToString(),
    ),
)


# -- kinds of ops ---------------------------------------------------------------------------------


def _kind_of(op_def: Any) -> _Kind:
    takes_functions = any(x.type in ("func", "list(func)") for x in op_def.attr)
    if takes_functions or any(x.is_ref for x in (*op_def.input_arg, *op_def.output_arg)):
        return _Kind()
    attributes = {x.name: x for x in op_def.attr}
    inferring = [(x.type_attr, x.number_attr, x.type_list_attr) for x in op_def.input_arg]
    return _Kind(
        tuple(_input(x, attributes.get(x.type_attr)) for x in op_def.input_arg),
        frozenset(x.name for x in op_def.input_arg),
        tuple(
            (x.name, x.default_value.SerializeToString())
            for x in op_def.attr
            if x.HasField("default_value")
        ),
        frozenset(name for names in inferring for name in names if name),
    )


def _input(argument: Any, type_attr: Any) -> _Input:
    default, allowed = 0, _ANY
    if type_attr is not None and type_attr.HasField("default_value"):
        default = type_attr.default_value.type
        allowed = frozenset(type_attr.allowed_values.list.type)
    return _Input(
        argument.name,
        bool(argument.number_attr or argument.type_list_attr),
        argument.type,
        argument.type_attr,
        default,
        allowed or None,
    )


# -- what an op is made of ------------------------------------------------------------------------


def _dtypes_of(inputs: Sequence[_Input], values: Sequence[Any]) -> tuple[Any, bool]:
    """The dtype that each value has or is to get, as a number, and whether all are tensors.

    That of a Python value can be None: it decides for itself. The whole is None where TensorFlow
    must look at the values.
    """
    found: list[Any] = []
    by_attr: dict[str, Any] = {}
    are_tensors = True
    for item, value in zip(inputs, values, strict=True):
        dtype: Any
        if item.is_list:
            if not isinstance(value, (list, tuple)) or not all(map(_is_ready, value)):
                return None, False
            dtype = tuple(x.dtype.as_datatype_enum for x in value)
            if item.type_attr and dtype:
                by_attr.setdefault(item.type_attr, dtype[0])
        else:
            if isinstance(value, tf.Tensor):
                are_tensors = are_tensors and _is_ready(value)
                dtype = value.dtype.as_datatype_enum
            else:
                are_tensors = False
                dtype = item.dtype or by_attr.get(item.type_attr)
                if dtype is None and item.allowed is None:
                    return None, False
            by_attr.setdefault(item.type_attr, dtype)
        found.append(dtype)
    return tuple(found), are_tensors


def _is_ready(value: Any) -> bool:
    """Whether a value is a tensor that need not become another one, in its turn, for the graph."""
    return type(value) is tfi.SymbolicTensor or (
        isinstance(value, tf.Tensor)
        and (not isinstance(value, tfi.EagerTensor) or value.dtype == tf.resource)
    )


def _converted(inputs: Sequence[_Input], values: Sequence[Any]) -> list[Any] | None:
    """The values as tensors; None if TensorFlow has to tell what is wrong with one."""
    found: list[Any] = []
    by_attr: dict[str, Any] = {}
    for item, value in zip(inputs, values, strict=True):
        if item.is_list:
            if item.type_attr and value:
                by_attr.setdefault(item.type_attr, value[0].dtype)
        else:
            if not _is_ready(value):
                try:
                    value = _tensor_of(value, item, item.dtype or by_attr.get(item.type_attr))
                except (TypeError, ValueError):
                    return None
            by_attr.setdefault(item.type_attr, value.dtype)
        found.append(value)
    return found


def _tensor_of(value: Any, item: _Input, dtype: Any) -> Any:
    if dtype is not None or not item.default or item.allowed is None:
        return tfi.convert_to_tensor(value, dtype=dtype, name=item.name)
    with contextlib.suppress(TypeError):
        tensor = tfi.convert_to_tensor(value, name=item.name)
        if tensor.dtype in item.allowed:
            return tensor
    return tfi.convert_to_tensor(value, preferred_dtype=item.default, name=item.name)


def _grouped(tensors: Sequence[Any], inputs: Sequence[_Input], lengths: Sequence[int]) -> list[Any]:
    """The tensors of an op as its inputs, those of a list together."""
    left = iter(tensors)
    return [
        [next(left) for _ in range(length)] if item.is_list else next(left)
        for item, length in zip(inputs, lengths, strict=True)
    ]


def _comparable_attributes(kind: _Kind, keywords: dict[str, Any]) -> Any:
    """What is said beside the inputs; None if it cannot be compared."""
    found = []
    for name, value in keywords.items():
        if name not in kind.names:
            comparable = _comparable(value)
            if comparable is None:
                return None
            found.append((name, comparable))
    return tuple(found)


def _comparable(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if kind is float:
        return kind, repr(value)  # 0.0 and -0.0 are equal
    if kind is tf.DType:
        return kind, value.as_datatype_enum
    if kind is list or kind is tuple:
        found = tuple(_comparable(x) for x in value)
        return None if None in found else (kind, found)
    return None
