"""LiteRT, ONNX Runtime and OpenVINO run what was exported, with the live model's numbers.

`pip install -e '.[consumers]'`, then `pytest -m network tests/test_converted.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import test_zoo as zoo
from zoo import KINDS

pytestmark = pytest.mark.network

_KEY = "serving_default"
CONVERTED = [
    "diffusion_unet",
    "functional_dict",
    "functional_nested",
    "functional_shared_input",
    "functional_single",
    "lambda_layer",
    "siamese",
    "wavenet",
]


def by_litert(folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[_KEY])
    runner = interpreter(model_content=converter.convert()).get_signature_runner(_KEY)
    return dict(runner(**inputs))


def by_onnx_runtime(folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    runtime = pytest.importorskip("onnxruntime")
    convert = pytest.importorskip("tf2onnx.convert")
    target = str(folder.parent / f"{folder.name}.onnx")
    before = sys.argv
    sys.argv = ["tf2onnx", "--saved-model", str(folder), "--signature_def", _KEY]
    sys.argv += ["--tag", "serve", "--output", target]
    try:
        convert.main()
    finally:
        sys.argv = before
    session = runtime.InferenceSession(target, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def by_openvino(folder: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    openvino = pytest.importorskip("openvino")
    # By itself it computes in bfloat16 where the processor can.
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.convert_model(str(folder)), "CPU", exactly)
    results = compiled(inputs)
    return {
        name.partition(":")[0]: results[output]
        for output in compiled.outputs
        for name in output.get_names()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("run", [by_litert, by_onnx_runtime, by_openvino])
def test_what_is_converted_gives_the_live_numbers(run: Any, tmp_path: Path) -> None:
    for name in CONVERTED:
        kind = KINDS[name]
        made = zoo.export(kind, tmp_path / name)
        (expected,) = zoo.live_results(kind, made)
        found = run(tmp_path / name, zoo.named_inputs(kind))
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, 1e-3, 1e-4, err_msg=f"{name}: {key}")
