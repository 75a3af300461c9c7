"""Traces that choose the same kernels on every machine, and have no op without effect.

In: what is about to be traced. Out: a scope in which Keras takes this machine for one without an
accelerator, the last axis for the last axis, and inputs as they are when they are called without a
graph. The invariant: the numbers are those of a call, other threads get the answers that they
always get, and nothing stays changed.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from keras_export import keras_objects, substitution
from keras_export import tf_internals as tfi

_THREAD = threading.local()


@contextlib.contextmanager
def portable_kernels(*objects: Any) -> Iterator[None]:
    """While it lasts, layers traced by this thread choose kernels that every machine has.

    Keras asks whether there is a GPU: an LSTM or GRU that is traced beside one calls a kernel of
    cuDNN, and a depthwise convolution of channels that come first relies on the GPU's.

    And a batch normalization that was given its axis as a number gives each of its variables the
    rank of the inputs before it computes with them, which broadcasting does by itself where it is
    the last axis. In many networks of images every seventh op is such a reshape. A convolution does
    so with its bias, which Keras takes back where it adds it (the releases that add by an operator
    keep the reshape).

    And a reshape of all axes but the first takes that one as it comes: Keras asks for its size,
    and puts it back, in three ops that tell what follows from the others.

    And a `Discretization` that is to give integers gets its inputs as they are: in a graph, and
    only there, Keras makes them what the layer computes in, which rounds them before they are put
    into bins.

    Args:
        *objects: what is traced; a recurrent layer in them that insists on cuDNN gives in.
    """
    changes: list[tuple[Any, str, Any]] = [
        (module, name, functools.partial(_asked, getattr(module, name), answer))
        for module, name, answer in tfi.keras_device_questions()
    ]
    changes += [
        (module, name, functools.partial(_by_last_axis, normalize, inspect.signature(normalize)))
        for module, name in tfi.keras_batch_normalization()
        for normalize in [getattr(module, name)]
    ]
    changes += [
        (module, name, functools.partial(_without_reshape, getattr(module, name)))
        for module, name in tfi.keras_addition()
    ]
    changes += [
        (module, name, functools.partial(_with_free_first, getattr(module, name)))
        for module, name in tfi.keras_reshaping()
    ]
    changes += [
        (holder, "__call__", _with_its_own_inputs(holder)) for holder in _converting_classes()
    ]
    # "auto" is the same to whoever uses the layer meanwhile: cuDNN where it can be had.
    changes += [(layer, "use_cudnn", "auto") for layer in _insisting_on_cudnn(objects)]
    before = getattr(_THREAD, "portable", False)
    _THREAD.portable = True
    try:
        with substitution.substituted(changes):
            yield
    finally:
        _THREAD.portable = before


def _asked(question: Callable[[], bool], answer: bool) -> bool:
    return answer if getattr(_THREAD, "portable", False) else question()


def _by_last_axis(
    normalize: Callable[..., Any], signature: inspect.Signature, *args: Any, **kwargs: Any
) -> Any:
    if not getattr(_THREAD, "portable", False):
        return normalize(*args, **kwargs)
    call = signature.bind(*args, **kwargs)
    if call.arguments.get("axis") == len(call.arguments["x"].shape) - 1:
        call.arguments["axis"] = -1
    return normalize(*call.args, **call.kwargs)


def _without_reshape(add: Callable[..., Any], x1: Any, x2: Any) -> Any:
    # Asked first, since most biases are variables yet: to ask for any tensor takes much longer.
    if (
        isinstance(x2, tf.Tensor)
        and getattr(_THREAD, "portable", False)
        and tf.is_symbolic_tensor(x2)
        and tf.is_tensor(x1)
    ):
        vector = _vector_behind(x2)
        # Where the sum gets its rank from the reshape, it must have it.
        if vector is not None and (x1.shape.rank or 0) >= x2.shape.rank:
            x2 = vector
    return add(x1, x2)


def _vector_behind(tensor: Any) -> Any:
    """The vector that `tensor` is with ones before it, as broadcasting would put them there."""
    if tensor.op.type != "Reshape" or not tensor.shape.is_fully_defined():
        return None
    vector = tensor.op.inputs[0]
    ones = [1] * (tensor.shape.rank - 1)
    return vector if vector.shape.rank == 1 and tensor.shape == [*ones, *vector.shape] else None


def _with_free_first(reshape: Callable[..., Any], x: Any, newshape: Any) -> Any:
    if (
        isinstance(newshape, tuple)
        and newshape
        and isinstance(newshape[0], tf.Tensor)
        and getattr(_THREAD, "portable", False)
        # What is made without a graph meanwhile, as when a layer is built, knows no ops.
        and tf.is_symbolic_tensor(newshape[0])
        and isinstance(x, tf.Tensor)
        and _is_what_is_left(newshape[0], x, newshape[1:])
    ):
        newshape = (-1, *newshape[1:])
    return reshape(x, newshape)


def _is_what_is_left(size: Any, tensor: Any, others: tuple[Any, ...]) -> bool:
    """Whether `size` is that of the first axis of `tensor`, and `others` hold what the rest do."""
    rest = tensor.shape[1:] if tensor.shape.rank else None
    if rest is None or not rest.is_fully_defined() or not all(isinstance(x, int) for x in others):
        return False
    # An axis of no size leaves open how long the first one is.
    if not 0 < math.prod(others) == rest.num_elements() or min(others, default=1) < 0:
        return False
    if size.shape.rank != 0 or size.op.type != "StridedSlice":
        return False
    sizes, begin = size.op.inputs[0].op, tf.get_static_value(size.op.inputs[1])
    if sizes.type != "Shape" or sizes.inputs[0] is not tensor or begin is None:
        return False  # it is of something else, or what it is of is known when it runs
    return bool(begin == [0])


def _converting_classes() -> list[type]:
    """What converts the inputs of a layer by itself: the base class of those for pipelines."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return []
    bases = [x for x in keras.layers.Discretization.__mro__ if "__call__" in vars(x)]
    return [x for x in bases[:1] if x is not keras.layers.Layer]


def _with_its_own_inputs(holder: Any) -> Callable[..., Any]:
    call = vars(holder)["__call__"]

    @functools.wraps(call)
    def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_THREAD, "portable", False) and layer.input_dtype != layer.compute_dtype:
            return super(holder, layer).__call__(*args, **kwargs)
        return call(layer, *args, **kwargs)

    return called


def _insisting_on_cudnn(objects: tuple[Any, ...]) -> list[Any]:
    found = {}
    for obj in objects:
        for layer in obj._flatten_layers() if keras_objects.is_keras_layer(obj) else ():
            is_made_to_give_in = substitution.is_substituted(layer, "use_cudnn")
            if is_made_to_give_in or vars(layer).get("use_cudnn") is True:
                found[id(layer)] = layer
    return list(found.values())
