"""Writes models of an old Keras, with what they compute there.

In: `keras` or `tensorflow.keras`, a folder, and perhaps names of models. Out: `NAME.h5`, and
`NAME.npz` with the inputs by name and the outputs in order. The invariant: it runs on Keras 2.0 to
2.15 and Python 3.6; what a Keras does not have is left out.
"""

import importlib
import json
import os
import sys
import traceback

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

NAME = sys.argv[1] if len(sys.argv) > 1 else "keras"
keras = importlib.import_module(NAME)
IS_TF = NAME != "keras"
if IS_TF:
    import tensorflow as tf
L, M = keras.layers, keras.models
Input = L.Input if hasattr(L, "Input") else keras.Input
RANDOM = np.random.RandomState(7)
BUILDERS = {}


def model(build):
    BUILDERS[build.__name__] = build
    return build


def some(*shape):
    return RANDOM.uniform(-1, 1, shape).astype("float32")


def ids(high, *shape):
    return RANDOM.randint(0, high, shape).astype("float32")


def relu6(x):
    return keras.backend.relu(x, max_value=6)


def doubled(x):
    return x * 2.0


def scaled(x, by=1.0):
    return x * by


def spread(x):
    mean = keras.backend.mean(x, axis=-1, keepdims=True)
    return keras.backend.concatenate([x - mean, x + mean])


def spread_shape(shape):
    return shape[:-1] + (2 * shape[-1],)


class Own(L.Layer):
    """A layer of somebody's."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(
            name="scale", shape=(int(shape[-1]),), initializer="uniform", trainable=True
        )
        super().build(shape)

    def call(self, x):
        return x * self.scale * self.factor

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return dict(super().get_config(), factor=self.factor)


# -- dense -----------------------------------------------------------------------------------------


@model
def mlp():
    m = M.Sequential()
    m.add(L.Dense(5, activation="relu", input_shape=(4,), kernel_regularizer="l2"))
    m.add(L.Dropout(0.3))
    m.add(L.BatchNormalization())
    m.add(L.Dense(3, activation="softmax", kernel_constraint="non_neg"))
    m.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    return m, [some(3, 4)]


@model
def input_dim():
    m = M.Sequential([L.Dense(5, input_dim=4, activation="tanh"), L.Dense(2)])
    m.compile("sgd", "mse")
    return m, [some(3, 4)]


@model
def all_activations():
    names = ["relu", "tanh", "sigmoid", "hard_sigmoid", "softplus", "softsign", "elu", "selu",
             "linear", "softmax", "exponential", "swish", "gelu", "relu6"]
    x = Input((6,), name="x")
    ends = []
    for name in names:
        if hasattr(keras.activations, name):
            ends.append(L.Activation(name, name="of_" + name)(x))
            ends.append(L.Dense(3, activation=name, name="dense_" + name)(x))
    return M.Model(x, ends), [some(3, 6) * 3]


@model
def advanced_activations():
    x = Input((4, 5, 3), name="x")
    y = [L.LeakyReLU(0.2)(x), L.PReLU()(x), L.PReLU(shared_axes=[1, 2])(x), L.ELU(0.7)(x),
         L.ThresholdedReLU(0.3)(x)]
    if hasattr(L, "Softmax"):
        y.append(L.Softmax(axis=1)(x))
    if hasattr(L, "ReLU"):
        y.append(L.ReLU(6.0)(x))
    try:
        y.append(L.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.2)(x))
    except Exception:
        pass
    return M.Model(x, y), [some(2, 4, 5, 3) * 4]


@model
def noise_and_regularizers():
    x = Input((4, 6), name="x")
    y = L.GaussianNoise(0.1)(x)
    y = L.GaussianDropout(0.2)(y)
    y = L.AlphaDropout(0.2)(y)
    y = L.SpatialDropout1D(0.2)(y)
    y = L.ActivityRegularization(0.1, 0.2)(y)
    return M.Model(x, L.Dense(2)(y)), [some(2, 4, 6)]


@model
def merges():
    a, b = Input((4,), name="a"), Input((4,), name="b")
    names = ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"]
    y = [getattr(L, n)()([a, b]) for n in names if hasattr(L, n)]
    y.append(L.Dot(axes=1)([a, b]))
    y.append(L.Dot(axes=-1, normalize=True)([a, b]))
    y.append(L.add([a, b, y[0]]))
    return M.Model([a, b], y), [some(3, 4), some(3, 4)]


@model
def batch_dot():
    a, b = Input((4, 5), name="a"), Input((3, 5), name="b")
    y = L.Dot(axes=(2, 2))([a, b])
    z = L.Concatenate(axis=1)([a, b])
    return M.Model([a, b], [y, z, L.Dot(axes=[2, 1])([y, b])]), [some(2, 4, 5), some(2, 3, 5)]


@model
def shapes():
    x = Input((6, 4), name="x")
    y = L.Permute((2, 1))(x)
    z = L.Reshape((3, -1))(x)
    w = L.RepeatVector(3)(L.Flatten()(x))
    return M.Model(x, [y, z, w]), [some(2, 6, 4)]


# -- images ----------------------------------------------------------------------------------------


@model
def cnn():
    m = M.Sequential(name="net")
    m.add(L.Conv2D(4, (3, 3), padding="same", strides=(2, 2), input_shape=(9, 8, 3)))
    m.add(L.BatchNormalization(axis=-1, scale=False))
    m.add(L.Activation("relu"))
    m.add(L.MaxPooling2D((2, 2), padding="same"))
    m.add(L.SeparableConv2D(5, (2, 2), depth_multiplier=2, activation="elu"))
    m.add(L.GlobalAveragePooling2D())
    m.add(L.Dense(2, activation="sigmoid"))
    m.compile("rmsprop", "binary_crossentropy", metrics=["mae"])
    return m, [some(2, 9, 8, 3)]


@model
def image_layers():
    x = Input((8, 8, 3), name="x")
    y = L.ZeroPadding2D(((1, 2), (0, 1)))(x)
    y = L.Cropping2D(((1, 1), (0, 2)))(y)
    y = L.UpSampling2D((2, 2))(y)
    y = L.Conv2DTranspose(4, 3, strides=2, padding="same")(y)
    y = L.Conv2D(4, 3, dilation_rate=2, use_bias=False)(y)
    y = L.SpatialDropout2D(0.2)(y)
    y = L.AveragePooling2D(3, strides=2)(y)
    return M.Model(x, [L.GlobalMaxPooling2D()(y), L.Flatten()(y)]), [some(2, 8, 8, 3)]


@model
def depthwise():
    x = Input((8, 8, 3), name="x")
    y = L.DepthwiseConv2D(3, strides=(2, 2), padding="same", depth_multiplier=2)(x)
    y = L.UpSampling2D(2, interpolation="bilinear")(y)
    return M.Model(x, y), [some(2, 8, 8, 3)]


@model
def conv1d():
    x = Input((12, 3), name="x")
    y = L.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    y = L.ZeroPadding1D(1)(y)
    y = L.UpSampling1D(2)(y)
    y = L.Cropping1D((1, 2))(y)
    y = L.MaxPooling1D(2)(y)
    y = L.AveragePooling1D(2, padding="same")(y)
    z = L.GlobalAveragePooling1D()(y)
    return M.Model(x, [L.GlobalMaxPooling1D()(y), z]), [some(2, 12, 3)]


@model
def separable1d():
    x = Input((12, 3), name="x")
    return M.Model(x, L.SeparableConv1D(4, 3)(x)), [some(2, 12, 3)]


@model
def conv3d():
    x = Input((5, 6, 6, 2), name="x")
    y = L.Conv3D(3, 2, activation="relu")(x)
    y = L.ZeroPadding3D(1)(y)
    y = L.MaxPooling3D(2)(y)
    y = L.UpSampling3D(2)(y)
    y = L.Cropping3D(1)(y)
    y = L.AveragePooling3D(2)(y)
    return M.Model(x, L.GlobalAveragePooling3D()(y)), [some(2, 5, 6, 6, 2)]


@model
def conv3d_transpose():
    x = Input((3, 3, 3, 2), name="x")
    return M.Model(x, L.Conv3DTranspose(2, 2, strides=2)(x)), [some(2, 3, 3, 3, 2)]


@model
def locally_connected():
    x, z = Input((7, 6, 2), name="x"), Input((7, 3), name="z")
    y = L.LocallyConnected2D(3, (3, 2), strides=(2, 1), activation="tanh")(x)
    w = L.LocallyConnected1D(4, 3, use_bias=False)(z)
    return M.Model([x, z], [y, w]), [some(2, 7, 6, 2), some(2, 7, 3)]


@model
def locally_connected_2():
    x, z = Input((7, 6, 2), name="x"), Input((7, 3), name="z")
    y = L.LocallyConnected2D(3, (3, 2), strides=(2, 1), padding="same", implementation=2)(x)
    w = L.LocallyConnected1D(4, 3, use_bias=False, padding="same", implementation=2)(z)
    v = L.LocallyConnected1D(4, 3, implementation=1)(z)
    return M.Model([x, z], [y, w, v]), [some(2, 7, 6, 2), some(2, 7, 3)]


@model
def locally_connected_3():
    x, z = Input((7, 6, 2), name="x"), Input((7, 3), name="z")
    y = L.LocallyConnected2D(3, (3, 2), strides=(2, 1), implementation=3)(x)
    w = L.LocallyConnected1D(4, 3, use_bias=False, padding="same", implementation=3)(z)
    return M.Model([x, z], [y, w]), [some(2, 7, 6, 2), some(2, 7, 3)]


@model
def residual_network():
    x = Input((8, 8, 3), name="x")
    y = L.Conv2D(4, 3, padding="same", name="stem")(x)
    for i in range(3):
        z = L.BatchNormalization(name="bn%d" % i)(y)
        z = L.Activation("relu", name="relu%d" % i)(z)
        z = L.Conv2D(4, 3, padding="same", kernel_initializer="he_normal", name="c%d" % i)(z)
        y = L.add([y, z], name="add%d" % i)
    y = L.GlobalAveragePooling2D(name="pool")(y)
    m = M.Model(x, L.Dense(3, activation="softmax", name="fc")(y), name="resnet")
    m.compile("nadam", "categorical_crossentropy", metrics=["categorical_accuracy"])
    return m, [some(2, 8, 8, 3)]


@model
def unet():
    x = Input((16, 16, 1))
    a = L.Conv2D(3, 3, activation="relu", padding="same")(x)
    b = L.Conv2D(4, 3, activation="relu", padding="same")(L.MaxPooling2D()(a))
    c = L.Conv2D(5, 3, activation="relu", padding="same")(L.MaxPooling2D()(b))
    d = L.concatenate([L.UpSampling2D()(c), b], axis=3)
    d = L.Conv2D(4, 2, activation="relu", padding="same")(d)
    e = L.concatenate([L.Conv2DTranspose(3, 2, strides=2)(d), a], axis=3)
    m = M.Model(inputs=x, outputs=L.Conv2D(1, 1, activation="sigmoid")(e))
    m.compile("adam", "binary_crossentropy")
    return m, [some(2, 16, 16, 1)]


@model
def normalizations():
    x = Input((4, 5, 3), name="x")
    y = L.BatchNormalization(axis=1)(x)
    z = L.BatchNormalization(center=False, epsilon=0.1)(x)
    w = L.BatchNormalization(scale=False, center=False)(x)
    return M.Model(x, [y, z, w]), [some(2, 4, 5, 3)]


# -- sequences -------------------------------------------------------------------------------------


@model
def recurrent():
    x = Input((5, 3), name="x")
    y = [L.LSTM(4)(x), L.GRU(4)(x), L.SimpleRNN(4)(x),
         L.LSTM(4, implementation=2, go_backwards=True, return_sequences=True)(x),
         L.LSTM(4, unroll=True, activation="relu", recurrent_activation="sigmoid")(x),
         L.GRU(4, use_bias=False, recurrent_dropout=0.2, dropout=0.1)(x),
         L.LSTM(4, unit_forget_bias=False, use_bias=False)(x)]
    return M.Model(x, y), [some(2, 5, 3)]


@model
def gru_after():
    x = Input((5, 3), name="x")
    y = [L.GRU(4, reset_after=True)(x), L.GRU(4, reset_after=False)(x),
         L.GRU(4, reset_after=True, recurrent_activation="sigmoid", return_sequences=True)(x)]
    return M.Model(x, y), [some(2, 5, 3)]


@model
def bidirectional():
    x = Input((5, 3), name="x")
    y = [L.Bidirectional(L.LSTM(4, return_sequences=True), merge_mode=mode)(x)
         for mode in ("concat", "sum", "mul", "ave")]
    both = L.Bidirectional(L.GRU(3), merge_mode=None)(x)
    return M.Model(x, y + list(both)), [some(2, 5, 3)]


@model
def text():
    m = M.Sequential()
    m.add(L.Embedding(20, 6, input_length=7, mask_zero=True))
    m.add(L.Bidirectional(L.LSTM(4, return_sequences=True, dropout=0.2)))
    m.add(L.LSTM(3, return_sequences=True))
    m.add(L.GRU(3))
    m.add(L.Dense(1, activation="hard_sigmoid"))
    m.compile(keras.optimizers.Adagrad(), "binary_crossentropy", ["acc"])
    x = ids(20, 4, 7)
    x[:, 5:] = 0
    x[0, 2] = 0
    return m, [x]


@model
def tagger():
    x = Input((None,), dtype="int32", name="words")
    y = L.Embedding(20, 6, mask_zero=True)(x)
    y = L.SpatialDropout1D(0.1)(y)
    y = L.Bidirectional(L.LSTM(4, return_sequences=True))(y)
    y = L.TimeDistributed(L.Dense(3, activation="softmax"))(y)
    v = ids(20, 3, 6).astype("int32")
    v[1, 4:] = 0
    return M.Model(x, y), [v]


@model
def kim_cnn():
    x = Input((9,), name="x")
    e = L.Embedding(20, 5, name="words")(x)
    ends = [L.GlobalMaxPooling1D()(L.Conv1D(3, k, activation="relu")(e)) for k in (2, 3, 4)]
    return M.Model(x, L.Dense(2, activation="softmax")(L.concatenate(ends))), [ids(20, 3, 9)]


@model
def masked():
    x = Input((5, 3), name="x")
    y = L.Masking(0.0)(x)
    y = L.TimeDistributed(L.Dense(4))(y)
    y = L.LSTM(4, return_sequences=True)(y)
    v = some(3, 5, 3)
    v[:, 3:] = 0
    return M.Model(x, [y, L.LSTM(2)(y)]), [v]


@model
def time_distributed():
    inner = M.Sequential([L.Conv2D(3, 2, input_shape=(5, 5, 2)), L.BatchNormalization(),
                          L.Flatten()])
    x = Input((4, 5, 5, 2), name="x")
    y = L.TimeDistributed(inner)(x)
    z = L.TimeDistributed(L.Conv2D(2, 3), name="td")(x)
    z = L.TimeDistributed(L.MaxPooling2D(2))(z)
    z = L.TimeDistributed(L.BatchNormalization())(z)
    return M.Model(x, [L.LSTM(3)(y), L.TimeDistributed(L.Flatten())(z)]), [some(2, 4, 5, 5, 2)]


@model
def time_distributed_model():
    a = Input((3,), name="a")
    inner = M.Model(a, L.Dense(2, activation="tanh")(L.Dense(4)(a)), name="inner")
    x = Input((None, 3), name="x")
    return M.Model(x, L.TimeDistributed(inner, name="each")(x)), [some(2, 4, 3)]


@model
def encoder_decoder():
    x, y = Input((None, 3), name="source"), Input((None, 4), name="target")
    _, h, c = L.LSTM(5, return_state=True, name="encoder")(x)
    z, _, _ = L.LSTM(5, return_sequences=True, return_state=True, name="decoder")(
        y, initial_state=[h, c])
    m = M.Model([x, y], L.Dense(4, activation="softmax", name="out")(z))
    m.compile("rmsprop", "categorical_crossentropy")
    return m, [some(2, 5, 3), some(2, 6, 4)]


@model
def encoder_decoder_gru():
    x, y = Input((None, 3), name="source"), Input((None, 4), name="target")
    _, h = L.GRU(5, return_state=True)(x)
    z = L.GRU(5, return_sequences=True)(y, initial_state=h)
    return M.Model([x, y], z), [some(2, 5, 3), some(2, 6, 4)]


@model
def bidirectional_states():
    x = Input((5, 3), name="x")
    y, fh, fc, bh, bc = L.Bidirectional(L.LSTM(4, return_state=True, return_sequences=True))(x)
    h, c = L.Concatenate()([fh, bh]), L.Concatenate()([fc, bc])
    z = L.LSTM(8)(y, initial_state=[h, c])
    w = L.Bidirectional(L.LSTM(4))(x, initial_state=[fh, fc, bh, bc])
    return M.Model(x, [z, w]), [some(2, 5, 3)]


@model
def stateful():
    m = M.Sequential()
    m.add(L.LSTM(4, stateful=True, return_sequences=True, batch_input_shape=(2, 5, 3)))
    m.add(L.GRU(3, stateful=True))
    return m, [some(2, 5, 3)]


@model
def conv_lstm():
    x = Input((4, 6, 6, 2), name="x")
    y = L.ConvLSTM2D(3, (3, 3), padding="same", return_sequences=True)(x)
    y = L.BatchNormalization()(y)
    return M.Model(x, L.ConvLSTM2D(2, 2, activation="relu")(y)), [some(2, 4, 6, 6, 2)]


@model
def cells():
    x = Input((5, 3), name="x")
    y = L.RNN([L.LSTMCell(4), L.GRUCell(3)], return_sequences=True)(x)
    z = L.RNN(L.SimpleRNNCell(4))(x)
    return M.Model(x, [y, z]), [some(2, 5, 3)]


# -- structures ------------------------------------------------------------------------------------


@model
def siamese():
    a, b = Input((5, 3), name="left"), Input((5, 3), name="right")
    shared = L.LSTM(4, name="shared")
    y, z = shared(a), shared(b)
    d = L.Dense(2, activation="relu")
    m = M.Model([a, b], L.multiply([d(y), d(z)]))
    return m, [some(2, 5, 3), some(2, 5, 3)]


@model
def nested_models():
    a = Input((4,))
    base = M.Model(a, L.BatchNormalization()(L.Dense(5, activation="relu")(a)), name="base")
    head = M.Sequential([L.Dense(3, input_shape=(5,)), L.BatchNormalization()], name="head")
    x, y = Input((4,), name="x"), Input((4,), name="y")
    one, two = base(x), base(y)
    return M.Model([x, y], [head(one), L.Dense(2)(L.concatenate([one, two]))]), [
        some(3, 4), some(3, 4)]


@model
def models_in_a_sequential():
    base = M.Sequential([L.Conv2D(3, 3, input_shape=(6, 6, 2)), L.BatchNormalization()])
    a = Input((4, 4, 3))
    neck = M.Model(a, L.GlobalAveragePooling2D()(L.Conv2D(4, 2)(a)))
    m = M.Sequential([base, neck, L.Dense(2)])
    m.compile("adam", "mse")
    return m, [some(2, 6, 6, 2)]


@model
def fine_tuned():
    base = M.Sequential([L.Conv2D(3, 3, input_shape=(6, 6, 2)), L.BatchNormalization(),
                         L.Conv2D(3, 2), L.BatchNormalization()], name="backbone")
    for part in base.layers[:2]:
        part.trainable = False
    m = M.Sequential([base, L.Flatten(), L.Dense(2)])
    m.layers[2].trainable = False
    m.compile("sgd", "mse")
    return m, [some(2, 6, 6, 2)]


@model
def frozen_backbone():
    a = Input((6, 6, 2))
    y = L.BatchNormalization()(L.Conv2D(3, 3)(a))
    base = M.Model(a, L.GlobalMaxPooling2D()(y))
    base.trainable = False
    x = Input((6, 6, 2))
    m = M.Model(x, L.Dense(2)(base(x)))
    m.compile("sgd", "mse")
    return m, [some(2, 6, 6, 2)]


@model
def models_three_deep():
    a = Input((4,))
    inner = M.Model(a, L.Dense(4, name="d")(a), name="one")
    b = Input((4,))
    middle = M.Model(b, L.BatchNormalization(name="n")(inner(L.Dense(4, name="d")(b))), name="two")
    x = Input((4,), name="x")
    return M.Model(x, L.Dense(4, name="d")(middle(middle(x))), name="three"), [some(3, 4)]


@model
def continued():
    x = Input((4,), name="x")
    base = M.Model(x, L.Dense(5, name="features")(x))
    y = L.Dense(3, name="new")(base.output)
    z = L.Dense(2, name="other")(base.get_layer("features").output)
    return M.Model(inputs=base.input, outputs=[y, z]), [some(3, 4)]


@model
def several_inputs_and_outputs():
    a = Input((7,), dtype="int32", name="main_input")
    y = L.LSTM(5)(L.Embedding(10, 4, input_length=7)(a))
    first = L.Dense(1, activation="sigmoid", name="aux_output")(y)
    b = Input((3,), name="aux_input")
    y = L.concatenate([y, b])
    y = L.Dense(6, activation="relu")(y)
    m = M.Model(inputs=[a, b], outputs=[L.Dense(1, activation="sigmoid", name="main_output")(y),
                                        first])
    m.compile("rmsprop", {"main_output": "binary_crossentropy", "aux_output": "mse"},
              loss_weights={"main_output": 1.0, "aux_output": 0.2})
    return m, [ids(10, 2, 7).astype("int32"), some(2, 3)]


@model
def input_as_output():
    x = Input((4,), name="x")
    return M.Model(x, [x, L.Dense(2)(x)]), [some(3, 4)]


@model
def variational():
    x = Input((6,), name="encoder_input")
    h = L.Dense(4, activation="relu")(x)
    mean, var = L.Dense(2, name="z_mean")(h), L.Dense(2, name="z_log_var")(h)
    encoder = M.Model(x, [mean, var], name="encoder")
    z = Input((2,), name="z_sampling")
    decoder = M.Model(z, L.Dense(6, activation="sigmoid")(L.Dense(4)(z)), name="decoder")
    return M.Model(x, decoder(encoder(x)[0]), name="vae"), [some(3, 6)]


@model
def generative():
    g = M.Sequential()
    g.add(L.Dense(2 * 2 * 4, input_dim=5))
    g.add(L.LeakyReLU(alpha=0.2))
    g.add(L.BatchNormalization(momentum=0.8))
    g.add(L.Reshape((2, 2, 4)))
    g.add(L.Conv2DTranspose(3, 3, strides=2, padding="same"))
    g.add(L.Activation("tanh"))
    z = Input((5,))
    gen = M.Model(z, g(z))
    d = M.Sequential([L.Conv2D(2, 3, input_shape=(4, 4, 3)), L.Flatten(), L.Dense(1)])
    image = Input((4, 4, 3))
    dis = M.Model(image, d(image))
    dis.trainable = False
    v = Input((5,))
    m = M.Model(v, dis(gen(v)))
    m.compile("adam", "binary_crossentropy")
    return m, [some(3, 5)]


@model
def sequential_with_an_input_layer():
    m = M.Sequential()
    m.add(L.InputLayer(input_shape=(4,), name="in"))
    m.add(L.Dense(3))
    m.add(L.Activation("softmax"))
    return m, [some(3, 4)]


@model
def with_lambdas():
    x = Input((4,), name="x")
    y = L.Lambda(doubled, name="twice")(x)
    y = L.Lambda(scaled, arguments={"by": 3.0}, name="scaling")(y)
    y = L.Lambda(spread, output_shape=spread_shape, name="spreading")(y)
    return M.Model(x, L.Dense(2)(y)), [some(3, 4)]


@model
def with_byte_code():
    x = Input((4,), name="x")
    y = L.Lambda(lambda t: t / 2.0, name="halving")(x)
    return M.Model(x, L.Dense(2)(y)), [some(3, 4)]


@model
def with_own_activation():
    x = Input((4,), name="x")
    return M.Model(x, L.Activation(relu6)(L.Dense(3, activation=relu6)(x))), [some(3, 4) * 9]


@model
def with_own_layer():
    m = M.Sequential([Own(3.0, input_shape=(4,), name="mine"), L.Dense(2)])
    return m, [some(3, 4)]


@model
def with_own_loss():
    m = M.Sequential([L.Dense(2, input_shape=(4,))])

    def own_loss(a, b):
        return keras.backend.mean(a - b)

    m.compile("adam", own_loss, metrics=[own_loss])
    return m, [some(3, 4)]


@model
def activation_of_a_layer():
    own = L.LeakyReLU(0.1) if IS_TF else "relu"
    m = M.Sequential([L.Conv2D(3, 2, activation=own, input_shape=(4, 4, 1)), L.Flatten()])
    return m, [some(2, 4, 4, 1)]


@model
def attention_by_hand():
    x = Input((5, 4), name="x")
    h = L.LSTM(4, return_sequences=True)(x)
    a = L.Flatten()(L.Dense(1, activation="tanh")(h))
    a = L.Permute([2, 1])(L.RepeatVector(4)(L.Activation("softmax")(a)))
    return M.Model(x, L.multiply([h, a])), [some(2, 5, 4)]


@model
def wide_and_deep():
    a, b = Input((3,), name="wide"), Input((2,), dtype="int32", name="deep")
    e = L.Flatten()(L.Embedding(9, 3)(b))
    y = L.concatenate([a, L.Dense(4, activation="relu")(e)])
    m = M.Model([a, b], L.Dense(1, activation="sigmoid")(y))
    m.compile(keras.optimizers.Adadelta(), "mse")
    return m, [some(3, 3), ids(9, 3, 2).astype("int32")]


@model
def matrix_factorization():
    a, b = Input((1,), name="user"), Input((1,), name="item")
    u, v = L.Embedding(9, 4)(a), L.Embedding(8, 4)(b)
    y = L.Flatten()(L.dot([u, v], axes=2))
    return M.Model([a, b], L.add([y, L.Flatten()(L.Embedding(9, 1)(a))])), [
        ids(9, 5, 1), ids(8, 5, 1)]


@model
def wavenet():
    x = Input((16, 1), name="x")
    y, skips = L.Conv1D(4, 2, padding="causal")(x), []
    for rate in (1, 2, 4):
        t = L.Conv1D(4, 2, dilation_rate=rate, padding="causal", activation="tanh")(y)
        s = L.Conv1D(4, 2, dilation_rate=rate, padding="causal", activation="sigmoid")(y)
        z = L.Conv1D(4, 1)(L.multiply([t, s]))
        skips.append(z)
        y = L.add([y, z])
    return M.Model(x, L.Conv1D(1, 1)(L.Activation("relu")(L.add(skips)))), [some(2, 16, 1)]


@model
def names_of_scopes():
    x = Input((4,), name="x")
    y = L.Dense(3, name="block1/dense")(x)
    y = L.BatchNormalization(name="block1/norm")(y)
    return M.Model(x, L.Dense(2, name="block2/dense")(y)), [some(3, 4)]


@model
def relu6_network():
    x = Input((8, 8, 3), name="x")
    y = L.ZeroPadding2D(((0, 1), (0, 1)))(x)
    y = L.Conv2D(4, 3, strides=2, use_bias=False, name="conv1")(y)
    y = L.BatchNormalization(name="conv1_bn")(y)
    y = L.Activation(relu6, name="conv1_relu")(y)
    y = L.GlobalAveragePooling2D()(y)
    y = L.Reshape((1, 1, 4))(y)
    y = L.Dropout(1e-3)(y)
    y = L.Conv2D(3, (1, 1), padding="same")(y)
    return M.Model(x, L.Reshape((3,))(L.Activation("softmax")(y))), [some(2, 8, 8, 3)]


# -- what only tf.keras has ------------------------------------------------------------------------


@model
def tensorflow_functions():
    x = Input((4,), name="x")
    y = L.Dense(4)(x)
    y = tf.nn.relu(y) + 1.0
    y = y * x - 0.5
    y = 2.0 / (tf.abs(y) + 1.0)
    z = tf.concat([y, x], axis=-1)
    w = z[:, 1:5:2]
    v = tf.reduce_mean(z, axis=-1, keepdims=True)
    u = tf.reshape(tf.transpose(tf.expand_dims(z, 1), [0, 2, 1]), [-1, 2, 4])
    t = tf.stack([y, x], axis=1)
    s = tf.matmul(t, tf.transpose(t, [0, 2, 1]))
    return M.Model(x, [w, v, u, s, tf.clip_by_value(z, -0.2, 0.3)]), [some(3, 4)]


@model
def more_tensorflow_functions():
    x = Input((6, 3), name="x")
    a, b, c = tf.split(x, 3, axis=1)
    y = tf.maximum(a, b) ** 2.0 - c
    z = tf.cast(y > 0.1, tf.float32) * tf.sigmoid(y)
    w = tf.where(y > 0.0, y, -y)
    v = tf.math.log(tf.exp(y) + 1.0)
    u = tf.squeeze(tf.nn.softmax(x[:, :1], axis=-1), 1)
    t = tf.image.resize(tf.expand_dims(x, -1), [3, 6])
    s = keras.backend.mean(keras.backend.square(x), axis=[1, 2])
    r = tf.gather(x, [0, 2], axis=1)
    q = tf.pad(x, [[0, 0], [1, 1], [0, 0]])
    p = x / tf.norm(x, axis=-1, keepdims=True)
    return M.Model(x, [y, z, w, v, u, t, s, r, q, -x, p]), [some(2, 6, 3)]


@model
def dynamic_shapes():
    x = Input((None, 4), name="x")
    n = tf.shape(x)[0]
    y = tf.reshape(x, [n, -1])
    z = tf.tile(x, [1, 2, 1])
    return M.Model(x, [tf.reduce_sum(y, 1), z]), [some(2, 3, 4)]


@model
def attention():
    q, v = Input((3, 4), name="q"), Input((5, 4), name="v")
    y = L.Attention()([q, v])
    z = L.AdditiveAttention()([q, v])
    w = L.Attention(use_scale=True)([q, v, v])
    return M.Model([q, v], [y, z, w]), [some(2, 3, 4), some(2, 5, 4)]


@model
def causal_attention():
    q = Input((4, 4), name="q")
    y = L.Attention(causal=True)([q, q])
    z = L.AdditiveAttention(causal=True, use_scale=False)([q, q])
    return M.Model(q, [y, z]), [some(2, 4, 4)]


@model
def causal_call():
    q = Input((4, 4), name="q")
    y = L.Attention()([q, q], use_causal_mask=True)
    return M.Model(q, y), [some(2, 4, 4)]


@model
def transformer():
    x = Input((5,), dtype="int32", name="x")
    y = L.Embedding(9, 8)(x) + L.Embedding(5, 8)(tf.range(5))
    z = L.MultiHeadAttention(2, 4)(y, y)
    y = L.LayerNormalization(epsilon=1e-6)(y + z)
    z = L.Dense(8)(L.Dense(16, activation="gelu")(y))
    y = L.LayerNormalization(epsilon=1e-6)(y + L.Dropout(0.1)(z))
    return M.Model(x, L.GlobalAveragePooling1D()(y)), [ids(9, 2, 5).astype("int32")]


@model
def cross_attention():
    q, v = Input((3, 4), name="q"), Input((5, 4), name="v")
    y, s = L.MultiHeadAttention(2, 4, value_dim=3, output_shape=5)(
        q, v, return_attention_scores=True)
    z = L.MultiHeadAttention(2, 4, use_bias=False)(query=q, value=v, key=v)
    return M.Model([q, v], [y, s, z]), [some(2, 3, 4), some(2, 5, 4)]


@model
def newer_layers():
    x = Input((4, 6), name="x")
    y = L.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d")(x)
    z = L.LayerNormalization(axis=[1, 2], scale=False)(x)
    return M.Model(x, [y, z]), [some(2, 4, 6)]


@model
def newest_layers():
    x = Input((4, 6), name="x")
    y = L.GroupNormalization(3)(x)
    z = L.UnitNormalization()(x)
    w = L.Identity()(x)
    return M.Model(x, [y, z, w]), [some(2, 4, 6)]


@model
def layer_normalization():
    x = Input((4, 6), name="x")
    return M.Model(x, [L.LayerNormalization()(x), L.LayerNormalization(axis=1)(x)]), [
        some(2, 4, 6)]


@model
def preprocessing():
    P = L if hasattr(L, "Rescaling") else L.experimental.preprocessing
    x = Input((8, 8, 3), name="x")
    n = P.Normalization(axis=-1)
    n.adapt(some(20, 8, 8, 3))
    y = P.Rescaling(1.0 / 127.5, offset=-1)(x)
    y = P.RandomFlip("horizontal")(y)
    y = P.RandomRotation(0.1)(y)
    y = P.RandomZoom(0.1)(y)
    y = P.Resizing(6, 6)(y)
    y = P.CenterCrop(4, 4)(y)
    return M.Model(x, [y, n(x)]), [some(2, 8, 8, 3)]


@model
def integers():
    P = L if hasattr(L, "Rescaling") else L.experimental.preprocessing
    x = Input((2,), dtype="int64", name="x")
    f = Input((2,), name="f")
    ends = []
    try:
        ends.append(P.IntegerLookup(vocabulary=[3, 5, 7])(x))
    except Exception:
        traceback.print_exc()
    try:
        ends.append(P.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])(f))
    except Exception:
        ends.append(P.Discretization([-0.5, 0.0, 0.5])(f))
    try:
        ends.append(P.CategoryEncoding(num_tokens=9, output_mode="multi_hot")(x))
    except Exception:
        ends.append(P.CategoryEncoding(max_tokens=9, output_mode="binary")(x))
    try:
        ends.append(P.Hashing(num_bins=5)(x))
    except Exception:
        traceback.print_exc()
    return M.Model([x, f], ends), [ids(9, 3, 2).astype("int64"), some(3, 2)]


@model
def strings():
    P = L if hasattr(L, "Rescaling") else L.experimental.preprocessing
    x = Input((1,), dtype="string", name="x")
    y = P.StringLookup(vocabulary=["a", "b", "c"])(x)
    z = P.TextVectorization(output_sequence_length=3, vocabulary=["a", "b", "c"])(x)
    return M.Model(x, [y, z, L.Embedding(5, 2)(z)]), [np.array([["a"], ["B b"], ["zz c"]], object)]


@model
def built_by_call():
    m = M.Sequential([L.Dense(3, activation="relu"), L.Dense(2)])
    m(tf.constant(some(2, 4)))
    return m, [some(3, 4)]


@model
def built_by_build():
    m = M.Sequential([L.LSTM(3, return_sequences=True), L.Dense(2)])
    m.build((None, 5, 4))
    return m, [some(3, 5, 4)]


@model
def dict_of_inputs():
    a, b = Input((3,), name="a"), Input((3,), name="b")
    y = L.Dense(2, name="y")(L.add([a, b]))
    return M.Model({"first": a, "second": b}, {"result": y, "sum": L.Dense(1, name="s")(y)}), {
        "first": some(2, 3), "second": some(2, 3)}


@model
def mixed_precision():
    from tensorflow.keras import mixed_precision as mp

    mp.set_global_policy("mixed_float16")
    try:
        x = Input((4,), name="x")
        y = L.Dense(5, activation="relu")(x)
        return M.Model(x, L.Dense(2, dtype="float32")(y)), [some(3, 4)]
    finally:
        mp.set_global_policy("float32")


@model
def float64():
    x = Input((4,), dtype="float64", name="x")
    return M.Model(x, L.Dense(2, dtype="float64")(x)), [some(3, 4).astype("float64")]


@model
def grouped_convolution():
    x = Input((6, 6, 4), name="x")
    y = L.Conv2D(6, 3, groups=2)(x)
    return M.Model(x, L.Conv1D(4, 1, groups=2)(L.Reshape((16, 6))(y))), [some(2, 6, 6, 4)]


@model
def conv_1d_transpose():
    x = Input((6, 4), name="x")
    return M.Model(x, L.Conv1DTranspose(3, 3, strides=2, padding="same")(x)), [some(2, 6, 4)]


@model
def squeeze_and_excite():
    x = Input((6, 6, 4), name="x")
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Conv2D(2, 1, activation="swish")(y)
    y = L.Conv2D(4, 1, activation="sigmoid")(y)
    return M.Model(x, x * y), [some(2, 6, 6, 4)]


@model
def hard_swish():
    x = Input((6, 6, 4), name="x")
    y = L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
    return M.Model(x, L.Multiply()([x, y])), [some(2, 6, 6, 4) * 4]


@model
def sync_batch_normalization():
    x = Input((4,), name="x")
    return M.Model(x, L.experimental.SyncBatchNormalization()(x)), [some(3, 4)]


@model
def renorm():
    x = Input((4,), name="x")
    return M.Model(x, L.BatchNormalization(renorm=True, virtual_batch_size=None)(x)), [some(3, 4)]


@model
def cudnn_layers():
    V = L if hasattr(L, "CuDNNLSTM") else tf.compat.v1.keras.layers
    x = Input((5, 3), name="x")
    y = L.Bidirectional(V.CuDNNLSTM(4, return_sequences=True))(x)
    return M.Model(x, V.CuDNNGRU(3)(y)), None


@model
def feature_concatenation():
    x = Input((4,), name="x")
    m = M.Model(x, tf.keras.layers.Concatenate()([x, L.Dense(2)(x)]))
    return m, [some(3, 4)]


@model
def ragged_and_sparse():
    x = Input((6,), sparse=True, name="x")
    return M.Model(x, L.Dense(2)(x)), None


# -- writing ---------------------------------------------------------------------------------------


def shake(m):
    values = []
    for value in m.get_weights():
        if value.dtype.kind == "f" and value.ndim and np.ptp(value) == 0:
            value = value + RANDOM.uniform(0.05, 0.3, value.shape).astype(value.dtype)
        values.append(value)
    m.set_weights(values)


def version():
    own = getattr(keras, "__version__", "")
    return "%s-%s" % ("tf.keras" if IS_TF else "keras", own.replace("-tf", ""))


def main(folder, names):
    os.makedirs(folder, exist_ok=True)
    left_out = {}
    for name, build in BUILDERS.items():
        if names and name not in names:
            continue
        try:
            keras.backend.clear_session()
            RANDOM.seed(abs(hash_of(name)))
            m, given = build()
            if name not in ("strings", "integers", "preprocessing"):
                shake(m)
            path = os.path.join(folder, name + ".h5")
            arrays = {}
            if given is not None:
                batch = len(next(iter(given.values())) if isinstance(given, dict) else given[0])
                feed = given if isinstance(given, dict) or len(given) > 1 else given[0]
                found = m.predict(feed, batch_size=batch)
                if isinstance(found, dict):
                    found = [found[key] for key in sorted(found)]
                found = found if isinstance(found, list) else [found]
                pairs = given.items() if isinstance(given, dict) else zip(m.input_names, given)
                arrays = {
                    "x:" + key: value.astype("S") if value.dtype == object else value
                    for key, value in pairs
                }
                arrays.update(("y:%03d" % i, value) for i, value in enumerate(found))
            if "stateful" in name:
                m.reset_states()
            m.save(path)
            if IS_TF and tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 12):
                m.save(path[:-3] + ".keras")
            np.savez(os.path.join(folder, name + ".npz"), **arrays)
        except Exception as error:
            left_out[name] = "%s: %s" % (type(error).__name__, str(error)[:200])
    with open(os.path.join(folder, "left_out.json"), "w") as file:
        json.dump(left_out, file, indent=1, sort_keys=True)
    print(version(), len(BUILDERS) - len(left_out), "written;", json.dumps(left_out, indent=1))


def hash_of(name):
    import zlib

    return zlib.crc32(name.encode()) % (1 << 30)


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[3:])
