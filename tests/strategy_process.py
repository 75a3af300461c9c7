"""Exports under a `MirroredStrategy` with two devices, which a process gets before its first op.

Called with a folder: writes `single`, `mirrored` and `scope` for the same values, and the model
`keras` with its inputs and outputs in `keras.npz`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

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
    single = Model()
    single.mean.assign(1.0)
    single.sum.assign(3.0)
    ke.save(single, folder / "single")


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


def main(folder: Path) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    export_modules(strategy, folder)
    export_keras(strategy, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
