"""The values of an artifact: how they are held, and how they are written.

In: a `CheckpointPlan`. Out: the `Values` of a moment, and tensor bundles on disk. The invariant: to
hold values costs references, not copies, and each is stored once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import reading
from keras_export import tf_internals as tfi
from keras_export.checkpoint_keys import escape
from keras_export.errors import ArgumentError, UnsupportedError, failure
from keras_export.tracking import path_text
from keras_export.variables import (
    OBJECT_GRAPH_KEY,
    CheckpointPlan,
    RegisteredSaver,
    Source,
    saveables_of,
    serialized,
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a bundle."""

    key: str
    slice_spec: str
    tensor: Any


@dataclass(frozen=True)
class Values:
    """The values of one moment, in groups that are written to a file each."""

    groups: tuple[tuple[Entry, ...], ...]


def read_values(plan: CheckpointPlan) -> Values:
    """Takes the values of this moment: a reference for each variable, no copy.

    TensorFlow copies a buffer that somebody else refers to before it changes it, so what is held
    here stays as it is while training goes on.
    """
    entries = [entry for saver in plan.savers for entry in _written_by(saver, plan.root)]
    entries += _read(plan.sources)
    if not tf.executing_eagerly():
        entries = _run(entries)
    with tfi.eager_mode():
        graph = Entry(OBJECT_GRAPH_KEY, "", tf.constant(plan.object_graph))
    return Values(((graph, *entries),))


def _run(entries: Sequence[Entry]) -> list[Entry]:
    """The values that the graph's session holds."""
    session = tf.compat.v1.get_default_session()
    # A session whose graph is empty refuses to run even nothing.
    arrays = session.run([entry.tensor for entry in entries]) if entries else []
    with tfi.eager_mode():
        return [
            Entry(entry.key, entry.slice_spec, tf.constant(array, entry.tensor.dtype))
            for entry, array in zip(entries, arrays, strict=True)
        ]


def _written_by(saver: RegisteredSaver, root: str) -> list[Entry]:
    """What a registered saver writes, read back: it knows files alone, and we hold moments."""
    if not tf.executing_eagerly():
        raise UnsupportedError(
            f"Cannot export {path_text(next(iter(saver.objects.values())).path, root)} without "
            f"eager execution: the registered checkpoint saver {saver.name!r} writes files itself."
        )
    save = tfi.registration.get_save_function(saver.name)
    with tempfile.TemporaryDirectory() as folder:
        prefix = tf.constant(os.path.join(folder, f"variables-{saver.name}"))
        written = save(trackables=saver.trackables, file_prefix=prefix)
        return [entry for path in prefixes_of(written, saver.name) for entry in _read_back(path)]


def prefixes_of(written: Any, saver: str) -> list[Any]:
    """The string tensors that a registered saver returned.

    Raises:
        UnsupportedError: it returned something else.
    """
    flat = [] if written is None else tf.nest.flatten(written)
    if all(tf.is_tensor(x) and x.dtype == tf.string for x in flat):
        return flat
    raise UnsupportedError(
        failure(
            f"export with the registered checkpoint saver {saver!r}",
            "its save function to return string tensors, the prefixes that it wrote",
            f"{written!r}",
        )
    )


def _read_back(prefixes: Any) -> Iterator[Entry]:
    for prefix in tf.reshape(prefixes, [-1]).numpy():
        reader = tf.train.load_checkpoint(tf.compat.as_str(prefix))
        dtypes = reader.get_variable_to_dtype_map()
        for key in sorted(dtypes):
            yield Entry(key, "", tf.constant(reader.get_tensor(key), dtypes[key]))


def _read(sources: Sequence[Source]) -> list[Entry]:
    plain = [source for source in sources if source.by == "variable"]
    variables = [x.node.obj if x.read_from is None else x.read_from for x in plain]
    read = dict(zip(map(id, plain), reading.read(variables), strict=True))
    return [
        entry
        for source in sources
        for entry in (
            [Entry(source.names[0][1], "", read[id(source)])]
            if source.by == "variable"
            else _entries(source)
        )
    ]


def _entries(source: Source) -> Iterable[Entry]:
    if source.by == "python":
        return (Entry(source.names[0][1], "", tf.constant(source.node.obj.serialize())),)
    if source.by == "saveables":
        specs = [spec for saveable in saveables_of(source) for spec in saveable.specs()]
        return [Entry(x.name, x.slice_spec or "", tf.convert_to_tensor(x.tensor)) for x in specs]
    keys = dict(source.names)
    return [
        entry
        for name, value in serialized(source.node).items()
        for entry in _value_entries(keys[escape(name)], value)
    ]


def _value_entries(key: str, value: Any) -> Iterable[Entry]:
    if isinstance(value, dict):
        return [entry for part, x in value.items() for entry in _sliced(key, part, x)]
    return _sliced(key, "", value)


def _sliced(key: str, slice_spec: str, value: Any) -> Iterable[Entry]:
    if callable(value):
        value = value()
    if hasattr(value, "slice_spec"):  # a SaveSpec of an older API
        return (Entry(key, value.slice_spec or "", value.tensor),)
    return (Entry(key, slice_spec, tf.convert_to_tensor(value)),)


def cast(values: Values, dtypes: Mapping[str, tf.DType]) -> Values:
    """The same values, some of them in another dtype.

    Args:
        values: as they were read.
        dtypes: of those that are cast, by checkpoint key.

    Raises:
        ArgumentError: a finite number becomes infinite.
    """
    if not dtypes:
        return values
    with tfi.eager_mode():
        groups = tuple(tuple(_cast(x, dtypes.get(x.key)) for x in group) for group in values.groups)
    return Values(groups)


def _cast(entry: Entry, dtype: tf.DType | None) -> Entry:
    if dtype is None:
        return entry
    tensor = tf.cast(entry.tensor, dtype)
    if bool(tf.reduce_any(tf.math.is_inf(tensor) & tf.math.is_finite(entry.tensor))):
        raise ArgumentError(
            failure(
                f"store {entry.key.partition('/.ATTRIBUTES')[0]} as {dtype.name}",
                f"values of at most {dtype.max}",
                f"{float(tf.reduce_max(tf.abs(entry.tensor))):g}",
                "Use variables_dtype='bfloat16', which has the range of float32.",
            )
        )
    return Entry(entry.key, entry.slice_spec, tensor)


def shard(values: Values, callback: Any) -> Values:
    """Groups values as a `tf.train.experimental.ShardingCallback` says.

    Args:
        values: in any groups.
        callback: is given the `tf.train.experimental.ShardableTensor`s of one process of a
            cluster, and may cut tensors.

    Raises:
        UnsupportedError: it returns something else than a list of shards.
    """
    by_task: dict[Any, list[Any]] = {}
    for group in values.groups:
        for entry in group:
            by_task.setdefault(_task_of(entry.tensor), []).append(_shardable(entry))
    with tfi.eager_mode():
        shards = [shard for tensors in by_task.values() for shard in callback(tensors)]
    try:
        groups = tuple(
            tuple(
                Entry(key, slice_spec, tensor)
                for key, parts in one.items()
                for slice_spec, tensor in parts.items()
            )
            for one in shards
        )
    except (AttributeError, TypeError) as error:
        raise UnsupportedError(
            failure(
                "export",
                "experimental_sharding_callback to return a list of {key: {slice: tensor}}",
                f"{shards!r}",
            )
        ) from error
    return Values(groups)


def _task_of(tensor: Any) -> tuple[Any, ...]:
    """A callback is asked for each process of a cluster apart."""
    device = tf.DeviceSpec.from_string(tensor.device)
    return device.job, device.replica, device.task


def _shardable(entry: Entry) -> Any:
    return tf.train.experimental.ShardableTensor(
        _tensor_save_spec=None,
        tensor=entry.tensor,
        dtype=entry.tensor.dtype,
        device=tf.DeviceSpec.from_string(entry.tensor.device),
        name=entry.key,
        shape=entry.tensor.shape,
        slice_spec=entry.slice_spec,
        checkpoint_key=entry.key,
        trackable=None,
    )


def write_bundle(prefix: str, values: Values, io_device: str | None = None) -> None:
    """Writes a tensor bundle, `<prefix>.index` and `<prefix>.data-…`.

    One group goes straight to its place. Several are written apart and joined by their index, so
    that a file holds what changes together.

    Args:
        prefix: path without suffix.
        values: what to write.
        io_device: the device whose file system is meant; the CPU of this process if None.
    """
    with tfi.eager_mode(), tf.device(io_device or "/cpu:0"):
        if len(values.groups) == 1:
            _save(prefix, values.groups[0])
            return
        prefixes = [f"{prefix}_temp/part-{i:05d}" for i in range(len(values.groups))]
        for part, group in zip(prefixes, values.groups, strict=False):
            _save(part, group)
        merge_bundles(prefix, prefixes)


def merge_bundles(prefix: str, parts: Sequence[str]) -> None:
    """Joins bundles of one folder into one: a new index, and the same data files renamed.

    Args:
        prefix: of the result.
        parts: prefixes of what is joined, in the order of the data files of the result; with their
            folder, they are gone afterwards.
    """
    with tfi.eager_mode(), tf.device("/cpu:0"):
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=parts, destination_prefix=prefix, delete_old_dirs=True
        )


def _save(prefix: str, group: Sequence[Entry]) -> None:
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[entry.key for entry in group],
        shape_and_slices=[entry.slice_spec for entry in group],
        tensors=[entry.tensor for entry in group],
    )
