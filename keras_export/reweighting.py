"""Weights into an artifact and out of it, without the model's code and without TensorFlow.

In: a SavedModel, and the weights of the same model from a later training. Out: a copy of it with
these values; or a file of its weights. The invariant: no more than a block of a tensor is in
memory, and nothing is published unless every variable has its value or was allowed to keep it.
"""

from __future__ import annotations

import fnmatch
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from keras_export import (
    atomic,
    fingerprints,
    protos,
    publishing,
    targets,
    untrusted,
    weight_paths,
)
from keras_export.bundle_writing import BundleWriter
from keras_export.bundles import (
    OBJECT_GRAPH_KEY,
    Bundle,
    BundleEntry,
    bytes_of,
    numpy_dtype,
    read_bundle,
    read_table,
)
from keras_export.checksums import fingerprint64
from keras_export.errors import ArgumentError, ConversionError, failure
from keras_export.hdf5 import stored_layers
from keras_export.inspection import bundle_prefix, read_graph
from keras_export.reports import format_size
from keras_export.sources import MEGABYTE

_BLOCK_BYTES = 64 * MEGABYTE
Progress = Callable[[str, int, int], None]
# Files of weights leave these out: they say where a random generator stands.
_SEEDS = "seed_generator_state"


@dataclass(frozen=True)
class WeightsReport:
    """What went where.

    Attributes:
        path: what was written.
        matched: the source of each variable of the artifact, by the variable's name.
        kept: the variables that kept the values of the artifact.
        unused: the weights of the source that no variable took.
        bytes_written: of weights.
    """

    path: str
    matched: Mapping[str, str]
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    bytes_written: int = 0

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.matched)} variables, {format_size(self.bytes_written)}"]
        lines += [f"  kept: {name}" for name in self.kept]
        lines += [f"  unused: {name}" for name in self.unused]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Variable:
    """A variable of an artifact: its checkpoint key, its name, its paths in a `.weights.h5`.

    `left_out` if Keras leaves it out of files of weights: a state, or a random generator's.
    """

    key: str
    name: str
    paths: tuple[str, ...]
    left_out: bool
    entry: BundleEntry


@dataclass(frozen=True)
class _Weight:
    """An array of a source, with the names by which a variable may ask for it."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    data: Any = field(repr=False)

    def blocks(self, dtype: Any) -> Iterator[Any]:
        for part in _parts(self.data, self.shape, self.dtype.itemsize):
            array = np.ascontiguousarray(part).view(self.dtype).astype(dtype, copy=False)
            yield array.reshape(-1).view(np.uint8)


def reweight(
    artifact: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    allow: Collection[str] = (),
    on_progress: Progress | None = None,
) -> WeightsReport:
    """Puts other weights into a SavedModel, without the code of its model.

    Values are copied in blocks of 64 MB, so memory stays far below the size of a large variable.

    Args:
        artifact: directory of a SavedModel that keras_export, Keras or TensorFlow wrote.
        weights: a `.weights.h5`, `.h5` or `.keras` file; a checkpoint, by the prefix of its
            files; or another SavedModel. It need not be trusted.
        out: the directory to write; it may be `artifact` itself.
        names: for variables of the artifact, the names of their weights where these don't match.
        allow: names, or patterns like `head/*`, of variables that may keep their values and of
            weights that need not be used.
        on_progress: called with what is being written, bytes done, and bytes in all.

    Returns:
        What went where.

    Raises:
        ConversionError: a variable has no weight or one of another shape, or a weight is not
            used; all are named. Nothing was written.
        ExportError: a file cannot be read or trusted, or `out` not be written.

    Example:
        >>> import os, tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> folder = tempfile.mkdtemp()
        >>> path = ke.export(model, os.path.join(folder, "1")).export_dir
        >>> model.save_weights(os.path.join(folder, "new.weights.h5"))
        >>> report = ke.reweight(path, os.path.join(folder, "new.weights.h5"), f"{folder}/2")
        >>> report.matched
        {'y/kernel': 'layers/dense/vars/0', 'y/bias': 'layers/dense/vars/1'}
    """
    source, target = os.fspath(artifact), targets.check_target(out)
    bundle, variables = _variables_of(source)
    with ExitStack() as stack:
        offered = _offered(os.fspath(weights), stack)
        matches, unused = _matched(source, variables, offered, dict(names or {}), tuple(allow))
        with publishing.stage(target) as staging:
            _copy_rest(source, staging.path)
            count = _Count("weights", bundle.entries.values(), on_progress)
            size = _write(bundle, matches, bundle_prefix(staging.path), count)
            _renew_fingerprint(staging.path)
            staging.commit()
            target = staging.target
    return WeightsReport(
        target,
        {variable.name: matches[variable.key].name for variable in variables
         if variable.key in matches},
        tuple(variable.name for variable in variables if variable.key not in matches),
        unused,
        size,
    )  # fmt: skip


def extract_weights(
    artifact: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> WeightsReport:
    """Writes the weights of a SavedModel to a file that `load_weights` accepts.

    Args:
        artifact: directory of a SavedModel.
        out: a file that ends in `.weights.h5`; or in `.h5`, which goes by the names of layers.
        names: for variables of the artifact, the paths in the file, as `layers/dense/vars/0`;
            needed for artifacts of Keras and TensorFlow, which don't say.
        on_progress: called with what is being written, bytes done, and bytes in all.

    Returns:
        What went where.

    Raises:
        ConversionError: it is not known where a variable belongs; all are named.
        ExportError: the artifact cannot be read.

    Example:
        >>> import os, tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> folder = tempfile.mkdtemp()
        >>> path = ke.export(model, os.path.join(folder, "1")).export_dir
        >>> report = ke.extract_weights(path, os.path.join(folder, "out.weights.h5"))
        >>> model.load_weights(os.path.join(folder, "out.weights.h5"))
    """
    source, target = os.fspath(artifact), os.fspath(out)
    if not target.endswith(".h5"):
        raise ArgumentError(
            failure(f"write {target}", "a name that ends in .weights.h5 or .h5", "another")
        )
    bundle, variables = _variables_of(source)
    kept = tuple(x.name for x in variables if x.left_out)
    # One of each name: Keras stores a variable twice.
    variables = list({x.name: x for x in reversed(variables) if not x.left_out}.values())[::-1]
    given = {name: (path,) for name, path in (names or {}).items()}
    by_layer = not target.endswith(".weights.h5")
    paths = {x.key: given.get(x.name) or ((x.name,) if by_layer else x.paths) for x in variables}
    unknown = [x.name for x in variables if not paths[x.key]]
    if unknown:
        raise ConversionError(
            f"Cannot write {target}: {source} does not say where in it {', '.join(unknown[:20])} "
            "belong. Give the paths by names=, or write to a file that ends in .h5 alone."
        )
    folder = os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(prefix=".keras_export-", dir=folder) as place:
        path = os.path.join(place, "weights.h5")
        count = _Count("weights", [x.entry for x in variables], on_progress)
        with h5py.File(path, "w") as file:
            _write_hdf5(file, bundle, variables, paths, by_layer, count)
        atomic.put_in_place(path, target)
    size = sum(x.entry.size for x in variables)
    return WeightsReport(target, {x.name: paths[x.key][0] for x in variables}, kept, (), size)


class _Count:
    """Tells how much is written of so many bytes."""

    def __init__(
        self, what: str, entries: Iterable[BundleEntry], progress: Progress | None
    ) -> None:
        self._what, self._progress, self._done = what, progress, 0
        self._total = sum(entry.size for entry in entries)

    def add(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            # A variable in two places of a file is written twice.
            self._progress(self._what, min(self._done, self._total), self._total)

    def blocks(self, blocks: Iterable[Any]) -> Iterator[Any]:
        """The same blocks; each is counted when the next is asked for."""
        for block in blocks:
            yield block
            self.add(block.nbytes)


# -- artifacts -------------------------------------------------------------------------------------


def _variables_of(artifact: str) -> tuple[Bundle, list[_Variable]]:
    meta_graph, _ = read_graph(artifact)
    bundle = read_bundle(bundle_prefix(artifact))
    if bundle is None:
        raise ArgumentError(
            failure(f"read {artifact}", "a SavedModel with variables", "one without")
        )
    nodes = meta_graph.object_graph_def.nodes
    paths = weight_paths.decoded(nodes[0].user_object.metadata if nodes else "")
    found = []
    names = _names_of(bundle)
    contents: dict[str, set[Any]] = {}
    for key, full_name in names.items():
        if entry := bundle.entries.get(key):
            contents.setdefault(full_name, set()).add((entry.shape, entry.dtype, entry.crc))
    for key, full_name in names.items():
        entry = bundle.entries.get(key)
        # Keras stores a variable twice; different variables of one name go by their keys.
        is_one = full_name and len(contents.get(full_name, ())) == 1
        name = full_name if is_one else key.partition("/.ATTRIBUTES")[0]
        if entry is not None and not entry.sliced and entry.dtype != "string":
            own = paths.of.get(key, ())
            left_out = bool(paths.of) and not own and not paths.computed
            found.append(_Variable(key, name, own, left_out or name.endswith(_SEEDS), entry))
    return bundle, found


def _names_of(bundle: Bundle) -> dict[str, str]:
    """The names of the variables by checkpoint key, in the order of the object graph."""
    graph = protos.CheckpointObjects.FromString(bundle.strings(OBJECT_GRAPH_KEY)[0])
    return {
        attribute.checkpoint_key: attribute.full_name
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.name == "VARIABLE_VALUE"
    }


def _copy_rest(source: str, target: str) -> None:
    for name in os.listdir(source):
        path, copy = os.path.join(source, name), os.path.join(target, name)
        if os.path.isdir(path):
            shutil.copytree(path, copy, ignore=_no_variables if name == "variables" else None)
        else:
            shutil.copy2(path, copy)


def _no_variables(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("variables.")]


def _write(bundle: Bundle, matches: Mapping[str, _Weight], prefix: str, count: _Count) -> int:
    rows = dict(read_table(bytes_of(f"{bundle.prefix}.index")))
    writer, size = BundleWriter(prefix, rows.pop(b"")), 0
    try:
        for key, row in rows.items():
            entry = bundle.parts.get(key) or bundle.entries[key.decode()]
            weight = None if key in bundle.parts else matches.get(key.decode())
            if weight is not None:
                writer.add(key, row, count.blocks(weight.blocks(numpy_dtype(entry.dtype))))
                size += entry.size
            else:
                writer.keep(key, row, b"" if entry.sliced else bundle.content(entry))
                count.add(entry.size)
        writer.close()
    finally:
        writer.abandon()
    return size


def _renew_fingerprint(folder: str) -> None:
    """Of its hashes only that of the variables' index changes."""
    path = os.path.join(folder, "fingerprint.pb")
    if not os.path.isfile(path):
        return
    proto = protos.Fingerprint.FromString(bytes_of(path))
    proto.checkpoint_hash = fingerprint64(bytes_of(f"{bundle_prefix(folder)}.index"))
    has_identifier, proto.uuid = bool(proto.uuid), ""
    content = proto.SerializeToString(deterministic=True)
    with open(path, "wb") as file:
        file.write(fingerprints.identified(content) if has_identifier else content)


# -- sources ---------------------------------------------------------------------------------------


def _offered(path: str, stack: ExitStack) -> list[_Weight]:
    """The weights in a file, a checkpoint or an artifact."""
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return _from_bundle(bundle_prefix(path))
    if os.path.isfile(f"{path}.index"):
        return _from_bundle(path)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="keras_export-"))
    opened = untrusted.open_source(path, folder)
    if opened.kind == "config":
        raise ArgumentError(failure(f"read {path}", "a file of weights", "an architecture"))
    if opened.kind in ("model", "layers"):
        stored = stack.enter_context(stored_layers(opened.weights))
        return [
            _Weight(f"{layer}: {x.name}", (x.name.partition(":")[0],), x.shape, x.dataset.dtype,
                    x.dataset)
            for layer, weights in stored.items() for x in weights
        ]  # fmt: skip
    return _from_weights(stack.enter_context(h5py.File(opened.weights, "r")))


def _from_weights(file: Any) -> list[_Weight]:
    """Keras 3's: each layer's in a group `vars`, numbered, since 3.6 with the layer's name."""
    found: list[_Weight] = []

    def visit(name: str, member: Any) -> None:
        number = name.rpartition("/")[2]
        if not isinstance(member, h5py.Dataset) or name.startswith("optimizer/"):
            return
        layer = member.parent.attrs.get("name", "")
        alias = f"{layer}#{number}" if layer else ""
        is_half = str(member.attrs.get("dtype", "")) == "bfloat16"
        dtype = numpy_dtype("bfloat16") if is_half else member.dtype
        found.append(_Weight(name, (name, alias), tuple(member.shape), dtype, member))

    file.visititems(visit)
    return found


def _from_bundle(prefix: str) -> list[_Weight]:
    bundle = read_bundle(prefix)
    assert bundle is not None
    names = _names_of(bundle) if OBJECT_GRAPH_KEY in bundle.entries else {}
    found = []
    for key, entry in bundle.entries.items():
        if key == OBJECT_GRAPH_KEY or key.startswith(("save_counter/", "optimizer/")):
            continue
        array = bundle.array(key)
        if array is not None:
            aliases = (key, names.get(key, ""))
            found.append(_Weight(key, aliases, entry.shape, array.dtype, array))
    return found


def _parts(data: Any, shape: tuple[int, ...], itemsize: int) -> Iterator[Any]:
    """An array or dataset in blocks, cut along its first dimensions."""
    row = math.prod(shape[1:]) * itemsize
    if not shape or math.prod(shape) * itemsize <= _BLOCK_BYTES:
        yield data[()]
    elif row > _BLOCK_BYTES:
        for index in np.ndindex(shape[: _rows_rank(shape, itemsize)]):
            yield data[index]
    else:
        step = max(1, _BLOCK_BYTES // max(1, row))
        for start in range(0, shape[0], step):
            yield data[start : start + step]


def _rows_rank(shape: tuple[int, ...], itemsize: int) -> int:
    """How many dimensions must be fixed until the rest fits into a block."""
    rank = 1
    while rank < len(shape) - 1 and math.prod(shape[rank:]) * itemsize > _BLOCK_BYTES:
        rank += 1
    return rank


# -- matching --------------------------------------------------------------------------------------


def _matched(
    artifact: str,
    variables: list[_Variable],
    offered: list[_Weight],
    names: dict[str, str],
    allow: tuple[str, ...],
) -> tuple[dict[str, _Weight], tuple[str, ...]]:
    """The weight of each variable by checkpoint key, and the weights that are left."""
    by_alias: dict[str, list[_Weight]] = {}
    for weight in offered:
        for alias in {weight.name, *weight.aliases} - {""}:
            by_alias.setdefault(alias, []).append(weight)
    reasons = [f"names has {name!r}, which is no variable of {artifact}"
               for name in names if name not in {x.name for x in variables}]  # fmt: skip
    numbers = _numbers(variables)
    matches: dict[str, _Weight] = {}
    taken: set[str] = set()
    for variable in variables:
        wanted = [names[variable.name]] if variable.name in names else [
            *variable.paths, variable.key, variable.name, numbers[variable.key]]  # fmt: skip
        found = next((by_alias[x] for x in wanted if x in by_alias), [])
        allowed = _fits(variable.name, allow)
        if len(found) > 1:
            reasons.append(f"{variable.name} may be any of {[x.name for x in found]}")
        elif not found:
            if not allowed and not variable.left_out:
                reasons.append(f"{variable.name} has no weight")
        elif reason := _difference(variable, found[0]):
            if not allowed:
                reasons.append(reason)
        else:
            matches[variable.key] = found[0]
            taken |= {found[0].name, *variable.paths}
    unused = tuple(x.name for x in offered if x.name not in taken)
    reasons += [f"{name} is not used" for name in unused if not _fits(name, allow)]
    if reasons:
        more = f"; and {len(reasons) - 50} more" if len(reasons) > 50 else ""
        raise ConversionError(
            f"Cannot put the weights into {artifact}: {'; '.join(reasons[:50])}{more}. Say by "
            "names= which belong together, and by allow= what may be left out."
        )
    return matches, unused


def _numbers(variables: list[_Variable]) -> dict[str, str]:
    """`dense#0`: the layer's own name and the place of the variable among those of the layer."""
    counts: dict[str, int] = {}
    result = {}
    for variable in variables:
        scope = variable.name.rpartition("/")[0]
        number = counts.get(scope, 0)
        counts[scope] = number + 1
        result[variable.key] = f"{scope.rpartition('/')[2]}#{number}"
    return result


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _difference(variable: _Variable, weight: _Weight) -> str:
    entry = variable.entry
    if weight.shape != entry.shape:
        return f"{variable.name} has the shape {entry.shape}, {weight.name} {weight.shape}"
    ours = numpy_dtype(entry.dtype)
    if weight.dtype != ours and not (_is_float(weight.dtype) and _is_float(ours)):
        return f"{variable.name} has the dtype {entry.dtype}, {weight.name} {weight.dtype}"
    return ""


def _is_float(dtype: Any) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


# -- files of weights ------------------------------------------------------------------------------


def _write_hdf5(
    file: Any,
    bundle: Bundle,
    variables: list[_Variable],
    paths: Mapping[str, tuple[str, ...]],
    by_layer: bool,
    count: _Count,
) -> None:
    if not by_layer:
        file.require_group("vars")  # Keras 3.4 asks for the root's, even without variables
        for variable in variables:
            for path in paths[variable.key]:
                _write_dataset(file, path, bundle, variable, count)
        return
    layers: dict[str, list[_Variable]] = {}
    for variable in variables:
        layers.setdefault(paths[variable.key][0].partition("/")[0], []).append(variable)
    file.attrs["layer_names"] = [name.encode() for name in layers]
    for name, held in layers.items():
        group = file.create_group(name)
        group.attrs["weight_names"] = [paths[x.key][0].encode() for x in held]
        for variable in held:
            _write_dataset(group, paths[variable.key][0], bundle, variable, count)


def _write_dataset(
    group: Any, path: str, bundle: Bundle, variable: _Variable, count: _Count
) -> None:
    entry = variable.entry
    dtype = numpy_dtype(entry.dtype)
    stored = np.dtype(dtype.str.replace("<V", "|V")) if dtype.kind == "V" else dtype
    dataset = group.create_dataset(path, entry.shape, stored)
    if dtype.name == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"
    array = np.frombuffer(bundle.content(entry), stored).reshape(entry.shape)
    if not entry.shape:
        dataset[()] = array[()]
        count.add(array.nbytes)
        return
    step = max(1, _BLOCK_BYTES // max(1, math.prod(entry.shape[1:]) * dtype.itemsize))
    for start in range(0, entry.shape[0], step):
        dataset[start : start + step] = array[start : start + step]
        count.add(array[start : start + step].nbytes)
