"""TensorFlow's C++ SavedModel loader, through the C API, as TensorFlow Serving and others use it.

In: a SavedModel directory and numpy arrays by the input names of a signature. Out: numpy arrays by
its output names. The invariant: the graph is loaded, restored and run by C++ alone; Python's own
loader, Keras and the code of the model take no part, and TensorFlow's Python package only parses
the returned MetaGraphDef and names the dtypes. The file needs no other of this package.

    with Session("exports/1") as session:
        session.run("serving_default", {"image": images})["digit"]

Needs a TensorFlow wheel with the C API in `libtensorflow_cc` (Linux, macOS).
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

_LIBRARIES = {"linux": "libtensorflow_cc.so.2", "darwin": "libtensorflow_cc.2.dylib"}
_STRING = tf.string.as_datatype_enum
_TSTRING_BYTES = 24  # sizeof(TF_TString), part of the ABI that kernels are compiled against


class CppError(RuntimeError):
    """A status other than OK from the C API, with TensorFlow's message.

    Attributes:
        code: the number of the status, as in `absl::StatusCode`.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (ctypes.c_void_p, []),
    "TF_DeleteStatus": (None, [ctypes.c_void_p]),
    "TF_GetCode": (ctypes.c_int, [ctypes.c_void_p]),
    "TF_Message": (ctypes.c_char_p, [ctypes.c_void_p]),
    "TF_NewBuffer": (ctypes.POINTER(_Buffer), []),
    "TF_DeleteBuffer": (None, [ctypes.POINTER(_Buffer)]),
    "TF_NewGraph": (ctypes.c_void_p, []),
    "TF_DeleteGraph": (None, [ctypes.c_void_p]),
    "TF_GraphOperationByName": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "TF_NewSessionOptions": (ctypes.c_void_p, []),
    "TF_DeleteSessionOptions": (None, [ctypes.c_void_p]),
    "TF_LoadSessionFromSavedModel": (
        ctypes.c_void_p,
        [
            ctypes.c_void_p,  # session options
            ctypes.c_void_p,  # run options
            ctypes.c_char_p,  # export directory
            ctypes.POINTER(ctypes.c_char_p),  # tags
            ctypes.c_int,
            ctypes.c_void_p,  # graph, filled in
            ctypes.POINTER(_Buffer),  # MetaGraphDef, filled in
            ctypes.c_void_p,  # status
        ],
    ),
    "TF_CloseSession": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "TF_DeleteSession": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "TF_SessionRun": (
        None,
        [
            ctypes.c_void_p,  # session
            ctypes.c_void_p,  # run options
            ctypes.POINTER(_Output),  # inputs
            ctypes.POINTER(ctypes.c_void_p),  # input tensors
            ctypes.c_int,
            ctypes.POINTER(_Output),  # outputs
            ctypes.POINTER(ctypes.c_void_p),  # output tensors, filled in
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_void_p),  # target operations
            ctypes.c_int,
            ctypes.c_void_p,  # run metadata
            ctypes.c_void_p,  # status
        ],
    ),
    "TF_AllocateTensor": (
        ctypes.c_void_p,
        [ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_int, ctypes.c_size_t],
    ),
    "TF_DeleteTensor": (None, [ctypes.c_void_p]),
    "TF_TensorType": (ctypes.c_int, [ctypes.c_void_p]),
    "TF_NumDims": (ctypes.c_int, [ctypes.c_void_p]),
    "TF_Dim": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int]),
    "TF_TensorByteSize": (ctypes.c_size_t, [ctypes.c_void_p]),
    "TF_TensorData": (ctypes.c_void_p, [ctypes.c_void_p]),
    "TF_StringInit": (None, [ctypes.c_void_p]),
    "TF_StringCopy": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "TF_StringDealloc": (None, [ctypes.c_void_p]),
    "TF_StringGetDataPointer": (ctypes.c_void_p, [ctypes.c_void_p]),
    "TF_StringGetSize": (ctypes.c_size_t, [ctypes.c_void_p]),
}


@functools.cache
def _api() -> ctypes.CDLL:
    """The C API of the installed TensorFlow, with its prototypes declared."""
    name = _LIBRARIES.get(sys.platform)
    if name is None:
        raise OSError(f"Cannot load the C API: expected Linux or macOS, received {sys.platform}.")
    library = ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / name))
    for function, (result, arguments) in _PROTOTYPES.items():
        # Those that libtensorflow_framework holds are found through its dependent, too.
        declared = getattr(library, function)
        declared.restype, declared.argtypes = result, arguments
    return library


@contextmanager
def _status() -> Iterator[int]:
    """A TF_Status for one call; raises `CppError` afterwards unless it is OK."""
    api = _api()
    status = api.TF_NewStatus()
    try:
        yield status
        code = api.TF_GetCode(status)
        if code != 0:
            raise CppError(code, api.TF_Message(status).decode(errors="replace"))
    finally:
        api.TF_DeleteStatus(status)


class Session:
    """A SavedModel loaded by C++: variables restored, tables initialised, ready to run.

    Args:
        export_dir: directory of a SavedModel.
        tags: tags of the graph to load.

    Raises:
        CppError: the loader refused the directory, or restoring or initialising failed.
    """

    def __init__(
        self, export_dir: str | os.PathLike[str], tags: Sequence[str] = ("serve",)
    ) -> None:
        api = _api()
        self._session: int | None = None
        self._graph = api.TF_NewGraph()
        options, buffer = api.TF_NewSessionOptions(), api.TF_NewBuffer()
        names = (ctypes.c_char_p * len(tags))(*(tag.encode() for tag in tags))
        try:
            with _status() as status:
                self._session = api.TF_LoadSessionFromSavedModel(
                    options,
                    None,
                    os.fsencode(export_dir),
                    names,
                    len(tags),
                    self._graph,
                    buffer,
                    status,
                )
            content = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        except CppError:
            self.close()
            raise
        finally:
            api.TF_DeleteBuffer(buffer)
            api.TF_DeleteSessionOptions(options)
        self.meta_graph = tf.compat.v1.MetaGraphDef.FromString(content)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """The SignatureDefs by their keys, as the loader returned them."""
        return self.meta_graph.signature_def

    def run(self, key: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs one signature.

        Args:
            key: the signature's key, such as `serving_default`.
            inputs: a value for each input name, anything that numpy makes an array of.

        Returns:
            The outputs by name: arrays, strings as object arrays of `bytes`; a `tf.RaggedTensor`
            or a `tf.SparseTensor` made of the tensors that the signature names for it.

        Raises:
            KeyError: no such signature, or the input names differ from the signature's.
            TypeError: an output is another kind of composite tensor.
            CppError: the graph failed.
        """
        if key not in self.signatures:
            raise KeyError(f"Cannot run {key!r}: the signatures are {sorted(self.signatures)}.")
        signature = self.signatures[key]
        if set(inputs) != set(signature.inputs):
            raise KeyError(
                f"Cannot run {key!r}: expected the inputs {sorted(signature.inputs)}, "
                f"received {sorted(inputs)}."
            )
        feeds = {
            signature.inputs[name].name: _array(value, signature.inputs[name].dtype)
            for name, value in inputs.items()
        }
        outputs = {name: signature.outputs[name] for name in sorted(signature.outputs)}
        parts = {name: _tensors_of(name, info) for name, info in outputs.items()}
        fetched = iter(self.fetch(list(itertools.chain(*parts.values())), feeds))
        return {
            name: _assembled(info, [next(fetched) for _ in parts[name]])
            for name, info in outputs.items()
        }

    def fetch(self, tensors: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the graph for tensors by their names (`node:0`), whatever the signatures say."""
        api = _api()
        fed = (_Output * len(feeds))(*(self._output(name) for name in feeds))
        fetched = (_Output * len(tensors))(*(self._output(name) for name in tensors))
        results: ctypes.Array[Any] = (ctypes.c_void_p * len(tensors))()
        with _tensors(feeds.values()) as handles:
            with _status() as status:
                api.TF_SessionRun(
                    self._session,
                    None,
                    fed,
                    (ctypes.c_void_p * len(handles))(*handles),
                    len(handles),
                    fetched,
                    results,
                    len(results),
                    None,
                    0,
                    None,
                    status,
                )
            # Before the inputs are freed: a graph may hand a fed buffer through.
            return [_taken(handle) for handle in results]

    def close(self) -> None:
        """Frees the session and its variables; may be called twice."""
        api = _api()
        if self._session is not None:
            session, self._session = self._session, None
            with _status() as status:
                api.TF_CloseSession(session, status)
            with _status() as status:
                api.TF_DeleteSession(session, status)
        if self._graph is not None:
            api.TF_DeleteGraph(self._graph)
            self._graph = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _output(self, tensor: str) -> _Output:
        node, _, index = tensor.partition(":")
        operation = _api().TF_GraphOperationByName(self._graph, node.encode())
        if not operation:
            raise KeyError(f"Cannot find the tensor {tensor!r}: the graph has no node {node!r}.")
        return _Output(operation, int(index or 0))


def _tensors_of(name: str, info: Any) -> list[str]:
    """The tensors in the graph that an output consists of."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        sparse = info.coo_sparse
        return [
            sparse.indices_tensor_name,
            sparse.values_tensor_name,
            sparse.dense_shape_tensor_name,
        ]
    if kind != "composite_tensor":
        return [info.name]
    spec = info.composite_tensor.type_spec
    if spec.type_spec_class not in (spec.SPARSE_TENSOR_SPEC, spec.RAGGED_TENSOR_SPEC):
        raise TypeError(
            f"Cannot read the output {name!r}: expected a tensor, sparse or ragged, "
            f"received a {spec.type_spec_class_name}."
        )
    return [component.name for component in info.composite_tensor.components]


def _assembled(info: Any, values: list[np.ndarray]) -> Any:
    kind = info.WhichOneof("encoding")
    spec = info.composite_tensor.type_spec
    if kind == "composite_tensor" and spec.type_spec_class == spec.RAGGED_TENSOR_SPEC:
        return tf.RaggedTensor.from_nested_row_splits(values[0], values[1:])
    return values[0] if kind == "name" else tf.SparseTensor(*values)


def _array(value: Any, dtype: int) -> np.ndarray:
    """The value as an array of a DataType; the dtype of an array is never changed."""
    expected = tf.dtypes.as_dtype(dtype)
    if expected == tf.string:
        return np.asarray(value, dtype=object)
    if not isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, dtype=expected.as_numpy_dtype)
    array = np.asarray(value)
    if array.dtype != expected.as_numpy_dtype:
        raise TypeError(f"Cannot feed an input: expected {expected.name}, received {array.dtype}.")
    return array


@contextmanager
def _tensors(arrays: Any) -> Iterator[list[int]]:
    """TF_Tensors with copies of arrays, freed at the end."""
    handles: list[int] = []
    try:
        for array in arrays:
            handles.append(_new_tensor(array))
        yield handles
    finally:
        for handle in handles:
            _delete_tensor(handle)


def _new_tensor(array: np.ndarray) -> int:
    api = _api()
    strings = array.dtype == object
    dtype = _STRING if strings else tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    size = array.size * _TSTRING_BYTES if strings else array.nbytes
    dims = (ctypes.c_int64 * array.ndim)(*array.shape)
    handle = api.TF_AllocateTensor(dtype, dims, array.ndim, size)
    if strings:
        _fill_strings(api.TF_TensorData(handle), array)
    elif size:
        ctypes.memmove(api.TF_TensorData(handle), np.ascontiguousarray(array).ctypes.data, size)
    return int(handle)


def _fill_strings(start: int | None, array: np.ndarray) -> None:
    api = _api()
    for place, value in enumerate(array.ravel()):
        content = value.encode() if isinstance(value, str) else bytes(value)
        string = (start or 0) + place * _TSTRING_BYTES
        api.TF_StringInit(string)
        api.TF_StringCopy(string, content, len(content))


def _delete_tensor(handle: int) -> None:
    """Frees a tensor of ours. The strings in it are ours too: TF_DeleteTensor leaves them."""
    api = _api()
    if api.TF_TensorType(handle) == _STRING:
        start = api.TF_TensorData(handle) or 0
        for place in range(api.TF_TensorByteSize(handle) // _TSTRING_BYTES):
            api.TF_StringDealloc(start + place * _TSTRING_BYTES)
    api.TF_DeleteTensor(handle)


def _taken(handle: int) -> np.ndarray:
    """A copy of a tensor that the session returned; frees the tensor, which owns its strings."""
    api = _api()
    try:
        shape = [api.TF_Dim(handle, axis) for axis in range(api.TF_NumDims(handle))]
        dtype, start = api.TF_TensorType(handle), api.TF_TensorData(handle)
        if dtype == _STRING:
            return _strings(start, shape)
        content = ctypes.string_at(start, api.TF_TensorByteSize(handle)) if start else b""
        as_numpy = np.dtype(tf.dtypes.as_dtype(dtype).as_numpy_dtype)
        return np.frombuffer(bytearray(content), dtype=as_numpy).reshape(shape)
    finally:
        api.TF_DeleteTensor(handle)


def _strings(start: int | None, shape: Sequence[int]) -> np.ndarray:
    api = _api()
    result = np.empty(int(np.prod(shape)), dtype=object)
    for place in range(result.size):
        string = (start or 0) + place * _TSTRING_BYTES
        size = api.TF_StringGetSize(string)
        result[place] = ctypes.string_at(api.TF_StringGetDataPointer(string), size)
    return result.reshape(shape)
