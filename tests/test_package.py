"""Promises of the package as a whole: its names, its weight, its order, what it never calls."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

import keras_export as ke

_PACKAGE = Path(ke.__file__).parent
_REPOSITORY = _PACKAGE.parent
_TREES = {
    path.stem: ast.parse(path.read_text(), str(path)) for path in sorted(_PACKAGE.glob("*.py"))
}
_COMMANDS = sorted((_PACKAGE / "commands").glob("*.py"))

# A module imports only what stands before it: see DESIGN.md.
_ORDER = [
    "tf_internals",
    "errors",
    "digests",
    "structures",
    "checkpoint_keys",
    "keras_objects",
    "tracking",
    "substitution",
    "portability",
    "graph_building",
    "attributes",
    "functions",
    "effects",
    "weight_paths",
    "signatures",
    "forward_traces",
    "input_specs",
    "recorded_calls",
    "keras_models",
    "endpoints",
    "wrappers",
    "closures",
    "outlining",
    "gradients",
    "node_names",
    "canonical",
    "reading",
    "variables",
    "held_values",
    "averages",
    "halves",
    "resources",
    "export_requests",
    "loaded_objects",
    "contents",
    "main_graph",
    "signature_defs",
    "saver_nodes",
    "object_graph",
    "metagraph",
    "served_functions",
    "assets",
    "plots",
    "clients",
    "reports",
    "collecting",
    "assembly",
    "targets",
    "locks",
    "directories",
    "sweeping",
    "staging",
    "remote_staging",
    "publishing",
    "atomic",
    "staleness",
    "sharing",
    "early_writing",
    "background",
    "batches",
    "callback_arguments",
    "summaries",
    "outcomes",
    "ranking",
    "templates",
    "versions",
    "trainings",
    "protos",
    "checksums",
    "fingerprints",
    "bundles",
    "object_graphs",
    "inspection",
    "samples",
    "invocation",
    "cpp_loader",
    "isolation",
    "trial",
    "crosschecks",
    "comparison",
    "verification",
    "weights",
    "pictures",
    "terminal",
    "retention",
    "releases",
    "layers",
    "execution",
    "node_kinds",
    "refusals",
    "lint",
    "converters",
    "compatibility",
    "warmups",
    "exporter",
    "mixin",
    "archive",
    "sources",
    "hdf5_walk",
    "quarantine",
    "untrusted",
    "configurations",
    "contracts",
    "version_writing",
    "callbacks",
    "hdf5",
    "archived_weights",
    "layouts",
    "legacy_layers",
    "tensorflow_calls",
    "upgrades",
    "revival",
    "conversion",
    "bundle_writing",
    "reweighting",
    "commands",
    "cli",
    "__main__",
]  # fmt: skip

_PRIVATE = re.compile(r"^(tensorflow\.(python|core|compiler|lite)|keras\.src)(\.|$)")

# They write a SavedModel by TensorFlow's or Keras's own code.
_WRITERS = re.compile(
    r"(saved_model\.save\b|saved_model\.(experimental|simple_save|builder|Builder)\b"
    r"|SavedModelBuilder|keras\.export\b|\bModel\.export)"
)

_PUBLIC = [
    "CompatibilityReport",
    "ConversionError",
    "DamagedFileError",
    "Endpoint",
    "ExportArchive",
    "ExportError",
    "ExportMixin",
    "ExportReport",
    "Exporter",
    "LayerChange",
    "Model",
    "Problem",
    "SaveOptions",
    "SavedModelCheckpoint",
    "SavedModelDiff",
    "SavedModelInfo",
    "Sequential",
    "Signature",
    "Snapshot",
    "StrippedAttributes",
    "TrainingReport",
    "UnsafeFileError",
    "VariableChange",
    "VerificationReport",
    "WeightsReport",
    "__version__",
    "check",
    "convert",
    "diff",
    "export",
    "extract_weights",
    "from_examples",
    "from_image_bytes",
    "from_text",
    "inspect",
    "reweight",
    "save",
    "strip_default_attributes",
    "verify",
    "with_export",
    "with_top_classes",
]


def test_the_public_names_are_pinned() -> None:
    assert sorted(ke.__all__) == _PUBLIC
    assert dir(ke) == _PUBLIC


def test_every_public_name_can_be_had() -> None:
    for name in ke.__all__:
        assert getattr(ke, name) is not None
    assert ke.SaveOptions is tf.saved_model.SaveOptions
    with pytest.raises(AttributeError, match="module 'keras_export' has no attribute 'sav'"):
        _ = ke.sav


def test_public_names_are_documented_with_an_example_or_their_attributes() -> None:
    for name in set(ke.__all__) - {"SaveOptions", "__version__"}:
        documentation = getattr(ke, name).__doc__ or ""
        assert documentation.strip(), name


def test_the_import_is_light() -> None:
    code = "import sys, keras_export\n"
    code += "heavy = {'tensorflow', 'keras', 'numpy', 'h5py'} & set(sys.modules)\n"
    code += "sys.exit(f'imported {heavy}' if heavy else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_REPOSITORY)


def test_devices_can_be_configured_after_the_import() -> None:
    code = "import keras_export as ke, tensorflow as tf\n"
    code += "[getattr(ke, name) for name in ke.__all__]\n"
    code += "cpu = tf.config.list_physical_devices('CPU')[0]\n"
    code += "two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
    code += "tf.config.set_logical_device_configuration(cpu, two)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_REPOSITORY)


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(set(_TREES) - set(_ORDER) - {"__init__"}) == []


@pytest.mark.parametrize("module", sorted(set(_TREES) - {"__init__"}))
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    allowed = set(_ORDER[: _ORDER.index(module)])
    wrong = {name for name in _own_imports(_TREES[module]) if name not in allowed}
    assert wrong == set()


@pytest.mark.parametrize("path", _COMMANDS, ids=lambda path: path.stem)
def test_a_command_uses_only_the_package_and_nothing_private(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    assert [name for name in _imported(tree) if _PRIVATE.match(name)] == []
    assert set(_own_imports(tree)) <= set(_ORDER[: _ORDER.index("cli")])


@pytest.mark.parametrize("module", sorted(set(_TREES) - {"tf_internals"}))
def test_only_tf_internals_imports_private_names(module: str) -> None:
    private = [name for name in _imported(_TREES[module]) if _PRIVATE.match(name)]
    dotted = [
        text
        for text in _dotted(_TREES[module])
        if text.startswith(("tf.python.", "tf.core.", "tf.__internal__", "keras.src."))
    ]
    assert private + dotted == []


@pytest.mark.parametrize("module", sorted(_TREES))
def test_nothing_is_written_by_tensorflow_or_keras(module: str) -> None:
    found = [text for text in _dotted(_TREES[module]) if _WRITERS.search(text)]
    found += [name for name in _imported(_TREES[module]) if _WRITERS.search(name)]
    assert found == []


@pytest.mark.parametrize("module", sorted(_TREES))
def test_every_module_says_what_comes_in_and_what_goes_out(module: str) -> None:
    documentation = ast.get_docstring(_TREES[module]) or ""
    assert len(documentation) > 40
    if module not in ("__init__", "__main__", "errors", "cli"):
        for word in ("out", "invariant"):
            assert word in documentation.lower(), word


def test_errors_are_drawn_in_their_module() -> None:
    from keras_export import errors

    drawing = ast.get_docstring(_TREES["errors"]) or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.ExportError):
            assert name in drawing
            bases = [base.__name__ for base in value.__bases__ if base is not errors.ExportError]
            line = next(x for x in drawing.splitlines() if re.search(rf"\b{name}\b", x))
            if name != "ExportError":
                assert bases, f"{name} is no builtin error"
                assert all(base in line for base in bases)


def test_no_file_of_the_project_names_a_place_on_this_machine() -> None:
    home = str(_REPOSITORY)
    folders = ("keras_export", "tests", "examples")
    named = [
        str(path.relative_to(_REPOSITORY))
        for folder in folders
        for path in (_REPOSITORY / folder).rglob("*.py")
        if home in path.read_text()
    ]
    assert named == []


def _imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all that a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(tree: ast.AST) -> Iterator[str]:
    for name in _imported(tree):
        package, _, rest = name.partition(".")
        if package == "keras_export" and rest:
            yield rest.split(".")[0]


def _dotted(tree: ast.AST) -> Iterator[str]:
    """The attribute chains of a module as text, `tf.saved_model.save`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", text):
                yield text
