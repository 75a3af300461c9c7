"""Layers and activations that Keras 1 and 2 had and Keras 3 has not, or means otherwise.

In: the arguments that an old configuration has. Out: layers of Keras 3. The invariant: they hold
what an export needs to compute the same in inference mode, and nothing for training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
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
    """Keras's, but for a series of unknown length in a graph, whose length Keras 3.15 mistakes."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """Applies the layer to every step."""
        if inputs.shape[1] is not None or mask is not None or None in inputs.shape[2:]:
            return super().call(inputs, training=training, mask=mask)
        steps = keras.ops.reshape(inputs, (-1, *inputs.shape[2:]))
        results = self.layer(steps)
        length = keras.ops.shape(inputs)[1]
        return keras.ops.reshape(results, (-1, length, *results.shape[1:]))


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


class LocallyConnected(keras.layers.Layer):
    """A convolution with a kernel of its own at each place, along one or two dimensions.

    Args:
        filters: number of output channels.
        kernel_size: of each dimension.
        strides: of each dimension.
        activation: as in Keras.
        use_bias: whether there is a bias at each place.
        data_format: `channels_last` or `channels_first`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        strides: Sequence[int],
        activation: Any = None,
        use_bias: bool = True,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._filters, self._use_bias = filters, use_bias
        self._kernel_size, self._strides = tuple(kernel_size), tuple(strides)
        self._activation = keras.activations.get(activation)
        self._channels_first = data_format == "channels_first"

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        rank = len(self._kernel_size)
        sizes = input_shape[2:] if self._channels_first else input_shape[1:-1]
        channels = input_shape[1] if self._channels_first else input_shape[-1]
        self._places = tuple(
            (sizes[i] - self._kernel_size[i]) // self._strides[i] + 1 for i in range(rank)
        )
        patch = math.prod(self._kernel_size) * channels
        shape = (math.prod(self._places), patch, self._filters)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", name="kernel")
        if self._use_bias:
            shape = (*self._places, self._filters)
            self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Applies each kernel at its place."""
        ops, rank = keras.ops, len(self._kernel_size)
        x = ops.moveaxis(inputs, 1, -1) if self._channels_first else inputs
        channels = x.shape[-1]
        steps = [
            range(0, self._places[i] * self._strides[i], self._strides[i]) for i in range(rank)
        ]
        patches = []
        for start in itertools.product(*steps):
            slices = tuple(slice(s, s + k) for s, k in zip(start, self._kernel_size, strict=True))
            patch = x[(slice(None), *slices)]
            if self._channels_first:  # the kernel was cut from channels in front
                patch = ops.moveaxis(patch, -1, 1)
            patches.append(ops.reshape(patch, (-1, math.prod(self._kernel_size) * channels)))
        y = ops.einsum("pnc,pcf->npf", ops.stack(patches), self.kernel)
        y = ops.reshape(y, (-1, *self._places, self._filters))
        y = self._activation(y + self.bias if self._use_bias else y)
        return ops.moveaxis(y, -1, 1) if self._channels_first else y
