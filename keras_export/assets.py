"""The files that an artifact brings along.

In: the tracked objects. Out: what is copied, and under which name. The invariant: files of one name
from different folders keep apart.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from keras_export import functions, tracking
from keras_export.contents import Asset
from keras_export.errors import MissingAssetError, failure


def assets_of(tracked: tracking.TrackedGraph, root: str) -> list[Asset]:
    """The files to copy; same-named files of different folders get names of their own."""
    assets: list[Asset] = []
    by_source: dict[str, str] = {}
    for node in tracked.of_kind("asset"):
        source = asset_path_of(node)
        if not tf.io.gfile.exists(source):
            raise MissingAssetError(
                failure(
                    f"export {tracking.path_text(node.path, root)}",
                    "a file that exists",
                    f"asset_path={source!r}",
                )
            )
        if source not in by_source:
            by_source[source] = _free_name(os.path.basename(source), by_source.values())
        assets.append(Asset(node, by_source[source], source))
    return assets


def asset_path_of(node: tracking.Node) -> str:
    """Where an asset's file is."""
    path = functions.constant_of(node.obj.asset_path, tracking.path_text(node.path)).value
    return tf.compat.as_str(path.item())


def _free_name(name: str, taken: Any) -> str:
    stem, suffix = os.path.splitext(name)
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}{suffix}"
    return candidate
