"""Weights of Keras 1 and 2 in the layout of Keras 3.

In: the arrays of one layer in the order of its file, and what kind of layer it is. Out: the arrays
in the order and layout that the same layer of Keras 3 has. The invariant: values are moved, summed
or mirrored, never estimated; arrays that are in Keras 3's layout already come back as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = list[np.ndarray]

# Keras 1 and 2 on Theano convolve, all others correlate: the kernels are mirrored.
_MIRRORED = frozenset(("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "ConvLSTM2D",
                       "Convolution1D", "Convolution2D", "Convolution3D", "AtrousConvolution1D",
                       "AtrousConvolution2D", "Deconvolution2D"))  # fmt: skip
_CUDNN_GATES = {"CuDNNLSTM": 4, "CuDNNGRU": 3}
# The gates in the order in which Keras 1 stored them, each with a kernel, a recurrent kernel and a
# bias, and the order in which they stand beside each other since.
_GATES = {"LSTM": (12, (0, 2, 1, 3)), "GRU": (9, (0, 1, 2)), "ConvLSTM2D": (12, (0, 2, 1, 3))}


@dataclass(frozen=True)
class Origin:
    """Who wrote the file.

    Attributes:
        version: of that Keras; those before 1.0 do not say.
        backend: of that Keras.
    """

    version: str = "2"
    backend: str = "tensorflow"

    @property
    def major(self) -> int:
        """The first number of the version."""
        return self._numbers[0]

    @property
    def is_apart(self) -> bool:
        """Whether it was a Keras beside TensorFlow's own, which differs from it in two things.

        Bilinear interpolation laid corners on each other, not the centres of pixels; and masked
        steps of a `Bidirectional` layer repeated the last result, where others give zeros.

        Source: `resize_images` and `Bidirectional` of Keras 2.0 to 2.3, and of TensorFlow since
        1.14; 1.13, whose version is that of 2.1, still laid corners on each other.
        """
        return not self.version.endswith("-tf") and self._numbers < (2, 4)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", self.version)[:2])) or (1,)


def convert(
    class_name: str, config: dict[str, Any], arrays: Arrays, names: Sequence[str], origin: Origin
) -> Arrays:
    """Rearranges the weights of one layer.

    Args:
        class_name: of the layer in the old configuration.
        config: its arguments there.
        arrays: its weights.
        names: of the weights, without scope.
        origin: who wrote them.
    """
    inner = config.get("layer")
    if class_name == "Bidirectional" and isinstance(inner, dict):
        half = len(arrays) // 2
        rest = (inner.get("class_name", ""), inner.get("config") or {})
        return [
            *convert(*rest, arrays[:half], names[:half], origin),
            *convert(*rest, arrays[half:], names[half:], origin),
        ]
    if class_name == "TimeDistributed" and isinstance(inner, dict):
        rest = (inner.get("class_name", ""), inner.get("config") or {})
        return convert(*rest, arrays, names, origin)
    if class_name in _CUDNN_GATES:
        return _from_cudnn(class_name, arrays)
    if "BatchNormalization" in class_name:
        kept = ("gamma", "beta", "moving_mean", "moving_variance")
        if any(name.startswith("renorm") for name in names):
            return [x for x, name in zip(arrays, names, strict=True) if name in kept]
    if origin.major < 2:
        arrays = _from_keras_1(class_name, config, arrays)
    if origin.backend == "theano" and class_name in _MIRRORED:
        count = 2 if class_name == "ConvLSTM2D" else 1
        arrays = [*map(_mirrored, arrays[:count]), *arrays[count:]]
    return arrays


def _mirrored(kernel: np.ndarray) -> np.ndarray:
    """Turns the spatial dimensions around; the last two are channels."""
    return kernel[(slice(None, None, -1),) * (kernel.ndim - 2)]


def _from_cudnn(class_name: str, arrays: Arrays) -> Arrays:
    """cuDNN keeps each gate's kernel transposed and a bias for each of the two products.

    Source: the weights of `CuDNNLSTM` and `CuDNNGRU` as Keras 2 loads them into `LSTM` and `GRU`.
    """
    gates = _CUDNN_GATES[class_name]
    kernel, recurrent, bias = arrays
    kernel = _by_gate(kernel, gates, lambda gate: gate.T.reshape(gate.shape, order="F"))
    recurrent = _by_gate(recurrent, gates, np.transpose)
    if class_name == "CuDNNLSTM":
        return [kernel, recurrent, bias.reshape(2, -1).sum(axis=0)]
    return [kernel, recurrent, bias.reshape(2, -1)]


def _by_gate(
    kernel: np.ndarray, gates: int, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    return np.concatenate([change(gate) for gate in np.split(kernel, gates, axis=1)], axis=1)


def _from_keras_1(class_name: str, config: dict[str, Any], arrays: Arrays) -> Arrays:
    if class_name in _GATES and len(arrays) == _GATES[class_name][0]:
        order = _GATES[class_name][1]
        if config.get("dim_ordering") == "th":
            arrays = [np.transpose(x, (2, 3, 1, 0)) if x.ndim == 4 else x for x in arrays]
        return [np.concatenate([arrays[3 * i + part] for i in order], axis=-1) for part in range(3)]
    if not arrays:
        return arrays
    kernel, rest = arrays[0], arrays[1:]
    channels_first = config.get("dim_ordering") == "th"
    if class_name in ("Convolution1D", "AtrousConvolution1D") and kernel.ndim == 4:
        # Two dimensions of which one is empty, whatever the ordering was.
        if kernel.shape[1] != 1 or kernel.shape[0] != config.get("filter_length", kernel.shape[0]):
            kernel = np.transpose(kernel, (2, 3, 1, 0))
        return [kernel[:, 0], *rest]
    if channels_first and class_name in ("Convolution2D", "AtrousConvolution2D"):
        return [np.transpose(kernel, (2, 3, 1, 0)), *rest]
    if class_name in ("Deconvolution2D", "Convolution2DTranspose"):
        return [np.transpose(kernel, (2, 3, 0, 1) if channels_first else (0, 1, 3, 2)), *rest]
    if channels_first and class_name == "Convolution3D":
        return [np.transpose(kernel, (2, 3, 4, 1, 0)), *rest]
    return arrays
