"""Models of Keras 3 from the configurations and weights of Keras 1 and 2.

In: a checked configuration and the HDF5 file with its weights. Out: the model with its values. The
invariant: a model comes back only with every weight that it has from the file; what stands in the
way is told all at once, each with its layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_export import archived_weights, hdf5, layouts
from keras_export.errors import ConversionError
from keras_export.hdf5 import StoredWeight
from keras_export.layouts import Origin
from keras_export.legacy_layers import LocallyConnected, TensorFlowFunction
from keras_export.tensorflow_calls import function_of, operation_of
from keras_export.upgrades import MODELS, Upgrader, decoded, own_name

_OPERATION = "TensorFlowOpLayer"  # of Keras 2.2 to 2.4
_CALLS = frozenset(("TFOpLambda", "SlicingOpLambda", _OPERATION))
_CONSTANT = "_CONSTANT_VALUE"
# Keras 2 hands the states of these on as further inputs.
_WITH_STATES = frozenset(("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM2D", "Bidirectional",
                          "CuDNNLSTM", "CuDNNGRU"))  # fmt: skip
# Arguments of a call that change nothing in inference, or say what is so anyway.
_DROPPED = frozenset(("training", "mask"))


class Reviver:
    """Makes the model of one file.

    Args:
        path: of the file, for errors.
        custom: classes and functions by their names in the file.
        origin: the Keras that wrote it.

    Attributes:
        notes: what was carried over by hand.
    """

    def __init__(self, path: str, custom: Mapping[str, Any], origin: Origin) -> None:
        self._path, self._custom, self._origin = path, custom, origin
        self._upgrader = Upgrader(custom, origin, self._make)
        self._configs: dict[int, tuple[str, dict[str, Any]]] = {}
        # The layers of each model in the order of the file, with the names of their classes.
        self._children: dict[int, list[tuple[str, Any]]] = {}

    @property
    def notes(self) -> list[str]:
        """What was carried over by hand."""
        return self._upgrader.notes

    def model(self, config: Mapping[str, Any]) -> Any:
        """The model of a configuration, without values.

        Raises:
            ConversionError: with every layer that cannot be made.
        """
        functions = {getattr(x, "__name__", ""): x for x in self._custom.values()}
        with keras.saving.custom_object_scope({**functions, **self._custom}):
            model = self._make(config)
        self._raise("make the model")
        return model

    def load(self, model: Any, path: str, on_read: Callable[[int], None]) -> None:
        """Gives a model the weights of a file.

        Args:
            model: made by `model`, or any built model.
            path: of an HDF5 file with weights by layers.
            on_read: called with the bytes that were read so far.

        Raises:
            ConversionError: with every weight that is missing or has another shape.
        """
        with hdf5.stored_layers(path) as stored:
            filled = {name: weights for name, weights in stored.items() if weights}
            size = 0
            for layer, weights in self._matched(model, filled):
                self._fill(layer, weights)
                size += sum(weight.dataset.nbytes for weight in weights)
                on_read(size)
        self._raise("load the weights")

    def load_archived(self, model: Any, path: str, on_read: Callable[[int], None]) -> None:
        """Gives a model that `model` made the weights of its archive.

        Args:
            model: made by `model`.
            path: of the archive's HDF5 file.
            on_read: called with the bytes that were read so far.

        Raises:
            ConversionError: with every weight that is missing or has another shape.
        """
        with hdf5.stored_variables(path) as stored:
            size = 0
            for layer, place, weights in archived_weights.matched(model, self._layers_of, stored):
                if not weights:
                    self._upgrader.reasons.append(f"layer {layer.name!r} has no weights in {place}")
                    continue
                class_name, config = self._configs[id(layer)]
                self._assign(layer, class_name, config, weights)
                size += sum(weight.dataset.nbytes for weight in weights)
                on_read(size)
        self._raise("load the weights")

    def _layers_of(self, model: Any) -> Sequence[tuple[str, Any]]:
        return self._children[id(model)]

    def _raise(self, what: str) -> None:
        if self._upgrader.reasons:
            reasons = "; ".join(dict.fromkeys(self._upgrader.reasons))
            raise ConversionError(f"Cannot {what} of {self._path}: {reasons}.")

    # -- layers and their nodes --------------------------------------------------------------------

    def _make(self, node: Mapping[str, Any]) -> Any:
        """A layer or a model, or None."""
        class_name, config = str(node.get("class_name")), node.get("config")
        if class_name not in MODELS:
            made = self._upgrader.layer(node)
        elif isinstance(config, list) or class_name == "Sequential":
            made = self._sequential(config, node)
        else:
            made = self._functional(config)
        if made is not None:
            inner = config if isinstance(config, dict) else {}
            self._configs[id(made)] = (class_name, decoded(inner))
        return made

    def _sequential(self, config: Any, node: Mapping[str, Any]) -> Any:
        nodes = config if isinstance(config, list) else config.get("layers", [])
        name = "sequential" if isinstance(config, list) else config.get("name", "sequential")
        name = str(node.get("name") or name)
        merged = bool(nodes) and nodes[0].get("class_name") == "Merge"
        branches = nodes[0]["config"].get("layers") or [] if merged else []
        parts = [self._make(branch) for branch in branches]
        layers = [self._make(x) for x in nodes if x.get("class_name") != "InputLayer"]
        if None in (*layers, *parts):
            return None
        if parts:
            inputs = [x for part in parts for x in part.inputs]
            return self._chained(inputs, [part.output for part in parts], layers, name)
        x = self._first_input(nodes, config)
        if x is None:
            self._upgrader.reasons.append(
                f"model {name!r} has no input shape; build it in a factory and give its weights"
            )
            return None
        model = self._chained([x], x, layers, name)
        if model is None:
            return None
        names = [str(x["class_name"]) for x in nodes if x.get("class_name") != "InputLayer"]
        self._children[id(model)] = list(zip(names, layers, strict=True))
        return model

    def _chained(self, inputs: list[Any], x: Any, layers: list[Any], name: str) -> Any:
        for layer in layers:
            x = self._called(layer, [x], {})
            if x is None:
                return None
        return keras.Model(inputs if len(inputs) > 1 else inputs[0], x, name=own_name(name))

    def _first_input(self, nodes: Sequence[Mapping[str, Any]], config: Any) -> Any:
        """The input that a Sequential has, or that its first layer's arguments tell."""
        first = nodes[0] if nodes else {}
        inner = _inner(first)
        name = inner.get("name")
        if first.get("class_name") == "InputLayer":
            return _input(inner)
        shape = inner.get("batch_input_shape")
        while shape is None and (first.get("class_name") in MODELS or "layer" in inner):
            first = inner.get("layers", [inner.get("layer")])[0] or {}
            inner = _inner(first)
            name = name or inner.get("name")
            shape = inner.get("batch_input_shape") or inner.get("batch_shape")
        if shape is None and inner.get("input_dim") and first.get("class_name") != "Embedding":
            shape = [None, inner["input_dim"]]
        if shape is None and isinstance(config, dict):
            shape = config.get("build_input_shape")
        if shape is None:
            return None
        return _input({**inner, "batch_input_shape": shape, "name": f"{name or 'model'}_input"})

    def _functional(self, config: Any) -> Any:
        config = decoded(config)
        nodes = {x["name"]: x for x in config["layers"]}
        made = {
            name: None if node["class_name"] in ("InputLayer", *_CALLS) else self._make(node)
            for name, node in nodes.items()
        }
        self._check_calls(nodes)
        if self._upgrader.reasons:
            return None
        graph = _Graph(self, nodes, made, config["output_layers"])
        if not graph.wire():
            return None
        inputs = graph.tensors(config["input_layers"])
        outputs = graph.tensors(config["output_layers"])
        model = keras.Model(inputs, outputs, name=own_name(config["name"]))
        self._children[id(model)] = [
            (str(node["class_name"]), made[name]) for name, node in nodes.items()
        ]
        return model

    def _check_calls(self, nodes: Mapping[str, Any]) -> None:
        for name, node in nodes.items():
            config = _inner(node)
            function: Any = config.get("function")
            if node["class_name"] == _OPERATION:
                known = _operation(config) is not None
                function = f"raw_ops.{_node_def(config)['op']}"
            else:
                known = node["class_name"] not in _CALLS or function_of(str(function)) is not None
            if not known:
                self._upgrader.reasons.append(
                    f"layer {name!r} calls tf.{function}, which may not be called or is gone"
                )

    def _called(self, layer: Any, inputs: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a layer; None after adding to the reasons."""
        class_name, _ = self._configs.get(id(layer), ("", {}))
        kwargs = {k: v for k, v in kwargs.items() if v is not None and k not in _DROPPED}
        value: Any = inputs[0] if len(inputs) == 1 else inputs
        if class_name in _WITH_STATES and isinstance(value, list):
            value, kwargs["initial_state"] = value[0], value[1:]
        try:
            return layer(value, **kwargs)
        except Exception as error:  # whatever a layer says of its inputs
            text = " ".join(str(error).split())[:300]
            self._upgrader.reasons.append(f"layer {layer.name!r} cannot be called: {text}")
            return None

    # -- weights -----------------------------------------------------------------------------------

    def _matched(
        self, model: Any, stored: Mapping[str, list[StoredWeight]]
    ) -> Iterator[tuple[Any, list[StoredWeight]]]:
        """By the names of layers, or by their order where the names are others."""
        layers = [layer for layer in model.layers if layer.weights]
        by_name = {layer.name: layer for layer in layers}
        own = {own_name(name): weights for name, weights in stored.items()}
        if set(own) == set(by_name) or (set(own) & set(by_name) and len(own) != len(layers)):
            self._tell_differences(set(by_name), set(own))
            yield from ((by_name[name], own[name]) for name in own if name in by_name)
        elif len(own) == len(layers):
            self.notes.append("The weights were matched by the order of the layers.")
            yield from zip(layers, own.values(), strict=True)
        else:
            self._tell_differences(set(by_name), set(own))

    def _tell_differences(self, layers: set[str], stored: set[str]) -> None:
        reasons = [f"layer {name!r} has no weights in the file" for name in layers - stored]
        reasons += [f"the file has weights for {name!r}, which is no layer of the model"
                    for name in stored - layers]  # fmt: skip
        self._upgrader.reasons += sorted(reasons)

    def _fill(self, layer: Any, stored: list[StoredWeight]) -> None:
        class_name, config = self._configs.get(id(layer), (type(layer).__name__, {}))
        if isinstance(getattr(layer, "layer", None), keras.Model):
            layer = layer.layer  # of a TimeDistributed
        if not isinstance(layer, keras.Model):
            self._assign(layer, class_name, config, stored)
            return
        inner = list(_leaves(layer))
        groups = _by_layer(inner, stored)
        if groups is None:
            groups = _by_order(inner, stored)
        if groups is None:
            self._upgrader.reasons.append(
                f"model {layer.name!r} has {len(layer.weights)} weights, the file {len(stored)}"
            )
            return
        for leaf, weights in groups:
            name, arguments = self._configs.get(id(leaf), (type(leaf).__name__, {}))
            self._assign(leaf, name, arguments, weights)

    def _assign(
        self, layer: Any, class_name: str, config: dict[str, Any], stored: list[StoredWeight]
    ) -> None:
        names = [weight.own_name for weight in stored]
        try:
            arrays = layouts.convert(
                class_name, config, [weight.read() for weight in stored], names, self._origin
            )
        except (ValueError, IndexError) as error:
            self._upgrader.reasons.append(f"layer {layer.name!r} has other weights: {error}")
            return
        if isinstance(layer, LocallyConnected):
            arrays = [layer.kernel_of(arrays[0], config.get("implementation", 1)), *arrays[1:]]
        if isinstance(layer, keras.layers.Normalization):
            layer.load_own_variables({str(i): array for i, array in enumerate(arrays)})
            return
        variables = _in_order(layer, names if len(arrays) == len(stored) else [])
        shapes, found = [tuple(v.shape) for v in variables], [x.shape for x in arrays]
        if shapes != found:
            self._upgrader.reasons.append(
                f"layer {layer.name!r} has weights of the shapes {shapes}, the file {found}"
            )
            return
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array.astype(np.float32) if array.dtype == np.float64 else array)


class _Graph:
    """Calls the layers of a functional model on each other, in whatever order they stand."""

    def __init__(
        self, reviver: Reviver, nodes: Mapping[str, Any], made: Mapping[str, Any], ends: Any
    ) -> None:
        self._reviver, self._nodes, self._made = reviver, nodes, made
        # The flat outputs of each call of each layer.
        self._outputs: dict[str, list[list[Any]]] = {name: [] for name in nodes}
        # Where Keras counts the calls of a model from 1, the first being the one that made it.
        self._skipped = {
            name: max(numbers) + 1 - len(nodes[name]["inbound_nodes"])
            for name, numbers in self._numbers(nodes, ends).items()
            if nodes[name]["class_name"] in MODELS
        }

    def wire(self) -> bool:
        """Returns whether everything could be called; else there are reasons."""
        waiting = []
        for name, node in self._nodes.items():
            if node["class_name"] == "InputLayer":
                self._outputs[name].append([_input({**node["config"], "name": name})])
            else:
                waiting += [(name, i) for i in range(len(node["inbound_nodes"]))]
        while waiting:
            left = []
            for name, number in waiting:
                node = self._nodes[name]["inbound_nodes"][number]
                if number > len(self._outputs[name]) or not self._ready(node):
                    left.append((name, number))
                elif not self._call(name, node):
                    return False
            if len(left) == len(waiting):
                names = sorted({name for name, _ in left})
                self._reviver._upgrader.reasons.append(f"layers {names} wait for each other")
                return False
            waiting = left
        return True

    def tensors(self, structure: Any) -> Any:
        """The tensors that a model's inputs or outputs name, in their structure."""
        if isinstance(structure, dict):
            return {key: self.tensors(x) for key, x in structure.items()}
        if self._is_reference(structure):
            return self._tensor(structure)
        found = [self.tensors(x) for x in structure]
        return found[0] if len(found) == 1 else found

    def _call(self, name: str, node: Any) -> bool:
        reviver = self._reviver
        if self._nodes[name]["class_name"] in _CALLS:
            results = self._call_function(name, node)
        else:
            inputs, kwargs = self._arguments(node)
            results = reviver._called(self._made[name], inputs, kwargs)
        if results is None:
            return False
        self._outputs[name].append(keras.tree.flatten(results))
        return True

    def _arguments(self, node: Any) -> tuple[list[Any], dict[str, Any]]:
        """Of a call as Keras 1 and 2 write it: the inputs, each with the same further arguments."""
        entries = [node] if self._is_reference(node) else node
        if isinstance(entries, dict):
            return [{k: self._tensor(x) for k, x in entries.items()}], {}
        kwargs = entries[0][3] if entries and len(entries[0]) > 3 else {}
        return [self._tensor(x) for x in entries], self._filled(kwargs)

    def _call_function(self, name: str, node: Any) -> Any:
        """Calls a function of TensorFlow, whose tensors may stand anywhere in its arguments."""
        config = self._nodes[name]["config"]
        if self._nodes[name]["class_name"] == _OPERATION:
            operation: Any = _operation(config)
            layer = TensorFlowFunction(
                operation,
                lambda given: ([given if isinstance(given, list | tuple) else [given]], {}),
                name=own_name(name),
            )
            return self._reviver._called(layer, self._arguments(node)[0], {})
        single = self._is_reference(node) or node[:1] == [_CONSTANT]
        entries = [node] if single else node
        kwargs = dict(entries[0][3]) if len(entries[0]) > 3 else {}
        first = [x[2] if x[0] == _CONSTANT else x[:3] for x in entries]
        template = (first[0] if single else first, kwargs)
        tensors: list[Any] = []

        def marked(value: Any) -> Any:
            if self._is_reference(value):
                tensors.append(self._tensor(value))
                return _Place(len(tensors) - 1)
            if isinstance(value, dict):
                return {key: marked(x) for key, x in value.items()}
            return [marked(x) for x in value] if isinstance(value, list) else value

        places = marked(list(template))

        def arguments(given: Any) -> tuple[Sequence[Any], dict[str, Any]]:
            flat = given if isinstance(given, list | tuple) else [given]
            positional, named = _put(places, flat)
            return [positional], {k: x for k, x in named.items() if k != "name"}

        number = len(self._outputs[name])
        function: Any = function_of(str(config["function"]))
        layer = TensorFlowFunction(
            function, arguments, name=own_name(f"{name}_call_{number}" if number else name)
        )
        return self._reviver._called(layer, tensors, {})

    def _filled(self, value: Any) -> Any:
        if self._is_reference(value):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self._filled(x) for key, x in value.items()}
        return [self._filled(x) for x in value] if isinstance(value, list) else value

    def _ready(self, value: Any) -> bool:
        if self._is_reference(value):
            made = len(self._outputs[value[0]]) > self._number(value)
            return made and all(self._ready(x) for x in value[3:])
        if isinstance(value, dict):
            return all(self._ready(x) for x in value.values())
        return all(self._ready(x) for x in value) if isinstance(value, list) else True

    def _is_reference(self, value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) in (3, 4)
            and isinstance(value[0], str)
            and value[0] in self._outputs
            and all(type(x) is int for x in value[1:3])
        )

    def _tensor(self, reference: Sequence[Any]) -> Any:
        return self._outputs[reference[0]][self._number(reference)][reference[2]]

    def _number(self, reference: Sequence[Any]) -> int:
        return reference[1] - max(0, self._skipped.get(reference[0], 0))

    def _numbers(self, nodes: Mapping[str, Any], ends: Any) -> dict[str, set[int]]:
        """The numbers of all calls that something refers to, by layer."""
        found: dict[str, set[int]] = {}
        waiting = [ends, *(node.get("inbound_nodes", []) for node in nodes.values())]
        while waiting:
            value = waiting.pop()
            if self._is_reference(value):
                found.setdefault(value[0], set()).add(value[1])
            if isinstance(value, list | dict):
                waiting += value.values() if isinstance(value, dict) else value
        return found


class _Place:
    """Where a tensor stands among the arguments of a function."""

    def __init__(self, index: int) -> None:
        self.index = index


def _node_def(config: Mapping[str, Any]) -> Any:
    found = config["node_def"]
    return json.loads(found) if isinstance(found, str) else found


def _operation(config: Mapping[str, Any]) -> Any:
    return operation_of(_node_def(config), config.get("constants") or {})


def _put(value: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(value, _Place):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put(x, tensors) for key, x in value.items()}
    return [_put(x, tensors) for x in value] if isinstance(value, list) else value


def _input(config: Mapping[str, Any]) -> Any:
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    dtype = config.get("dtype") or config.get("input_dtype") or "float32"
    return keras.Input(
        batch_shape=tuple(shape or ()),
        dtype=dtype if isinstance(dtype, str) else "float32",
        sparse=bool(config.get("sparse", False)),
        name=own_name(str(config["name"])),
    )


def _inner(node: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a layer or model; that of a Sequential was a list of its layers."""
    config = decoded(node.get("config") or {})
    return {"layers": config} if isinstance(config, list) else config


def _leaves(layer: Any) -> Iterator[Any]:
    """The layers of a model, and of the models in it, that have weights."""
    if isinstance(layer, keras.Model):
        for inner in layer.layers:
            yield from _leaves(inner)
    elif layer.weights:
        yield layer


def _by_layer(
    leaves: Sequence[Any], stored: Sequence[StoredWeight]
) -> list[tuple[Any, list[StoredWeight]]] | None:
    """Groups the weights of a nested model by the layer's name in theirs, if each has one."""
    by_name = {leaf.name: leaf for leaf in leaves}
    if len(by_name) < len(leaves):
        return None
    groups: dict[str, list[StoredWeight]] = {name: [] for name in by_name}
    for weight in stored:
        names = [part for part in reversed(weight.scope.split("/")) if part in groups]
        if not names:
            return None
        groups[names[0]].append(weight)
    if any(len(groups[name]) != len(leaf.weights) for name, leaf in by_name.items()):
        return None
    return [(leaf, groups[name]) for name, leaf in by_name.items()]


def _by_order(
    leaves: Sequence[Any], stored: Sequence[StoredWeight]
) -> list[tuple[Any, list[StoredWeight]]] | None:
    """Keras 2 stores a nested model's trainable weights first, and then the others."""
    slots = [(leaf, True) for leaf in leaves for _ in leaf.trainable_weights]
    slots += [(leaf, False) for leaf in leaves for _ in leaf.non_trainable_weights]
    if len(slots) != len(stored):
        return None
    groups: dict[int, list[StoredWeight]] = {id(leaf): [] for leaf in leaves}
    for (leaf, _), weight in zip(slots, stored, strict=True):
        groups[id(leaf)].append(weight)
    return [(leaf, groups[id(leaf)]) for leaf in leaves]


def _in_order(layer: Any, names: Sequence[str]) -> list[Any]:
    """The layer's variables in the order of the names, if they have just these."""
    variables = [*layer.trainable_weights, *layer.non_trainable_weights]
    by_name = {variable.name: variable for variable in variables}
    if len(by_name) == len(variables) and sorted(by_name) == sorted(names):
        return [by_name[name] for name in names]
    return variables
