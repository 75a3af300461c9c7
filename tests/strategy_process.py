"""Exports under a `MirroredStrategy` with two devices, which a process gets before its first op.

Called with a folder: writes `single`, `mirrored` and `scope` for the same values, the model
`keras` with its inputs and outputs in `keras.npz`, objects of other kinds under their names, and
`untracked.txt`, why a function without its variable was refused.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute.packed_distributed_variable import PackedDistributedVariable

import keras_export as ke

_ON_READ = tf.VariableSynchronization.ON_READ


class Model(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable([1.0, 2.0], name="v")
        self.mean = tf.Variable(
            0.0, synchronization=_ON_READ, aggregation=tf.VariableAggregation.MEAN, name="mean"
        )
        self.sum = tf.Variable(
            0.0, synchronization=_ON_READ, aggregation=tf.VariableAggregation.SUM, name="sum"
        )
        self.calls = tf.Variable(
            0, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="calls"
        )

    @tf.function(input_signature=[tf.TensorSpec([2])])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        self.calls.assign_add(1)
        return {"y": x * self.v + self.mean}


def export_modules(strategy: tf.distribute.Strategy, folder: Path) -> None:
    with strategy.scope():
        mirrored = Model()

    def step() -> None:
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
        mirrored.mean.assign(2.0 * replica)
        mirrored.sum.assign(1.0 + replica)

    strategy.run(step)
    # Traced before, for two devices: the artifact must not hold that trace.
    mirrored.f(tf.ones([2]))
    mirrored.calls.assign(0)
    ke.save(mirrored, folder / "mirrored")
    with strategy.scope():
        ke.save(mirrored, folder / "scope")
    expand = ke.SaveOptions(experimental_variable_policy="expand_distributed_variables")
    ke.save(mirrored, folder / "expanded", options=expand)
    single = Model()
    single.mean.assign(1.0)
    single.sum.assign(3.0)
    ke.save(single, folder / "single")


class Updating(tf.Module):
    """Its function can be traced for one device only."""

    def __init__(self) -> None:
        super().__init__()
        self.total = tf.Variable(
            0.0, synchronization=_ON_READ, aggregation=tf.VariableAggregation.SUM
        )

    @tf.function(input_signature=[])
    def f(self) -> dict[str, tf.Tensor]:
        self.total.assign_add(1.0)
        return {"y": self.total.read_value()}


class Drawing(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = tf.random.Generator.from_seed(3)

    @tf.function
    def f(self) -> tf.Tensor:
        return self.generator.normal([3])


class Sharded(tf.Module):
    """A variable in parts, as a parameter server strategy makes them."""

    def __init__(self) -> None:
        super().__init__()
        parts = [tf.Variable([1.0, 2.0]), tf.Variable([3.0])]
        self.v = tf.__internal__.distribute.ShardedVariable(parts, name="v")

    @tf.function(input_signature=[tf.TensorSpec([], name="x")])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * tf.convert_to_tensor(self.v)}


class Packed(tf.Module):
    """Copies on two devices that functions reach through one handle."""

    def __init__(self) -> None:
        super().__init__()
        copies = []
        for device in ("CPU:0", "CPU:1"):
            with tf.device(device):
                copies.append(tf.Variable([1.0, 2.0], name="v"))
        self.v = PackedDistributedVariable(copies, name="packed")

    @tf.function(input_signature=[tf.TensorSpec([2], name="x")])
    def f(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("CPU:0"):
            return {"y": x * self.v.read_value()}


def export_packed(folder: Path) -> None:
    packed = Packed()
    ke.save(packed, folder / "packed")
    holder = tf.Module()
    holder.f = packed.f
    try:
        ke.save(holder, folder / "untracked")
    except ke.ExportError as error:
        (folder / "untracked.txt").write_text(str(error))


def export_others(strategy: tf.distribute.Strategy, folder: Path) -> None:
    with strategy.scope():
        ke.save(Updating(), folder / "updating")
    for name, used in {"one": tf.distribute.OneDeviceStrategy("CPU:0"), "two": strategy}.items():
        with used.scope():
            drawing = Drawing()
            drawing.f()  # a trace for the devices of the strategy
            drawing.generator.reset_from_seed(3)
        ke.save(drawing, folder / f"drawing_{name}")
    sharded = Sharded()
    sharded.f(tf.constant(1.0))
    ke.save(sharded, folder / "sharded")


def load_under(strategy: tf.distribute.Strategy, folder: Path) -> None:
    """The values of a loaded object are distributed where it is loaded under a strategy."""
    with strategy.scope():
        loaded = tf.saved_model.load(str(folder / "single"))
    assert isinstance(loaded.v, tf.distribute.DistributedValues)
    per_replica = strategy.run(lambda: loaded.f(tf.ones([2]))["y"])
    for value in strategy.experimental_local_results(per_replica):
        np.testing.assert_allclose(value, [2.0, 3.0])


def export_keras(strategy: tf.distribute.Strategy, folder: Path) -> None:
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((3,), name="x"), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
        )
        model.compile("adam", "mse")
    exporter = ke.Exporter(model)
    model.fit(np.random.rand(8, 3), np.ones((8, 2)), verbose=0)
    exporter.write(folder / "keras")
    x = np.random.rand(4, 3).astype("float32")
    np.savez(folder / "keras.npz", x=x, y=model(x))


def export_two_devices(folder: Path) -> None:
    module = tf.Module()
    module.variables_of_both = []
    for index in range(100):
        with tf.device(f"/cpu:{index % 2}"):
            module.variables_of_both.append(tf.Variable([float(index)] * (index % 3)))
    ke.save(module, folder / "both")


def main(folder: Path) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    export_modules(strategy, folder)
    export_keras(strategy, folder)
    export_others(strategy, folder)
    export_packed(folder)
    export_two_devices(folder)
    load_under(strategy, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
