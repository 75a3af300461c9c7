"""Every private TensorFlow and Keras name that keras_export uses, each with the reason.

What comes in: nothing. What goes out: the names below. The invariant: no other module imports
from `tensorflow.python`, `tensorflow.core` or `keras.src`, so that a release that moves something
breaks this file alone, with a message that names what moved (`tests/test_tf_internals.py`).
Checked with TensorFlow 2.16 to 2.21 and Keras 3.4 to 3.15.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import sys

# The protos of the SavedModel format: TensorFlow generates the classes but exports only a few of
# them publicly (`tf.compat.v1.MetaGraphDef`), and mixing both would give two types for one message.
from tensorflow.core.framework import (
    attr_value_pb2,
    function_pb2,
    graph_pb2,
    node_def_pb2,
    op_def_pb2,
    types_pb2,
    versions_pb2,
)
from tensorflow.core.protobuf import (
    fingerprint_pb2,
    meta_graph_pb2,
    saved_model_pb2,
    saved_object_graph_pb2,
    saver_pb2,
    struct_pb2,
    trackable_object_graph_pb2,
)

# `Trackable` is the type that decides what can be saved; there is no public alias.
from tensorflow.python.trackable.base import Trackable

# An empty object that tracks its attributes: `tf.Module` has `variables` of its own, and
# `tf.train.Checkpoint` has methods and a counter.
from tensorflow.python.trackable.autotrackable import AutoTrackable

# The lists, dicts and tuples that attribute assignment wraps are told from objects by this base.
from tensorflow.python.trackable.data_structures import TrackableDataStructure

# `tf.saved_model.Asset` and `TrackableResource` are public; the base of the latter is not, and
# tables derive from the base.
from tensorflow.python.trackable.resource import CapturableResource

# Where tables and others are asked whether they serialize through tensors or old saveables.
from tensorflow.python.training.saving.saveable_object_util import (
    trackable_has_serialize_to_tensor,
)

# Objects that save through `SaveableObject`s: their factories, the names of those that were
# migrated since, and the functions by which a loaded artifact saves and restores them.
from tensorflow.python.checkpoint.saveable_compat import (
    force_checkpoint_conversion_enabled,
    get_saveable_name,
)
from tensorflow.python.training.saving.saveable_object import SaveableObject
from tensorflow.python.training.saving.saveable_object_util import (
    saveable_objects_for_op,
    saveable_objects_from_trackable,
)
from tensorflow.python.training.saving.trace_saveable_util import trace_save_restore_function_map

# The concrete class behind `tf.function`; `tf.types.experimental.PolymorphicFunction` is abstract
# and lacks the listing of concrete functions for serialization.
from tensorflow.python.eager.polymorphic_function.polymorphic_function import (
    Function as PolymorphicFunction,
)
from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction

# A definition is fetched from the eager context by name: `ConcreteFunction.function_def` is a live
# proto that must not be changed, and nested functions have no Python object to ask.
from tensorflow.python.eager.context import context as eager_context

# The bundle of a graph's values is written eagerly; `tf.init_scope` does not leave a V1 graph.
from tensorflow.python.eager.context import eager_mode

# Many variables are read by one op, which `tf.raw_ops` leaves out as it does all whose names begin
# with an underscore.
from tensorflow.python.eager.execute import quick_execute

# A bare graph for gradient functions: `tf.Graph` cannot capture from the graph of the forward op.
from tensorflow.python.framework.func_graph import FuncGraph

# What makes an op of a graph in Python, and the calls into C++ that it comes down to: for each op
# TensorFlow works out again what follows from its kind and dtypes, and its own switch against that
# (`graph_building_optimization`) made traces slower.
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.framework import op_def_library
from tensorflow.python.framework.op_callbacks import should_invoke_op_callbacks as observes_ops
from tensorflow.python.framework.ops import (
    Operation,
    SymbolicTensor,
    convert_to_tensor,
    get_default_graph,
)

# The type of tensors with a value; to ask a tensor for it would start TensorFlow's devices, which a
# program may configure until then.
from tensorflow.python.framework.ops import EagerTensor

# Whether a `tf.function` is being traced right now, and the registry that custom gradients are in.
from tensorflow.python.framework.ops import gradient_registry, inside_function

# Specs of variables passed as arguments, which no signature can have.
from tensorflow.python.ops.resource_variable_ops import (
    BaseResourceVariable,
    VariableSpec,
    is_resource_variable,
)

# What strategies make of variables; the public `tf.distribute.DistributedValues` has no primary.
from tensorflow.python.distribute.sharded_variable import ShardedVariableMixin
from tensorflow.python.distribute.values import DistributedVariable, SyncOnReadVariable

# Inside it distributed variables act as the one variable that an artifact holds.
from tensorflow.python.saved_model.save_context import save_context

# Registered classes and revived types: what third parties told TensorFlow to write for them.
from tensorflow.python.saved_model import registration, revived_types

# The type of `.signatures` of a loaded SavedModel, the only one that may stand at that name.
from tensorflow.python.saved_model.signature_serialization import _SignatureMap as SignatureMap

# The farm hashes of a fingerprint; no public API computes them.
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting as fingerprinting

# The version numbers that a GraphDef carries.
from tensorflow.python.framework.versions import (
    GRAPH_DEF_VERSION,
    GRAPH_DEF_VERSION_MIN_CONSUMER,
)

# TensorFlow's own encoder and decoder of `StructuredValue`, with the codecs that third parties
# registered; public only as `tf.__internal__`.
from tensorflow.python.saved_model.nested_structure_coder import (
    NotEncodableError,
    decode_proto as decode_structure,
    encode_structure,
)
from tensorflow.python.saved_model.nested_structure_coder import _codecs as structure_codecs

# The names under which TypeSpecs are written; registering is public for ExtensionType alone.
from tensorflow.python.framework import type_spec_registry

# Specs that the format has a number for and that no public module exports.
from tensorflow.python.distribute.values import PerReplicaSpec
from tensorflow.python.framework.extension_type import ExtensionTypeSpec
from tensorflow.python.framework.tensor import BoundedTensorSpec
from tensorflow.python.ops.ragged.row_partition import RowPartitionSpec

# The base of ragged, sparse and user-defined tensors; public only as `tf.__internal__`.
from tensorflow.python.framework.composite_tensor import CompositeTensor

# `tf.nest` flattens in the same order but does not tell the path of a leaf.
from tensorflow.python.util.nest import flatten_with_tuple_paths

# The registered definition of an op, with its default attributes; no public API returns it.
from tensorflow.python.framework.op_def_registry import get as op_def_of

# The C++ comparison of attribute values, by which a loader decides what is a default.
from tensorflow.python.client.pywrap_tf_session import (
    EqualAttrValueWrapper as attribute_difference,
)

# A function is made of a traced bare graph by this; `tf.function` would trace again.
from tensorflow.python.eager.polymorphic_function.atomic_function import (
    from_func_graph as atomic_function_from_graph,
)

# A placeholder that stands for a resource must know the shape of what the resource holds.
from tensorflow.python.ops.handle_data_util import (
    copy_handle_data,
    get_resource_handle_data,
    set_handle_data,
)

# Objects make their resources into maps of this kind.
from tensorflow.python.util.object_identity import ObjectIdentityDictionary

# How TensorFlow turns a tensor's name into a keyword argument; the loader does it again.
from tensorflow.core.function.polymorphism.function_type import sanitize_arg_name

# The full argument spec of a function, as the format stores it.
from tensorflow.python.util.tf_inspect import FullArgSpec

# Collects the stack traces of nodes; its format has no public writer.
from tensorflow.python.util.tf_stack import GraphDebugInfoBuilder

# What parsing damaged bytes raises; protobuf is TensorFlow's dependency, not ours to declare.
from google.protobuf.message import DecodeError


def keras_functional_class() -> type:
    """The class of models with symbolic inputs: `keras.Model` is their public base, but a subclass
    that was built from a call has the same attributes and no graph of layers.

    Imported on use: a program that exports plain TensorFlow modules need not wait for Keras.
    """
    from keras.src.models.functional import Functional

    return Functional


@functools.cache
def keras_variable_class() -> type:
    """The class of every variable that a Keras layer holds.

    In Keras 3.4 `keras.Variable` is a subclass of it, which no layer's variable is of.
    """
    from keras.src.backend import Variable

    return Variable


@functools.cache
def keras_tensorflow_layer_class() -> type:
    """The base of every Keras layer that knows TensorFlow's checkpoints: it lists the children."""
    from keras.src.backend.tensorflow.layer import TFLayer

    return TFLayer


def keras_device_questions() -> list[tuple[object, str, bool]]:
    """Keras's functions that ask for devices while a layer is traced: `(module, name, answer)`, the
    answer being that of a machine without accelerators. Keras has no switch for it.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return []
    # By name: the package has a function `rnn`, which an import statement would give.
    package = "keras.src.backend.tensorflow"
    nn, rnn = (importlib.import_module(f"{package}.{name}") for name in ("nn", "rnn"))
    known = [(rnn, "_is_gpu_available", False), (nn, "_cpu_only", True)]
    # Older releases do not ask the second: they choose the same kernels everywhere.
    return [question for question in known if hasattr(*question[:2])]


def keras_batch_normalization() -> list[tuple[object, str]]:
    """Where Keras looks up what normalizes: `(module, name)`.

    It has no way to say that the axis which a layer keeps as a number is the last one.
    """
    return _of_keras_backend("nn", "batch_normalization")


def keras_addition() -> list[tuple[object, str]]:
    """Where Keras looks up what adds a bias: `(module, name)`.

    It has no way to say that a bias need not get the rank of what it is added to.
    """
    return _of_keras_backend("numpy", "add")


def keras_reshaping() -> list[tuple[object, str]]:
    """Where Keras looks up what reshapes: `(module, name)`.

    A layer has no way to leave the size of the first axis open, as TensorFlow's op can.
    """
    return _of_keras_backend("numpy", "reshape")


def _of_keras_backend(module_name: str, name: str) -> list[tuple[object, str]]:
    import keras

    if keras.backend.backend() != "tensorflow":
        return []
    module = importlib.import_module(f"keras.src.backend.tensorflow.{module_name}")
    return [(module, name)] if hasattr(module, name) else []


def keras_walk_saveable(saveable: object) -> collections.abc.Iterator[tuple[str, object]]:
    """The attributes of a Keras object in the order in which Keras saves their weights.

    No public API tells where in a file of weights a variable is.
    """
    from keras.src.saving.saving_lib import _walk_saveable

    yield from _walk_saveable(saveable)


def keras_saves_nested_containers() -> bool:
    """Whether this Keras saves layers in lists of lists; the releases that do have this name."""
    from keras.src.saving import saving_lib

    return hasattr(saving_lib, "_container_path_present")


def keras_replaces_values() -> bool:
    """Whether the values of Keras variables are, for now, those of a scope.

    No public API tells whether a `keras.StatelessScope` is open, or what it maps.
    """
    if "keras" not in sys.modules:
        return False
    from keras.src.backend.common.stateless_scope import get_stateless_scope

    return bool(getattr(get_stateless_scope(), "state_mapping", None))
