"""Weights by layers in HDF5, as Keras 1 and 2 wrote them and Keras 3 still can.

In: an HDF5 file that was looked through. Out: the arrays of each layer with their names, each read
when it is asked for. The invariant: an array is read only from its own file, and never one whose
shape its bytes in the file don't account for, even if the file changed since it was looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from keras_export.errors import DamagedFileError, UnsafeFileError, failure
from keras_export.hdf5_walk import names_of
from keras_export.sources import wrong_name


@dataclass(frozen=True)
class StoredWeight:
    """An array in the file.

    Attributes:
        name: `conv/kernel:0`, as the Keras that wrote it called the variable.
        dataset: where it is.
    """

    name: str
    dataset: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.dataset.shape)

    @property
    def own_name(self) -> str:
        """`kernel` for `conv/kernel:0`."""
        return self.name.rpartition("/")[2].partition(":")[0]

    @property
    def scope(self) -> str:
        """`conv` for `conv/kernel:0`."""
        return self.name.rpartition("/")[0]

    def read(self) -> np.ndarray:
        """The values.

        Raises:
            DamagedFileError: they cannot be read.
            UnsafeFileError: they are not in this file.
        """
        layout = self.dataset.id.get_create_plist()
        if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
            raise UnsafeFileError(f"Cannot trust member {self.name!r}: its data are elsewhere.")
        try:
            return np.asarray(self.dataset[()])
        except Exception as error:  # filters and damage raise what they like
            raise DamagedFileError(f"Cannot read member {self.name!r}: {error}.") from error


@contextmanager
def stored_layers(path: str) -> Iterator[dict[str, list[StoredWeight]]]:
    """The weights of each layer in the order of the file, also of layers without any.

    Args:
        path: a whole model, or the weights of one.

    Raises:
        DamagedFileError: a layer or weight that the file lists is not in it.
        UnsafeFileError: a weight is not in this file, but linked.
    """
    with h5py.File(path, "r") as file:
        group = _member(file, "model_weights") if "model_weights" in file else file
        yield {name: _weights(group, name) for name in names_of(group, "layer_names")}


@contextmanager
def stored_variables(path: str) -> Iterator[dict[str, StoredWeight]]:
    """The arrays of a file by path, as `layers/dense/vars/0`; those of an optimizer are left out.

    Args:
        path: a `.weights.h5`, or the one in a `.keras` archive.
    """
    found: dict[str, StoredWeight] = {}

    def visit(name: str, member: Any) -> None:
        if isinstance(member, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = StoredWeight(name, member)

    with h5py.File(path, "r") as file:
        file.visititems(visit)  # follows no links
        yield found


def _weights(group: Any, layer: str) -> list[StoredWeight]:
    own = _member(group, layer)
    return [StoredWeight(name, _member(own, name)) for name in names_of(own, "weight_names")]


def _member(group: Any, path: str) -> Any:
    """Follows a path by hard links alone."""
    where = f"{group.name}/{path} of {group.file.filename}"
    if reason := wrong_name(path):
        raise UnsafeFileError(f"Cannot trust member {where}: its name {reason}.")
    for part in path.split("/"):
        link = group.get(part, getlink=True) if part else None
        if part and not isinstance(link, h5py.HardLink):
            if link is None:
                raise DamagedFileError(failure(f"read {where}", "such a member", "none"))
            raise UnsafeFileError(f"Cannot trust member {where}: it is a link.")
        group = group[part] if part else group
    return group
