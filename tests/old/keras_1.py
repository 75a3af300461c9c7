"""Writes models of Keras 1, with what they compute there.

In: a folder, and perhaps names of models; `KERAS_BACKEND` and `KERAS_DIM_ORDERING` say for what.
Out: as `keras_2.py`. The invariant: it runs on Keras 1.0 to 1.2 and Python 3.6.
"""

import json
import os
import sys
import zlib

import keras
import numpy as np
from keras import backend as K
from keras import layers as L
from keras.layers import Input, merge
from keras.models import Model, Sequential

if os.environ.get("KERAS_DIM_ORDERING"):
    K.set_image_dim_ordering(os.environ["KERAS_DIM_ORDERING"])
FIRST = K.image_dim_ordering() == "th"
RANDOM = np.random.RandomState(7)
BUILDERS = {}


def model(build):
    BUILDERS[build.__name__] = build
    return build


def some(*shape):
    return RANDOM.uniform(-1, 1, shape).astype("float32")


def ids(high, *shape):
    return RANDOM.randint(0, high, shape).astype("float32")


def image(height, width, channels):
    return (channels, height, width) if FIRST else (height, width, channels)


def doubled(x):
    return x * 2.0


@model
def mlp():
    m = Sequential()
    m.add(L.Dense(5, input_dim=4, init="uniform", W_regularizer="l2"))
    m.add(L.Activation("relu"))
    m.add(L.Dropout(0.5))
    m.add(L.BatchNormalization())
    m.add(L.Dense(3, activation="softmax", bias=False))
    m.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return m, [some(3, 4)]


@model
def activations():
    x = Input((6,), name="x")
    names = ["relu", "tanh", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "linear",
             "softmax"]
    return Model(x, [L.Dense(3, activation=name)(x) for name in names]), [some(3, 6) * 3]


@model
def advanced_activations():
    x = Input((4, 5), name="x")
    y = [L.LeakyReLU(0.2)(x), L.PReLU()(x), L.ELU(0.7)(x), L.ThresholdedReLU(0.3)(x),
         L.ParametricSoftplus()(x), L.SReLU()(x)]
    return Model(x, y), [some(2, 4, 5) * 4]


@model
def noise():
    x = Input((4, 6), name="x")
    y = L.GaussianNoise(0.1)(x)
    y = L.GaussianDropout(0.2)(y)
    y = L.SpatialDropout1D(0.2)(y)
    y = L.ActivityRegularization(0.1, 0.2)(y)
    return Model(x, L.TimeDistributed(L.Dense(2))(y)), [some(2, 4, 6)]


@model
def merges():
    a, b = Input((4,), name="a"), Input((4,), name="b")
    modes = ["sum", "mul", "ave", "max", "concat", "dot", "cos"]
    y = [merge([a, b], mode=mode, dot_axes=1) if mode in ("dot", "cos") else
         merge([a, b], mode=mode) for mode in modes]
    return Model([a, b], y), [some(3, 4), some(3, 4)]


@model
def merged_matrices():
    a, b = Input((4, 5), name="a"), Input((3, 5), name="b")
    y = merge([a, b], mode="dot", dot_axes=(2, 2))
    z = merge([a, b], mode="concat", concat_axis=1)
    return Model([a, b], [y, z]), [some(2, 4, 5), some(2, 3, 5)]


@model
def merged_branches():
    one, two = Sequential(), Sequential()
    one.add(L.Dense(3, input_dim=4))
    two.add(L.Dense(3, input_shape=(5,)))
    two.add(L.Dense(2))
    m = Sequential()
    m.add(L.Merge([one, two], mode="concat"))
    m.add(L.Dense(1, activation="sigmoid"))
    m.compile("rmsprop", "binary_crossentropy")
    return m, [some(3, 4), some(3, 5)]


@model
def shapes():
    x = Input((6, 4), name="x")
    y = L.Permute((2, 1))(x)
    z = L.Reshape((3, 8))(x)
    return Model(x, [y, z, L.RepeatVector(3)(L.Flatten()(x))]), [some(2, 6, 4)]


@model
def older_dense_layers():
    x = Input((6,), name="x")
    y = L.MaxoutDense(4, nb_feature=3)(x)
    return Model(x, [y, L.Highway(activation="relu")(x)]), [some(2, 6)]


@model
def cnn():
    m = Sequential()
    m.add(L.Convolution2D(4, 3, 3, border_mode="same", input_shape=image(9, 8, 3)))
    m.add(L.Activation("relu"))
    m.add(L.Convolution2D(4, 3, 2, subsample=(2, 1), activation="tanh"))
    m.add(L.MaxPooling2D(pool_size=(2, 2)))
    m.add(L.Dropout(0.25))
    m.add(L.Flatten())
    m.add(L.Dense(3))
    m.compile("adadelta", "categorical_crossentropy")
    return m, [some(2, *image(9, 8, 3))]


@model
def image_layers():
    x = Input(image(8, 8, 3), name="x")
    axis = 1 if FIRST else 3
    y = L.ZeroPadding2D((1, 2))(x)
    y = L.Cropping2D(((1, 1), (0, 2)))(y)
    y = L.UpSampling2D((2, 2))(y)
    y = L.Convolution2D(4, 3, 3, bias=False)(y)
    y = L.BatchNormalization(axis=axis)(y)
    y = L.AveragePooling2D((2, 2), strides=(1, 1), border_mode="valid")(y)
    return Model(x, [L.GlobalMaxPooling2D()(y), L.GlobalAveragePooling2D()(y)]), [
        some(2, *image(8, 8, 3))]


@model
def dilated():
    x = Input(image(9, 9, 2), name="x")
    y = L.AtrousConvolution2D(3, 3, 3, atrous_rate=(2, 2))(x)
    return Model(x, L.GlobalMaxPooling2D()(y)), [some(2, *image(9, 9, 2))]


@model
def transposed():
    x = Input(image(4, 4, 2), name="x")
    out = (2,) + image(9, 9, 3)
    y = L.Deconvolution2D(3, 3, 3, output_shape=out, subsample=(2, 2))(x)
    return Model(x, L.Flatten()(y)), [some(2, *image(4, 4, 2))]


@model
def separable():
    x = Input(image(6, 6, 2), name="x")
    return Model(x, L.Flatten()(L.SeparableConvolution2D(3, 3, 3, depth_multiplier=2)(x))), [
        some(2, *image(6, 6, 2))]


@model
def conv1d():
    x = Input((12, 3), name="x")
    y = L.Convolution1D(4, 3, activation="relu", border_mode="same", subsample_length=2)(x)
    y = L.ZeroPadding1D(1)(y)
    y = L.UpSampling1D(2)(y)
    y = L.MaxPooling1D(2)(y)
    y = L.AveragePooling1D(2, border_mode="same")(y)
    y = L.AtrousConvolution1D(3, 2, atrous_rate=2)(y)
    return Model(x, [L.GlobalMaxPooling1D()(y), L.GlobalAveragePooling1D()(y)]), [some(2, 12, 3)]


@model
def conv3d():
    shape = (2, 5, 6, 6) if FIRST else (5, 6, 6, 2)
    x = Input(shape, name="x")
    y = L.Convolution3D(3, 2, 2, 2, activation="relu")(x)
    y = L.MaxPooling3D((2, 2, 2))(y)
    return Model(x, L.Flatten()(y)), [some(2, *shape)]


@model
def locally_connected():
    x, z = Input(image(7, 6, 2), name="x"), Input((7, 3), name="z")
    y = L.LocallyConnected2D(3, 3, 2, subsample=(2, 1), activation="tanh")(x)
    w = L.LocallyConnected1D(4, 3, bias=False)(z)
    return Model([x, z], [y, w]), [some(2, *image(7, 6, 2)), some(2, 7, 3)]


@model
def residual():
    x = Input(image(8, 8, 3), name="x")
    axis = 1 if FIRST else 3
    y = L.Convolution2D(4, 3, 3, border_mode="same", name="stem")(x)
    for i in range(2):
        z = L.BatchNormalization(axis=axis, name="bn%d" % i)(y)
        z = L.Activation("relu", name="act%d" % i)(z)
        z = L.Convolution2D(4, 3, 3, border_mode="same", name="conv%d" % i)(z)
        y = merge([y, z], mode="sum", name="sum%d" % i)
    y = L.AveragePooling2D((8, 8))(y)
    m = Model(x, L.Dense(3, activation="softmax")(L.Flatten()(y)))
    m.compile("nadam", "categorical_crossentropy")
    return m, [some(2, *image(8, 8, 3))]


@model
def recurrent():
    x = Input((5, 3), name="x")
    y = [L.LSTM(4)(x), L.GRU(4)(x), L.SimpleRNN(4)(x),
         L.LSTM(4, consume_less="gpu", return_sequences=True)(x),
         L.GRU(4, consume_less="gpu")(x), L.LSTM(4, consume_less="mem", go_backwards=True)(x),
         L.LSTM(4, dropout_W=0.2, dropout_U=0.1, inner_activation="sigmoid")(x)]
    return Model(x, y), [some(2, 5, 3)]


@model
def text():
    m = Sequential()
    m.add(L.Embedding(20, 6, input_length=7, mask_zero=True, dropout=0.2))
    m.add(L.LSTM(4, return_sequences=True))
    m.add(L.Bidirectional(L.LSTM(3)))
    m.add(L.Dense(1, activation="hard_sigmoid"))
    m.compile("adam", "binary_crossentropy")
    x = ids(20, 4, 7)
    x[:, 5:] = 0
    return m, [x]


@model
def bidirectional():
    x = Input((5, 3), name="x")
    y = [L.Bidirectional(L.LSTM(4, return_sequences=True), merge_mode=mode)(x)
         for mode in ("concat", "sum", "mul", "ave")]
    return Model(x, y + [L.Bidirectional(L.GRU(3))(x)]), [some(2, 5, 3)]


@model
def time_distributed():
    inner = Sequential([L.Dense(3, input_dim=4), L.Activation("relu")])
    x = Input((5, 4), name="x")
    y = L.TimeDistributed(L.Dense(6))(x)
    z = L.TimeDistributed(inner)(x)
    w = L.TimeDistributedDense(2)(x)
    return Model(x, [L.LSTM(3)(y), z, w]), [some(2, 5, 4)]


@model
def masked():
    x = Input((5, 3), name="x")
    y = L.LSTM(4, return_sequences=True)(L.Masking(0.0)(x))
    v = some(3, 5, 3)
    v[:, 3:] = 0
    return Model(x, L.GRU(2)(y)), [v]


@model
def conv_lstm():
    shape = (4, 2, 6, 6) if FIRST else (4, 6, 6, 2)
    x = Input(shape, name="x")
    return Model(x, L.ConvLSTM2D(2, 3, 3, border_mode="same")(x)), [some(2, *shape)]


@model
def siamese():
    a, b = Input((5, 3), name="left"), Input((5, 3), name="right")
    shared, dense = L.LSTM(4), L.Dense(2)
    y, z = dense(shared(a)), dense(shared(b))
    return Model([a, b], merge([y, z], mode="concat")), [some(2, 5, 3), some(2, 5, 3)]


@model
def nested_models():
    a = Input((4,))
    base = Model(a, L.BatchNormalization()(L.Dense(5, activation="relu")(a)), name="base")
    head = Sequential([L.Dense(3, input_shape=(5,)), L.BatchNormalization()], name="head")
    x, y = Input((4,), name="x"), Input((4,), name="y")
    one, two = base(x), base(y)
    return Model([x, y], [head(one), L.Dense(2)(merge([one, two], mode="concat"))]), [
        some(3, 4), some(3, 4)]


@model
def models_in_a_sequential():
    base = Sequential([L.Convolution2D(3, 3, 3, input_shape=image(6, 6, 2)), L.Flatten()])
    m = Sequential()
    m.add(base)
    m.add(L.Dense(2))
    m.layers[0].trainable = False
    m.compile("sgd", "mse")
    return m, [some(2, *image(6, 6, 2))]


@model
def several_inputs_and_outputs():
    a = Input((7,), dtype="int32", name="main_input")
    y = L.LSTM(5)(L.Embedding(output_dim=4, input_dim=10, input_length=7)(a))
    first = L.Dense(1, activation="sigmoid", name="aux_output")(y)
    b = Input((3,), name="aux_input")
    y = merge([y, b], mode="concat")
    m = Model(input=[a, b], output=[L.Dense(1, name="main_output")(y), first])
    m.compile("rmsprop", "mse", loss_weights=[1.0, 0.2])
    return m, [ids(10, 2, 7).astype("int32"), some(2, 3)]


@model
def stateful():
    m = Sequential()
    m.add(L.LSTM(4, stateful=True, batch_input_shape=(2, 5, 3)))
    return m, [some(2, 5, 3)]


@model
def with_lambda():
    x = Input((4,), name="x")
    return Model(x, L.Dense(2)(L.Lambda(doubled, name="twice")(x))), [some(3, 4)]


@model
def old_normalizations():
    x = Input((4,), name="x")
    return Model(x, [L.BatchNormalization(mode=0)(x), L.BatchNormalization(mode=2)(x)]), [
        some(3, 4)]


def shake(m):
    m.set_weights([
        v + RANDOM.uniform(0.05, 0.3, v.shape).astype(v.dtype)
        if v.dtype.kind == "f" and v.ndim and np.ptp(v) == 0 else v
        for v in m.get_weights()
    ])  # fmt: skip


def main(folder, names):
    os.makedirs(folder, exist_ok=True)
    left_out = {}
    for name, build in BUILDERS.items():
        if names and name not in names:
            continue
        try:
            if K.backend() == "tensorflow":
                K.clear_session()
            RANDOM.seed(zlib.crc32(name.encode()) % (1 << 30))
            m, given = build()
            shake(m)
            found = m.predict(given if len(given) > 1 else given[0], batch_size=len(given[0]))
            found = found if isinstance(found, list) else [found]
            keys = [x.name.partition(":")[0] for x in m.inputs]
            arrays = dict(zip(("x:" + key for key in keys), given))
            arrays.update(("y:%03d" % i, value) for i, value in enumerate(found))
            if name == "stateful":
                m.reset_states()
            m.save(os.path.join(folder, name + ".h5"))
            np.savez(os.path.join(folder, name + ".npz"), **arrays)
        except Exception as error:
            left_out[name] = "%s: %s" % (type(error).__name__, str(error)[:200])
    print(keras.__version__, K.backend(), len(BUILDERS) - len(left_out), "written;",
          json.dumps(left_out, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
