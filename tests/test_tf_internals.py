"""Each private name exists: a release that moves one is named by the failure."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from keras_export import tf_internals

_FILE = Path(tf_internals.__file__)
_PACKAGE = _FILE.parent


def _imports() -> list[tuple[str, str, str]]:
    """`(module, name, name in tf_internals)` of every import in the file, also inside functions."""
    return [
        (node.module, alias.name, alias.asname or alias.name)
        for node in ast.walk(ast.parse(_FILE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__")
        for alias in node.names
    ]


@pytest.mark.parametrize(
    ("module", "name"), [x[:2] for x in _imports()], ids=[x[2] for x in _imports()]
)
def test_the_private_name_is_where_it_is_looked_for(module: str, name: str) -> None:
    versions = f"TensorFlow {tf.version.VERSION} with Keras {keras.__version__}"
    mend = "Find its new place and mend keras_export/tf_internals.py."
    try:
        home = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"{versions} has no module {module!r}, which held {name!r} ({error}). {mend}")
    if not hasattr(home, name):
        try:
            importlib.import_module(f"{module}.{name}")
        except ImportError:
            pytest.fail(f"{versions} has no {name!r} in {module!r}. {mend}")


def test_every_private_name_has_a_use() -> None:
    others = [path for path in _PACKAGE.glob("*.py") if path != _FILE]
    text = "\n".join(path.read_text() for path in others)
    inside = [x[2] for x in _imports() if x[0].startswith("keras.")]
    unused = [name for _, name, own in _imports() if own not in text and own not in inside]
    assert unused == []


def test_every_private_import_has_its_reason() -> None:
    """A comment stands above the import or above the block of imports that it belongs to."""
    lines = _FILE.read_text().splitlines()
    without = []
    for node in ast.parse(_FILE.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            above = node.lineno - 2
            while above >= 0 and lines[above].strip() and not lines[above].startswith("#"):
                above -= 1
            if not lines[above].startswith("#"):
                without.append(node.module)
    assert without == []


def test_the_functional_class_is_found() -> None:
    x = keras.Input((1,))
    assert isinstance(keras.Model(x, x), tf_internals.keras_functional_class())
    assert not isinstance(keras.layers.Dense(1), tf_internals.keras_functional_class())


def test_keras_asks_for_devices_where_it_is_answered() -> None:
    names = [name for _, name, _ in tf_internals.keras_device_questions()]
    assert "_is_gpu_available" in names


def test_keras_reshapes_and_adds_where_it_is_looked_up() -> None:
    assert len(tf_internals.keras_reshaping()) == len(tf_internals.keras_addition()) == 1


def test_keras_normalizes_where_it_is_looked_up() -> None:
    ((module, name),) = tf_internals.keras_batch_normalization()
    arguments = inspect.signature(getattr(module, name)).parameters
    assert {"x", "axis"} <= set(arguments)
