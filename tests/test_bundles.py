"""Bundles and checksums are read as TensorFlow writes them, without TensorFlow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_export import bundles, checksums
from keras_export.errors import DamagedFileError

_MODULUS = 2**63 - 1
_ARRAYS = st.one_of(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_]),
        hnp.array_shapes(min_dims=0, max_side=4),
    ),
    st.lists(st.binary(max_size=300), max_size=4).map(lambda x: np.array(x, object)),
)


def _saved(folder: str, tensors: dict[str, np.ndarray]) -> bundles.Bundle:
    prefix = f"{folder}/variables"
    values = [tf.constant(x, tf.string if x.dtype == object else None) for x in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(values),
        tensors=values,
    )  # fmt: skip
    bundle = bundles.read_bundle(prefix)
    assert bundle is not None
    return bundle


@given(st.dictionaries(st.text("abc/.é", min_size=1, max_size=9), _ARRAYS, min_size=1, max_size=6))
def test_what_tensorflow_saves_is_read_back_and_sound(tensors: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = _saved(folder, tensors)
        assert set(bundle.entries) == set(tensors)
        for key, expected in tensors.items():
            assert bundle.is_sound(bundle.entries[key])
            if expected.dtype == object:
                assert bundle.strings(key) == list(expected)
            else:
                np.testing.assert_array_equal(bundle.array(key), expected)


def test_an_index_of_many_blocks_is_read(tmp_path: Path) -> None:
    tensors = {f"layer{i}/kernel": np.full(3, i, np.int32) for i in range(20_000)}
    bundle = _saved(str(tmp_path), tensors)
    assert sorted(bundle.entries) == sorted(tensors)


@given(st.binary(max_size=300))
def test_the_fingerprint_is_tensorflows(content: bytes) -> None:
    expected = int(tf.strings.to_hash_bucket_fast([content], _MODULUS)[0])
    assert checksums.fingerprint64(content) % _MODULUS == expected


@given(st.integers(0, 600_000), st.integers(0, 600_000))
def test_a_checksum_goes_on_where_it_stopped(size: int, cut: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    first = checksums.crc32c(content[:cut])
    assert checksums.crc32c(content[cut:], first) == checksums.crc32c(content)
    assert checksums.crc32c(b"123456789") == 0xE3069283


def test_every_flipped_bit_of_an_index_is_noticed(tmp_path: Path) -> None:
    bundle = _saved(str(tmp_path), {"a/kernel": np.ones(3), "b": np.zeros((2, 2))})
    file = Path(f"{bundle.prefix}.index")
    good = file.read_bytes()
    block = good[: -48 - 8]  # the padding of the footer means nothing
    for position in range(0, len(block), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bad)
        try:
            found = bundles.read_bundle(bundle.prefix)
        except DamagedFileError as error:
            assert "is damaged" in str(error)
        else:
            assert found == bundle  # a bit of a block that nobody reads


def test_a_shorter_data_file_is_named(tmp_path: Path) -> None:
    bundle = _saved(str(tmp_path), {"a": np.ones(3)})
    path = Path(bundle.shard_path(0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match="is truncated"):
        bundle.array("a")
    path.unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        bundle.array("a")
