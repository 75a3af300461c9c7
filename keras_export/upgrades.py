"""Layers of Keras 3 from the configurations of Keras 1 and 2.

In: the configuration of a layer as an old Keras wrote it. Out: the layer, with a note for every
meaning that was carried over by hand, or every reason why it cannot be. The invariant: an argument
is renamed where its new name is known, left out where it changes nothing that an export computes,
and a reason otherwise; nothing is guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_export import legacy_layers
from keras_export.layouts import Origin

# What only makes or trains weights; all weights come from the file.
_TRAINING = ("_initializer", "_init", "_regularizer", "_constraint")
_TRAINING_ARGUMENTS = frozenset(("init", "transform_bias", "W_regularizer", "U_regularizer",
                                 "b_regularizer",
                                 "gamma_regularizer", "beta_regularizer", "W_constraint",
                                 "U_constraint", "b_constraint", "weights",
                                 "unit_forget_bias"))  # fmt: skip
# How it was computed, which changes nothing of what; and what a container says of its place.
_IRRELEVANT = frozenset(("implementation", "consume_less", "fused", "virtual_batch_size",
                         "adjustment", "renorm_clipping", "renorm_momentum", "renorm", "dynamic",
                         "input_length", "input_dim_of_sequence", "batch_input_shape",
                         "input_shape", "batch_size", "init_values", "input_dtype", "ragged",
                         "build_config", "query_shape", "key_shape", "value_shape",
                         "vocabulary_size", "inbound_nodes", "experimental_run_tf_function",
                         "autocast"))  # fmt: skip
# Arguments that must have these values to be left out.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"groups": (1,), "time_major": (False,)}

_CLASSES = {
    "Convolution1D": "Conv1D", "Convolution2D": "Conv2D", "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D", "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose", "Convolution2DTranspose": "Conv2DTranspose",
    "Convolution3DTranspose": "Conv3DTranspose",
    "SeparableConvolution1D": "SeparableConv1D", "SeparableConvolution2D": "SeparableConv2D",
    "DepthwiseConvolution2D": "DepthwiseConv2D",
    "BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU", "LSTMV2": "LSTM", "GRUV2": "GRU", "LSTMV1": "LSTM",
    "GRUV1": "GRU", "LSTMCellV2": "LSTMCell", "GRUCellV2": "GRUCell", "DenseV2": "Dense",
    "NormalizationV1": "Normalization", "TimeDistributedDense": "Dense",
    "MaxPool1D": "MaxPooling1D", "MaxPool2D": "MaxPooling2D", "MaxPool3D": "MaxPooling3D",
    "AvgPool1D": "AveragePooling1D", "AvgPool2D": "AveragePooling2D",
    "AvgPool3D": "AveragePooling3D",
    "GlobalMaxPool1D": "GlobalMaxPooling1D", "GlobalMaxPool2D": "GlobalMaxPooling2D",
    "GlobalAvgPool1D": "GlobalAveragePooling1D", "GlobalAvgPool2D": "GlobalAveragePooling2D",
}  # fmt: skip
_OWN: dict[str, type] = {
    "ThresholdedReLU": legacy_layers.ThresholdedReLU,
    "LocallyConnected1D": legacy_layers.LocallyConnected,
    "LocallyConnected2D": legacy_layers.LocallyConnected,
    "LayerScale": legacy_layers.LayerScale,
    "MaxoutDense": legacy_layers.MaxoutDense,
    "CosineMerge": legacy_layers.CosineMerge,
    "Highway": legacy_layers.Highway,
    "ParametricSoftplus": legacy_layers.ParametricSoftplus,
    "SReLU": legacy_layers.SReLU,
    "TimeDistributed": legacy_layers.TimeDistributed,
}
_CAUSAL = {
    "Attention": legacy_layers.CausalAttention,
    "AdditiveAttention": legacy_layers.CausalAdditiveAttention,
}
# They act in training alone.
_IDENTITIES = frozenset(("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
                         "RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth",
                         "RandomShear", "GaussianNoise", "GaussianDropout", "AlphaDropout",
                         "ActivityRegularization", "FixedDropout"))  # fmt: skip
_MERGE_MODES = {"sum": "Add", "mul": "Multiply", "concat": "Concatenate", "ave": "Average",
                "max": "Maximum", "dot": "Dot", "cos": "CosineMerge"}  # fmt: skip

MODELS = frozenset(
    ("Model", "Functional", "Sequential", "Graph", "ModelV2", "Container", "Network")
)

# Without a class in Keras 3, and handled here or where models are made.
LEGACY_CLASSES = frozenset((*MODELS, *_CLASSES, *_OWN, *_IDENTITIES, "Merge", "Policy",
                            "PolicyV1", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer",
                            "InputLayer",
                            "TensorShape", "__tuple__", "StackedRNNCells"))  # fmt: skip

_RENAMED = {
    "output_dim": "units", "bias": "use_bias", "nb_filter": "filters", "subsample": "strides",
    "subsample_length": "strides", "border_mode": "padding", "filter_length": "kernel_size",
    "atrous_rate": "dilation_rate", "dim_ordering": "data_format", "p": "rate",
    "pool_length": "pool_size", "stride": "strides", "inner_activation": "recurrent_activation",
    "dropout_W": "dropout", "dropout_U": "recurrent_dropout", "sigma": "stddev",
    "concat_axis": "axis", "dot_axes": "axes", "alpha": "negative_slope", "length": "size",
    "cropping_dims": "cropping",
}  # fmt: skip
_SIZES = (("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3"))
_ORDERINGS = {"th": "channels_first", "tf": "channels_last"}
_ACTIVATIONS = ("activation", "recurrent_activation")
_RENAMED_ACTIVATIONS = {"softmax_v2": "softmax", "relu_v2": "relu", "swish": "silu"}
_RECURRENT = frozenset(("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "ConvLSTM2D"))


class Upgrader:
    """Makes the layers of one file.

    Attributes:
        notes: what was carried over by hand.
        reasons: why layers could not be made.
    """

    def __init__(
        self,
        custom: Mapping[str, Any],
        origin: Origin,
        model: Callable[[Mapping[str, Any]], Any],
    ) -> None:
        self._custom, self._origin, self._model = custom, origin, model
        self._major = origin.major
        self._where = "the model"
        self.notes: list[str] = []
        self.reasons: list[str] = []

    def layer(self, node: Mapping[str, Any]) -> Any:
        """A layer, or None after adding to the reasons.

        Args:
            node: its configuration with `class_name` and `config`.
        """
        class_name = str(node.get("class_name"))
        config = dict(decoded(node.get("config") or {}))
        name = str(config.get("name") or node.get("name") or class_name.lower())
        self._where = f"layer {name!r} ({class_name})"
        before = len(self.reasons)
        try:
            made = self._made(class_name, config, name)
        except Exception as error:  # whatever a constructor says of its arguments
            self._refuse(" ".join(str(error).split())[:300])
        return made if len(self.reasons) == before else None

    def _made(self, class_name: str, config: dict[str, Any], name: str) -> Any:
        given = self._custom.get(class_name, self._custom.get(class_name.rpartition(">")[2]))
        if isinstance(given, type):
            made: Any = given
            return made.from_config({k: v for k, v in config.items() if k not in _IRRELEVANT})
        if class_name == "Lambda":
            return self._lambda(config, name)
        if class_name == "Merge":
            class_name, config = self._merge(config)
        if class_name in _IDENTITIES:
            self._note("acts in training alone and passes its inputs on")
            return legacy_layers.Unchanged(name=own_name(name))
        new_name = _CLASSES.get(class_name, class_name)
        cls = _OWN.get(class_name) or getattr(keras.layers, new_name, None)
        if class_name == "BatchNormalization" and config.get("mode"):
            self._note(f"mode={config['mode']} never uses what training gathered")
            cls = legacy_layers.BatchlessNormalization
            config.pop("momentum", None)
        if class_name in _CAUSAL and config.pop("causal", False):
            cls = _CAUSAL[class_name]
        is_bilinear = class_name == "UpSampling2D" and config.get("interpolation") == "bilinear"
        if is_bilinear and self._origin.is_apart:
            self._note("interpolates between corners, not between the centres of pixels")
            cls = legacy_layers.BilinearUpSampling2D
            config.pop("interpolation")
        if not (isinstance(cls, type) and issubclass(cls, keras.layers.Layer)):
            self._refuse("is of a class that Keras 3 does not have; give it in custom_objects")
            return None
        if new_name != class_name and class_name in _CLASSES:
            self._note(f"became {new_name}")
        arguments = self._arguments(cls, class_name, config)
        made = cls(**arguments, name=own_name(name))
        if config.get("trainable") is False:
            made.trainable = False
        if class_name == "Bidirectional" and self._origin.is_apart:
            for side in (made.forward_layer, made.backward_layer):
                side.zero_output_for_mask = False
        return made

    # -- arguments ---------------------------------------------------------------------------------

    def _arguments(self, cls: type, class_name: str, config: dict[str, Any]) -> dict[str, Any]:
        accepted = _parameters(cls)
        config = self._without_training(config)
        self._by_class(class_name, config, accepted)
        result: dict[str, Any] = {}
        for key, value in config.items():
            if key in ("name", "dtype", "trainable"):
                continue
            new = _RENAMED.get(key, key)
            if key in accepted:
                result[key] = self._value(key, value)
            elif new in accepted:
                self._note(f"{key} became {new}")
                result[new] = self._value(new, value)
            elif not self._can_go(key, value):
                self._refuse(f"has {key}={value!r:.80}, which Keras 3 does not know")
        # Keras 2 said what comes out of it, Keras 3 what goes in.
        dtype = None if class_name == "Discretization" else _dtype(config.get("dtype"))
        return {**result, "dtype": dtype} if dtype else result

    def _without_training(self, config: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in config.items()
            if not key.endswith(_TRAINING) and key not in _TRAINING_ARGUMENTS
        }

    def _by_class(self, class_name: str, config: dict[str, Any], accepted: frozenset[str]) -> None:
        """What a name alone does not tell."""
        for parts in _SIZES:
            if parts[0] in config:
                config["kernel_size"] = [config.pop(part) for part in parts if part in config]
                self._note(f"{', '.join(parts)} became kernel_size")
        if config.get("dim_ordering") in _ORDERINGS:
            config["dim_ordering"] = _ORDERINGS[config["dim_ordering"]]
        if "data_format" in accepted and self._major < 2 and "dim_ordering" not in config:
            config.setdefault("data_format", "channels_last")
        is_norm = _CLASSES.get(class_name, class_name) == "BatchNormalization"
        if is_norm and isinstance(config.get("axis"), list) and len(config["axis"]) == 1:
            self._note(f"axis={config['axis']} became {config['axis'][0]}")
            config["axis"] = config["axis"][0]
        if is_norm:
            config.pop("dim_ordering", None)
            config.pop("renorm", None)
            if config.get("mode") == 0:
                config.pop("mode")
        if class_name == "Embedding":
            config.pop("dropout", None)
            if "output_dim" in config:
                config["output_dim"] = int(config["output_dim"])
        if class_name in ("GRU", "GRUCell") and "reset_after" not in config:
            # Keras 3's default is another than that of the Kerases which had none.
            config["reset_after"] = False
            self._note("reset_after is False, as it was meant")
        if class_name == "CuDNNGRU":
            config["reset_after"] = True
        if class_name in ("CuDNNLSTM", "CuDNNGRU"):
            config.update(activation="tanh", recurrent_activation="sigmoid")
        elif class_name in _RECURRENT and class_name != "SimpleRNN" and self._major < 2:
            config.setdefault("inner_activation", "hard_sigmoid")
        if class_name == "ELU":
            config.setdefault("alpha", 1.0)
        if class_name == "Dot" and "normalize" not in config:
            config["normalize"] = False
        if class_name in ("Deconvolution2D", "Convolution2DTranspose"):
            config.pop("output_shape", None)  # which follows from all others
        if class_name == "UpSampling1D":
            config.pop("dim_ordering", None)
        if class_name == "MultiHeadAttention" and isinstance(config.get("output_shape"), int):
            config["output_shape"] = [config["output_shape"]]  # Keras 3.4 takes no number

    def _can_go(self, key: str, value: Any) -> bool:
        if key in _NEUTRAL:
            if value in _NEUTRAL[key]:
                self._note(f"{key}={value} is what Keras 3 does anyway")
                return True
            return False
        if key in _IRRELEVANT or value is None or value is False or value in ([], {}):
            return True
        return key in ("input_dim", "dropout") and self._major < 2

    def _value(self, key: str, value: Any) -> Any:
        if key in _ACTIVATIONS:
            return self.activation(value)
        if isinstance(value, dict) and "class_name" in value:
            where = self._where
            is_model = value["class_name"] in MODELS
            made = self._model(value) if is_model else self.layer(value)
            self._where = where
            return made
        if key == "cells" and isinstance(value, list):
            return [self._value("cell", x) for x in value]
        if key == "cell" and isinstance(value, list):
            return [self._value("cell", x) for x in value]
        return tuple(value) if isinstance(value, list) and _is_flat(value) else value

    def activation(self, value: Any) -> Any:
        """An activation that an old configuration names, or None after adding to the reasons."""
        if isinstance(value, dict) and value.get("class_name") == "function":
            value = value.get("config")
        if isinstance(value, dict):
            return self._value("layer", value)
        if value is None:
            return "linear"
        given = self._custom.get(value)
        if given is not None:
            self._note(f"the activation {value!r} is the one that was given")
            return given
        if value == "hard_sigmoid":
            self._note("hard_sigmoid is that of Keras 2, clip(0.2 x + 0.5)")
            return legacy_layers.keras_2_hard_sigmoid
        name = _RENAMED_ACTIVATIONS.get(value, value)
        if isinstance(name, str) and callable(getattr(keras.activations, name, None)):
            return name
        self._refuse(f"has the activation {value!r}, which Keras 3 does not know; say which it is "
                     f"by custom_objects={{{value!r}: function}} or --activation "
                     f"'{value}=relu'")  # fmt: skip
        return None

    # -- single classes ----------------------------------------------------------------------------

    def _lambda(self, config: dict[str, Any], name: str) -> Any:
        function = config.get("function")
        given = self._custom.get(name)
        if given is None and isinstance(function, str):
            given = self._custom.get(function)
        if given is None:
            self._refuse("is a Lambda; give its function by "
                         f"custom_objects={{{name!r}: function}}")  # fmt: skip
            return None
        self._note("the function of the Lambda is the one that was given")
        return keras.layers.Lambda(
            given, arguments=config.get("arguments") or None, name=own_name(name)
        )

    def _merge(self, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        mode = config.get("mode", "sum")
        class_name = _MERGE_MODES.get(mode) if isinstance(mode, str) else None
        if class_name is None:
            self._refuse(f"merges by mode={mode!r:.80}, which has no meaning outside of its file")
            return "Add", {}
        self._note(f"mode={mode!r} became {class_name}")
        if class_name == "CosineMerge":
            return class_name, {"axes": _first_axes(config)}
        kept: dict[str, Any] = {}
        if class_name == "Concatenate":
            kept["axis"] = config.get("concat_axis", -1)
        if class_name == "Dot":
            kept = {"axes": _first_axes(config), "normalize": False}
        return class_name, kept

    def _note(self, text: str) -> None:
        note = f"{self._where}: {text}."
        if note not in self.notes:
            self.notes.append(note)

    def _refuse(self, text: str) -> None:
        self.reasons.append(f"{self._where} {text}")


def _first_axes(config: Mapping[str, Any]) -> Any:
    axes = config.get("dot_axes", -1)
    return [x[0] if isinstance(x, list) else x for x in axes] if isinstance(axes, list) else axes


def own_name(name: str) -> str:
    """A name that a layer of Keras 3 may have."""
    return name.replace("/", "_")


def decoded(value: Any) -> Any:
    """A configuration without the marks by which Keras 2 told tuples and shapes from lists."""
    if isinstance(value, list):
        return [decoded(x) for x in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") in ("TensorShape", "__tuple__") and "items" in value:
        return decoded(value["items"])
    if value.get("class_name") == "__ellipsis__":
        return ...
    return {key: decoded(x) for key, x in value.items()}


def _parameters(cls: Callable[..., Any]) -> frozenset[str]:
    """What a layer's constructor takes, without what every layer does."""
    found: set[str] = set()
    for base in inspect.getmro(cls):  # type: ignore[arg-type]
        if base is keras.layers.Layer:
            break
        signature = inspect.signature(base.__init__)  # type: ignore[misc]
        named = [x for x in signature.parameters.values() if x.kind is not x.VAR_KEYWORD]
        found |= {x.name for x in named if x.kind is not x.VAR_POSITIONAL}
        if len(named) == len(signature.parameters):
            break
    return frozenset(found - {"self", "name", "dtype", "trainable"})


def _dtype(value: Any) -> Any:
    """The name of a dtype or of a policy."""
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner.get("name") if isinstance(inner, dict) else None
    return value if isinstance(value, str) and value != "infer" else None


def _is_flat(value: list[Any]) -> bool:
    return all(isinstance(x, int | float | str | None) for x in value)
