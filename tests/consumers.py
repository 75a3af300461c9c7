"""How tests look at artifacts: through every reader, in a fresh process, as users do.

In: directories that a test exported. Out: what the readers make of them, as numpy arrays. Nothing
is loaded in the test's own process, and the other one can't import keras_export: an artifact that
works only beside its live model fails here. One process serves many requests; a crash in it fails
the request and is followed by a new process.

    loaded = consumers.tf(export_dir)
    loaded.signature("serving_default", x=x)["output_0"]
    loaded.call("encoder.f", x, training=False)
    consumers.cpp(export_dir).signature("serve", image=images)
    consumers.everywhere(export_dir, "serving_default", x=x)   # all graph readers agree
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from consumer_values import Named, Opaque, Ragged, Sparse, Spec, Variable, to_wire

__all__ = [
    "ConsumerCrash",
    "ConsumerError",
    "Consumers",
    "Named",
    "Opaque",
    "Ragged",
    "Sparse",
    "Spec",
    "Variable",
    "assert_same",
]

PathLike: TypeAlias = "str | os.PathLike[str]"
Signatures: TypeAlias = "dict[str, dict[str, dict[str, Spec]]]"

_SCRIPT = Path(__file__).with_name("consumer_process.py")
_TIMEOUT_SECONDS = 300.0
_LOG_TAIL_CHARACTERS = 4000
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class ConsumerError(RuntimeError):
    """A reader refused an artifact or a call, with the reader's own words.

    Attributes:
        kind: class name of the reader's exception, such as `FailedPreconditionError`.
    """

    def __init__(self, what: str, kind: str, message: str) -> None:
        super().__init__(f"{what}: {kind}: {message}")
        self.kind = kind


class ConsumerCrash(Exception):
    """The reading process died or hung. Not a `ConsumerError`: no test should expect it by that."""


class _RemoteTraceback(Exception):
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Consumers:
    """The readers, and the process they run in.

    Args:
        timeout: seconds that a request may take.
        python: the interpreter that reads, which may have another TensorFlow.
    """

    def __init__(self, timeout: float = _TIMEOUT_SECONDS, python: str = sys.executable) -> None:
        self.timeout, self._python = timeout, python
        self._process = _Process(python)

    def tf(self, export_dir: PathLike, tags: Sequence[str] | None = None) -> TensorFlowArtifact:
        """Loads by `tf.saved_model.load`."""
        return TensorFlowArtifact(self, "tf", export_dir, tags)

    def v1(self, export_dir: PathLike, tags: Sequence[str] = ("serve",)) -> V1Artifact:
        """Loads by `tf.compat.v1.saved_model.load`."""
        return V1Artifact(self, "v1", export_dir, tuple(tags))

    def cpp(self, export_dir: PathLike, tags: Sequence[str] = ("serve",)) -> GraphArtifact:
        """Loads by TensorFlow's C++ loader, as TensorFlow Serving does."""
        return GraphArtifact(self, "cpp", export_dir, tuple(tags))

    def tfsm(
        self, export_dir: PathLike, call_endpoint: str = "serve", trainable: bool = True
    ) -> LayerArtifact:
        """Loads by `keras.layers.TFSMLayer`."""
        return LayerArtifact(self, "tfsm", export_dir, call_endpoint, trainable)

    def everywhere(
        self, export_dir: PathLike, key: str = "serving_default", /, **inputs: Any
    ) -> dict[str, Any]:
        """Runs a signature by Python's, the V1 and the C++ loader; all must agree.

        Returns:
            The outputs by name.
        """
        result = self.tf(export_dir).signature(key, **inputs)
        for artifact in (self.v1(export_dir), self.cpp(export_dir)):
            assert_same(artifact.signature(key, **inputs), result)
        return result

    def checkpoint(self, path: PathLike) -> Checkpoint:
        """Reads a checkpoint by its prefix, or the one in an artifact's directory."""
        absolute = _absolute(path)
        inside = os.path.join(absolute, "variables", "variables")
        return Checkpoint(self, inside if os.path.isdir(absolute) else absolute)

    def cli(self, export_dir: PathLike, *arguments: str) -> str:
        """The output of `saved_model_cli show --all`, or of the given subcommand and options."""
        command, *options = arguments or ("show", "--all")
        return self._function("saved_model_cli", command, "--dir", _absolute(export_dir), *options)

    def fingerprint(self, export_dir: PathLike) -> dict[str, int]:
        """The fields that `tf.saved_model.experimental.read_fingerprint` finds."""
        return self._function("fingerprint", _absolute(export_dir))

    @property
    def pid(self) -> int:
        """Process id of the reading process."""
        return self._process.pid

    def close(self) -> None:
        """Ends the process."""
        self._process.stop()

    def __enter__(self) -> Consumers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _function(self, name: str, *arguments: Any) -> Any:
        return self._running().request(
            f"{name}{arguments}", ("run", name, *arguments), self.timeout
        )

    def _running(self) -> _Process:
        if self._process.stopped:
            self._process = _Process(self._python)
        return self._process


class _Artifact:
    """An artifact loaded by one reader; released when the test drops it."""

    def __init__(
        self, consumers: Consumers, reader: str, export_dir: PathLike, *options: Any
    ) -> None:
        self._directory, self._reader = _absolute(export_dir), reader
        self._timeout = consumers.timeout
        self._process = consumers._running()
        self._handle: int = self._request("open", reader, self._directory, *options)
        weakref.finalize(self, self._process.released.append, self._handle)

    def _use(self, method: str, *arguments: Any) -> Any:
        return self._request("use", self._handle, method, *arguments)

    def _request(self, verb: str, *rest: Any) -> Any:
        request = (verb, *rest)
        what = f"{self._reader} reader of {self._directory}"
        return self._process.request(what, request, self._timeout)


class GraphArtifact(_Artifact):
    """An artifact with signatures to run."""

    def signatures(self) -> Signatures:
        """`{key: {"inputs": {name: Spec}, "outputs": {name: Spec}}}`."""
        return self._use("signatures")

    def signature(self, key: str = "serving_default", /, **inputs: Any) -> dict[str, Any]:
        """Runs a signature on arrays and returns the outputs by name."""
        return self._use("signature", key, to_wire(inputs))


class V1Artifact(GraphArtifact):
    """An artifact in a session."""

    def save(self, prefix: PathLike) -> str:
        """Writes a checkpoint by the saver in the artifact and returns its prefix."""
        os.makedirs(os.path.dirname(_absolute(prefix)), exist_ok=True)
        return self._use("save", _absolute(prefix))

    def save_model(self, export_dir: PathLike) -> None:
        """Saves what the session holds again by `tf.compat.v1.saved_model.Builder`."""
        self._use("save_model", _absolute(export_dir))


class TensorFlowArtifact(GraphArtifact):
    """An artifact loaded as an object.

    Paths are dotted, an index or key is a step too: `encoder.layers.0.f`, `signatures.serve`. The
    empty path is the loaded object.
    """

    def call(self, path: str = "__call__", /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the loaded object. Arrays become tensors, Python values stay."""
        return self._use("call", path, to_wire(args), to_wire(kwargs))

    def attribute(self, path: str) -> Any:
        """The value of an attribute; variables come as `Variable`, other objects as `Opaque`."""
        return self._use("attribute", path)

    def attributes(self, path: str = "") -> list[str]:
        """The public names that the object at a path has."""
        return self._use("attributes", path)

    def variables(self) -> dict[str, Variable]:
        """All tracked variables by their paths, each once."""
        return self._use("variables")

    def assign(self, path: str, value: Any) -> None:
        """Assigns to the variable at a path, in the loaded copy only."""
        self._use("assign", path, np.asarray(value))

    def gradient(
        self, path: str = "__call__", /, *args: Any, wrt: str = "inputs", **kwargs: Any
    ) -> dict[Any, Any]:
        """Differentiates half the sum of squares of a function's floating-point outputs.

        `consumer_gradients.gradients` computes the same for a live object.

        Args:
            path: of the function; `signatures.<key>` for a signature.
            *args: passed on.
            wrt: `"inputs"` or `"variables"` (those that are trainable).
            **kwargs: passed on.

        Returns:
            Gradients by argument position, argument name or variable path; `None` where there is
            none.
        """
        return self._use("gradient", path, wrt, to_wire(args), to_wire(kwargs))

    def second_gradient(self, path: str, x: np.ndarray) -> np.ndarray:
        """Differentiates the derivative of a function of one argument once more.

        `consumer_gradients.second_gradients` computes the same for a live object.
        """
        return self._use("second_gradient", path, to_wire(x))

    def save(self, export_dir: PathLike) -> None:
        """Saves the loaded object again by `tf.saved_model.save`."""
        self._use("save", _absolute(export_dir))


class LayerArtifact(_Artifact):
    """An artifact in a `TFSMLayer`."""

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Calls the layer."""
        return self._use("call", to_wire(inputs), to_wire(kwargs))

    def weights(self) -> dict[str, int]:
        """How many weights the layer has: `{"trainable": …, "all": …}`."""
        return self._use("weights")

    def fine_tune(self, inputs: Any, targets: Any, learning_rate: float = 0.01) -> dict[str, Any]:
        """Does one step of gradient descent on the mean squared error.

        Args:
            inputs: what the layer is called on.
            targets: arrays in the structure and order of the layer's outputs.
            learning_rate: of that step.

        Returns:
            `before` and `after`: the losses; `trainable`: how many weights are; `updated`: how
            many of them got a gradient.
        """
        return self._use("fine_tune", to_wire(inputs), to_wire(targets), learning_rate)


class Checkpoint:
    """A checkpoint as `tf.train.list_variables` and `tf.train.load_checkpoint` read it."""

    def __init__(self, consumers: Consumers, prefix: str) -> None:
        self._consumers, self._prefix = consumers, prefix

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by checkpoint key, without the object graph's."""
        return _without_graph(self._consumers._function("list_variables", self._prefix))

    def values(self) -> dict[str, np.ndarray]:
        """Values by checkpoint key, without the object graph's."""
        return _without_graph(self._consumers._function("checkpoint_values", self._prefix))

    def has_object_graph(self) -> bool:
        """Whether the checkpoint can be restored by objects."""
        return _OBJECT_GRAPH in self._consumers._function("list_variables", self._prefix)


class _Process:
    """One reading process and the pipe to it."""

    def __init__(self, python: str) -> None:
        self.released: list[int] = []
        self._folder = tempfile.TemporaryDirectory(prefix="consumer-")
        self._log = Path(self._folder.name, "log.txt")
        self._pipe, theirs = Pipe()
        self._child = _start(python, theirs, Path(self._folder.name), self._log)
        theirs.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def stopped(self) -> bool:
        """Whether it was ended or found dead. One that died unnoticed fails the next request."""
        return self._pipe.closed

    def request(self, what: str, request: Sequence[Any], timeout: float) -> Any:
        """Sends a request and returns the answer, or raises what the reader raised."""
        released, self.released[:] = list(self.released), []
        try:
            self._pipe.send_bytes(pickle.dumps((released, request), pickle.HIGHEST_PROTOCOL))
            reply = self._receive(timeout)
        except (EOFError, OSError) as error:
            crash = self._crash(what, error)
            self.stop()
            raise crash from error
        except BaseException:
            self.stop()  # an interrupted conversation can't be taken up again
            raise
        return _value_of(what, reply)

    def stop(self) -> None:
        self._pipe.close()
        self._child.kill()
        self._child.wait()
        self._folder.cleanup()

    def _receive(self, timeout: float) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"no answer within {timeout} s")
        return pickle.loads(self._pipe.recv_bytes())

    def _crash(self, what: str, error: BaseException) -> ConsumerCrash:
        tail = self._log.read_text(errors="replace") if self._log.exists() else ""
        end = str(error) if isinstance(error, TimeoutError) else _how_it_ended(self._child)
        return ConsumerCrash(f"{what}: {end}\n{tail[-_LOG_TAIL_CHARACTERS:]}")


def _start(python: str, pipe: Connection, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    # In a folder of its own, so that an artifact can't lean on a relative path.
    with log.open("wb") as output:
        return subprocess.Popen(
            [python, "-X", "faulthandler", str(_SCRIPT), str(pipe.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[pipe.fileno()],
            cwd=folder,
        )


def _how_it_ended(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "the process closed its pipe"
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _value_of(what: str, reply: tuple[Any, ...]) -> Any:
    if reply[0]:
        return reply[1]
    _, kind, message, remote = reply
    raise ConsumerError(what, kind, message) from _RemoteTraceback(remote)


def _absolute(path: PathLike) -> str:
    text = os.fspath(path)
    return text if "://" in text else os.path.abspath(text)


def _without_graph(entries: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != _OBJECT_GRAPH}


def assert_same(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Asserts equal structure, shapes and dtypes, equal values, and floats within a tolerance."""
    actual, expected = to_wire(actual), to_wire(expected)
    if isinstance(expected, Ragged | Sparse | Named):
        assert type(actual) is type(expected)
        assert_same(vars(actual), vars(expected), rtol, atol)
    elif isinstance(expected, Mapping):
        assert sorted(actual) == sorted(expected)
        for key in expected:
            assert_same(actual[key], expected[key], rtol, atol)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs, rtol, atol)
    else:
        _assert_same_array(np.asarray(actual), np.asarray(expected), rtol, atol)


def _assert_same_array(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.name in ("bfloat16", "float16"):
        # Two runs of one graph may round the last bit differently.
        actual, expected, rtol = actual.astype("f4"), expected.astype("f4"), max(rtol, 1e-2)
    if expected.dtype.kind in "fc":
        np.testing.assert_allclose(actual, expected, rtol, atol)
    else:
        np.testing.assert_array_equal(actual, expected)
