"""Layers and activations that Keras 1 and 2 had and Keras 3 has not, or means otherwise.

In: the arguments that an old configuration has. Out: layers of Keras 3. The invariant: they hold
what an export needs to compute the same in inference mode, and nothing for training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable("keras_export")
def keras_2_hard_sigmoid(x: Any) -> Any:
    """What Keras 1 and 2 called `hard_sigmoid`: that of Keras 3 has another slope."""
    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


class ThresholdedReLU(keras.layers.Layer):
    """x where it is above `theta`, else 0."""

    def __init__(self, theta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._theta = float(theta)

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        return inputs * keras.ops.cast(inputs > self._theta, inputs.dtype)


class Unchanged(keras.layers.Layer):
    """What only training sees, such as a random flip of images."""

    def call(self, inputs: Any) -> Any:
        """Gives its inputs back."""
        return inputs


class LayerScale(keras.layers.Layer):
    """A factor for each channel, as ConvNeXt has it.

    Args:
        projection_dim: number of channels.
    """

    def __init__(self, projection_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._channels = projection_dim

    def build(self, input_shape: Any) -> None:
        """Makes the weight."""
        self.gamma = self.add_weight(shape=(self._channels,), initializer="zeros", name="gamma")

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        return inputs * self.gamma


class TimeDistributed(keras.layers.TimeDistributed):
    """Keras's, by one call on all steps: Keras 3.15 mistakes a length unknown in a graph."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Applies the layer to every step."""
        if None in inputs.shape[2:]:
            return super().call(inputs, training=training, mask=mask)
        named = {}
        if mask is not None and len(mask.shape) > 2 and self.layer._call_has_mask_arg:
            named["mask"] = _without_time(mask)
        results = self.layer(_without_time(inputs), **named)
        length = inputs.shape[1] or keras.ops.shape(inputs)[1]
        return keras.tree.map_structure(
            lambda x: keras.ops.reshape(x, (-1, length, *x.shape[1:])), results
        )


def _without_time(tensor: Any) -> Any:
    shape = keras.ops.shape(tensor)
    return keras.ops.reshape(tensor, (-1, *shape[2:]))


class BilinearUpSampling2D(keras.layers.Layer):
    """`UpSampling2D` as it was when corners, not the centres of pixels, lay on each other.

    Args:
        size: how many times as high and as wide.
        data_format: `channels_last` or `channels_first`.
    """

    def __init__(self, size: Sequence[int], data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._size, self._channels_first = tuple(size), data_format == "channels_first"

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        x = keras.ops.moveaxis(inputs, 1, -1) if self._channels_first else inputs
        size = tf.shape(x)[1:3] * tf.constant(self._size)
        y = tf.raw_ops.ResizeBilinear(images=x, size=size)
        known = [n and n * times for n, times in zip(x.shape[1:3], self._size, strict=True)]
        y = tf.ensure_shape(y, (None, *known, x.shape[-1]))
        return keras.ops.moveaxis(y, -1, 1) if self._channels_first else y


class CausalAttention(keras.layers.Attention):
    """Keras 2 had it from the configuration that no place sees those after it."""

    def call(self, inputs: Any, mask: Any = None, training: Any = None) -> Any:
        """Applies it."""
        return super().call(inputs, mask=mask, training=training, use_causal_mask=True)


class CausalAdditiveAttention(keras.layers.AdditiveAttention):
    """Likewise."""

    def call(self, inputs: Any, mask: Any = None, training: Any = None) -> Any:
        """Applies it."""
        return super().call(inputs, mask=mask, training=training, use_causal_mask=True)


class TensorFlowFunction(keras.layers.Layer):
    """A function of TensorFlow among layers.

    Args:
        function: called with what `arguments` gives.
        arguments: from the tensors of a call, the arguments of the function by position and name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Callable[[Sequence[Any]], tuple[Sequence[Any], dict[str, Any]]],
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self._function, self._arguments = function, arguments

    def call(self, tensors: Any) -> Any:
        """Calls the function; its results are flat."""
        positional, named = self._arguments(tensors)
        results = tf.nest.flatten(self._function(*positional, **named))
        return results[0] if len(results) == 1 else results


class MaxoutDense(keras.layers.Layer):
    """The greatest of several dense layers, as Keras 1 had it.

    Args:
        units: number of outputs.
        nb_feature: of how many layers.
        use_bias: whether they have biases.
    """

    def __init__(
        self, units: int, nb_feature: int = 4, use_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._units, self._features, self._use_bias = units, nb_feature, use_bias

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        shape = (self._features, input_shape[-1], self._units)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", name="kernel")
        if self._use_bias:
            self.bias = self.add_weight(
                shape=(self._features, self._units), initializer="zeros", name="bias"
            )

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        y = keras.ops.einsum("ni,fio->nfo", inputs, self.kernel)
        return keras.ops.max(y + self.bias if self._use_bias else y, axis=1)


class Highway(keras.layers.Layer):
    """A dense layer and a gate that lets its input pass, as Keras 1 had it.

    Args:
        activation: of the layer.
        use_bias: whether layer and gate have biases.
    """

    def __init__(self, activation: Any = None, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._activation, self._use_bias = keras.activations.get(activation), use_bias

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        size = input_shape[-1]
        shapes: list[tuple[str, tuple[int, ...]]]
        shapes = [("kernel", (size, size)), ("carry_kernel", (size, size))]
        if self._use_bias:
            shapes += [("bias", (size,)), ("carry_bias", (size,))]
        for name, shape in shapes:
            setattr(self, name, self.add_weight(shape=shape, initializer="zeros", name=name))

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        gate, y = inputs @ self.carry_kernel, inputs @ self.kernel
        if self._use_bias:
            gate, y = gate + self.carry_bias, y + self.bias
        gate = keras.ops.sigmoid(gate)
        return self._activation(y) * gate + (1 - gate) * inputs


class BatchlessNormalization(keras.layers.Layer):
    """`BatchNormalization` of Keras 1 in the modes that never used what training had gathered.

    Args:
        mode: 1 normalizes each sample, 2 each batch.
        axis: of the features.
        epsilon: added to what is divided by.
    """

    def __init__(self, mode: int, axis: int = -1, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._mode, self._axis, self._epsilon = mode, axis, epsilon

    def build(self, input_shape: Any) -> None:
        """Makes the weights, of which two are not used."""
        self._axis %= len(input_shape)
        size = input_shape[self._axis]
        self._shape = [size if i == self._axis else 1 for i in range(len(input_shape))]
        for name in ("gamma", "beta", "mean", "deviation"):
            setattr(self, name, self.add_weight(shape=(size,), initializer="zeros", name=name))

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        ops = keras.ops
        axes = [-1] if self._mode == 1 else [i for i, n in enumerate(self._shape) if n == 1]
        mean = ops.mean(inputs, axis=axes, keepdims=True)
        root = ops.sqrt(ops.var(inputs, axis=axes, keepdims=True) + self._epsilon)
        y = (inputs - mean) / (root + self._epsilon if self._mode == 1 else root)
        return y * ops.reshape(self.gamma, self._shape) + ops.reshape(self.beta, self._shape)


class CosineMerge(keras.layers.Layer):
    """The cosine of two tensors, with the dimension that Keras 1 gave it.

    Args:
        axes: along which they are multiplied.
    """

    def __init__(self, axes: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dot = keras.layers.Dot(axes)

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        a, b = inputs
        lengths = keras.ops.sqrt(self._dot([a, a]) * self._dot([b, b]))
        cosine = self._dot([a, b]) / keras.ops.maximum(lengths, keras.config.epsilon())
        return keras.ops.expand_dims(cosine, 1)


class _Parametric(keras.layers.Layer):
    """An activation with weights of the input's shape, but for axes along which they are one."""

    _NAMES: tuple[str, ...]

    def __init__(self, shared_axes: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shared = tuple(shared_axes or ())

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        sizes = enumerate(input_shape[1:], 1)
        shape = tuple(1 if axis in self._shared else size for axis, size in sizes)
        for name in self._NAMES:
            setattr(self, name, self.add_weight(shape=shape, initializer="zeros", name=name))


class ParametricSoftplus(_Parametric):
    """`alphas * softplus(betas * x)`, as Keras 1 had it."""

    _NAMES = ("alphas", "betas")

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        return self.alphas * keras.ops.softplus(self.betas * inputs)


class SReLU(_Parametric):
    """Linear with three slopes, of which that between the thresholds is 1, as Keras 1 had it."""

    _NAMES = ("t_left", "a_left", "t_right", "a_right")

    def call(self, inputs: Any) -> Any:
        """Applies it."""
        relu, right = keras.ops.relu, keras.ops.abs(self.t_right)
        x = inputs - self.t_left
        middle = keras.ops.minimum(relu(x), right) - self.a_left * relu(-x)
        return self.t_left + middle + self.a_right * relu(x - right)


class LocallyConnected(keras.layers.Layer):
    """A convolution with a kernel of its own at each place, along one or two dimensions.

    Args:
        filters: number of output channels.
        kernel_size: of each dimension.
        strides: of each dimension.
        padding: `valid` or `same`, which Keras 2 has for kernels that it keeps as matrices.
        activation: as in Keras.
        use_bias: whether there is a bias at each place.
        data_format: `channels_last` or `channels_first`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int],
        padding: str = "valid",
        activation: Any = None,
        use_bias: bool = True,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._filters, self._use_bias = filters, use_bias
        self._kernel_size, self._strides = (
            (x,) if isinstance(x, int) else tuple(x) for x in (kernel_size, strides)
        )
        self._is_padded = padding == "same"
        self._activation = keras.activations.get(activation)
        self._channels_first = data_format == "channels_first"

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        self._sizes = tuple(input_shape[2:] if self._channels_first else input_shape[1:-1])
        self._channels = input_shape[1] if self._channels_first else input_shape[-1]
        triples = list(zip(self._sizes, self._kernel_size, self._strides, strict=True))
        if self._is_padded:
            self._places = tuple(-(-size // step) for size, _, step in triples)
        else:
            self._places = tuple((size - kernel) // step + 1 for size, kernel, step in triples)
        patch = math.prod(self._kernel_size) * self._channels
        shape = (math.prod(self._places), patch, self._filters)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", name="kernel")
        if self._use_bias:
            shape = (*self._places, self._filters)
            self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Applies each kernel at its place."""
        ops = keras.ops
        x = ops.moveaxis(inputs, 1, -1) if self._channels_first else inputs
        margins = self._margins()
        x = ops.pad(x, [(0, 0), *margins, (0, 0)])
        patches = []
        for start in self._starts():
            slices = tuple(
                slice(s + before, s + before + k)
                for s, (before, _), k in zip(start, margins, self._kernel_size, strict=True)
            )
            patch = x[(slice(None), *slices)]
            if self._channels_first:  # the kernel was cut from channels in front
                patch = ops.moveaxis(patch, -1, 1)
            patches.append(ops.reshape(patch, (-1, math.prod(self._kernel_size) * self._channels)))
        y = ops.einsum("pnc,pcf->npf", ops.stack(patches), self.kernel)
        y = ops.reshape(y, (-1, *self._places, self._filters))
        y = self._activation(y + self.bias if self._use_bias else y)
        return ops.moveaxis(y, -1, 1) if self._channels_first else y

    def kernel_of(self, stored: np.ndarray, implementation: int) -> np.ndarray:
        """The kernel from one that Keras 2 kept as a matrix between all inputs and outputs.

        Args:
            stored: with `implementation` 2 `(*sizes, channels, *places, filters)`, or with channels
                and filters in front; with 3 the entries that are used, by rows of outputs.
            implementation: the layer's argument in Keras 2.

        Source: `LocallyConnected1D` and `2D` of Keras 2.3 and TensorFlow 1.13 to 2.15.
        """
        if implementation == 1:
            return stored
        rank, first = len(self._sizes), self._channels_first
        if implementation == 3:
            stored = self._dense(stored)
        if first:
            stored = np.moveaxis(stored, (0, rank + 1), (rank, 2 * rank + 1))
        shape = (*self._kernel_size, self._channels)
        found = np.zeros((math.prod(self._places), *shape, self._filters), stored.dtype)
        for number, start in enumerate(self._starts()):
            place: Any = np.unravel_index(number, self._places)
            for offset in itertools.product(*map(range, self._kernel_size)):
                where = tuple(a + b for a, b in zip(start, offset, strict=True))
                if all(0 <= a < size for a, size in zip(where, self._sizes, strict=True)):
                    found[(number, *offset)] = stored[(*where, slice(None), *place, slice(None))]
        found = np.moveaxis(found, -2, 1) if first else found
        return found.reshape(len(found), -1, self._filters)

    def _dense(self, entries: np.ndarray) -> np.ndarray:
        used = np.zeros((*self._places, *self._sizes), bool)
        for number, start in enumerate(self._starts()):
            ends = (s + k for s, k in zip(start, self._kernel_size, strict=True))
            window = (slice(max(0, s), e) for s, e in zip(start, ends, strict=True))
            place: Any = np.unravel_index(number, self._places)
            used[(*place, *window)] = True
        rank, first = len(self._sizes), self._channels_first
        used = np.expand_dims(used, (0, rank + 1) if first else (rank, 2 * rank + 1))
        outputs, inputs = (self._filters, *self._places), (self._channels, *self._sizes)
        if not first:
            outputs, inputs = (*self._places, self._filters), (*self._sizes, self._channels)
        dense = np.zeros((*outputs, *inputs), entries.dtype)
        dense[np.broadcast_to(used, dense.shape)] = entries
        return np.moveaxis(dense, range(rank + 1), range(rank + 1, 2 * rank + 2))

    def _starts(self) -> Iterator[tuple[int, ...]]:
        """Where the patch of each place begins; in a padded layer also before the first pixel."""
        steps = zip(self._places, self._strides, self._kernel_size, strict=True)
        yield from itertools.product(*(
            [place * step - (kernel // 2 if self._is_padded else 0) for place in range(places)]
            for places, step, kernel in steps
        ))  # fmt: skip

    def _margins(self) -> list[tuple[int, int]]:
        if not self._is_padded:
            return [(0, 0)] * len(self._sizes)
        each = zip(self._sizes, self._places, self._strides, self._kernel_size, strict=True)
        return [
            (kernel // 2, max(0, (places - 1) * step - kernel // 2 + kernel - size))
            for size, places, step, kernel in each
        ]
