"""Trains with `SavedModelCheckpoint` under strategies, which need processes of their own.

`mirrored FOLDER`: `fit` on two logical devices, then the same weights in a model of one device,
exported to `FOLDER/single`. `worker FOLDER INDEX PORT PORT`: one of two workers, with a training
loop of its own, for Keras's `fit` does not run there (keras-team/keras#20585).
"""

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_export as ke

FOLDER = sys.argv[2]
EPOCHS = 3
X = np.random.RandomState(0).rand(16, 3).astype("float32")


def build():
    keras.utils.set_random_seed(1)
    x = keras.Input((3,), name="x")
    h = keras.layers.BatchNormalization()(keras.layers.Dense(4)(x))
    model = keras.Model(x, keras.layers.Dense(1, name="y")(h))
    model.compile("adam", "mse")
    return model


def mirrored():
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = build()
    weights = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(model.get_weights())
    )
    checkpoint = ke.SavedModelCheckpoint(f"{FOLDER}/models/{{version}}")
    model.fit(X, X[:, :1], batch_size=8, epochs=EPOCHS, verbose=0, callbacks=[note, checkpoint])
    keras.utils.clear_session()  # layers are counted, and named, anew
    single = build()
    for version, values in enumerate(weights, 1):
        single.set_weights(values)
        ke.export(single, f"{FOLDER}/single/{version}")


def worker():
    index = int(sys.argv[3])
    cluster = {"worker": [f"localhost:{port}" for port in sys.argv[4:]]}
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = build()
        model.optimizer.build(model.trainable_variables)
    x = X[index * 8 : index * 8 + 8]

    @tf.function
    def step():
        def replica():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x, training=True) - x[:, :1]) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce("MEAN", strategy.run(replica), axis=None)

    checkpoint = ke.SavedModelCheckpoint(
        f"{FOLDER}/{{version}}", monitor="value", mode="min", save_best_only=True
    )
    outputs = []
    with strategy.scope():
        checkpoint.set_model(model)
        checkpoint.on_train_begin()
        for epoch, value in enumerate([3.0, 4.0, 2.0]):
            step()
            checkpoint.on_epoch_end(epoch, {"value": value})
            outputs.append(model(X, training=False).numpy())
        checkpoint.on_train_end()
    np.savez(f"{FOLDER}-{index}.npz", y=np.stack(outputs), exports=len(checkpoint.reports))


if __name__ == "__main__":
    {"mirrored": mirrored, "worker": worker}[sys.argv[1]]()
