"""Whole architectures in small: what people build with Keras and put into production.

In: nothing. Out: builders in the zoo. The invariant: written with Keras layers alone; a few hundred
parameters each, and every part that its large sister has.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from .kinds import floats, integers, kind, texts

# -- text -----------------------------------------------------------------------------------------


class TokenAndPosition(layers.Layer):
    """Embeds tokens and their places, and gives the mask of what is padding."""

    def __init__(self, vocabulary: int, length: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(vocabulary, width, name="tokens")
        self.positions = layers.Embedding(length, width, name="positions")

    def call(self, ids: Any) -> Any:
        return self.tokens(ids) + self.positions(ops.arange(ops.shape(ids)[1]))

    def logits(self, x: Any) -> Any:
        """The way back from vectors to tokens, by the same table."""
        return ops.matmul(x, ops.transpose(self.tokens.embeddings))


class TransformerBlock(layers.Layer):
    """Attention and a feed-forward part, both with a way around."""

    def __init__(self, width: int, heads: int, causal: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.causal = causal
        self.attention = layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.hidden, self.out = layers.Dense(2 * width, "gelu"), layers.Dense(width)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.dropout = layers.Dropout(0.1)

    def call(self, x: Any, padding_mask: Any = None, training: bool = False) -> Any:
        mask = None if padding_mask is None else ops.cast(padding_mask, "bool")[:, None, :]
        h = self.norms[0](x)
        h = self.attention(
            h, h, attention_mask=mask, use_causal_mask=self.causal, training=training
        )
        x = x + self.dropout(h, training=training)
        return x + self.out(self.hidden(self.norms[1](x)))


def _tokens() -> tuple[Any, ...]:
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], "int32")
    return ({"token_ids": integers(11, 2, 5), "padding_mask": mask},)


def _token_inputs() -> dict[str, Any]:
    return {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }


@kind(
    "padding_mask: int32[?, ?], token_ids: int32[?, ?] "
    "-> pooled_output: float32[?, 8], sequence_output: float32[?, ?, 8]",
    _tokens,
)
def transformer_backbone() -> Any:
    inputs = _token_inputs()
    x = TokenAndPosition(11, 16, 8, name="embedding")(inputs["token_ids"])
    for index in range(2):
        x = TransformerBlock(8, 2, name=f"block_{index}")(x, inputs["padding_mask"])
    pooled = layers.Dense(8, "tanh", name="pooler")(x[:, 0])
    return keras.Model(inputs, {"sequence_output": x, "pooled_output": pooled})


class LanguageModel(keras.Model):
    """Predicts the next token; the table of the tokens is used in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = TokenAndPosition(11, 16, 8)
        self.blocks = [TransformerBlock(8, 2, causal=True) for _ in range(2)]
        self.norm = layers.LayerNormalization()

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.embedding(inputs["token_ids"])
        for block in self.blocks:
            x = block(x, inputs["padding_mask"], training=training)
        return {"logits": self.embedding.logits(self.norm(x))}


@kind(
    "padding_mask: int32[?, 5], token_ids: int32[?, 5] -> logits: float32[?, 5, 11]",
    _tokens,
    called=True,
)
def causal_language_model() -> Any:
    return LanguageModel()


@kind(
    "source: int32[?, ?], target: int32[?, ?] -> translated: float32[?, ?, 9]",
    lambda: ({"source": integers(7, 2, 6), "target": integers(9, 2, 4)},),
    since="3.5",
)
def seq2seq_with_attention() -> Any:
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    encoder = layers.LSTM(6, return_sequences=True, return_state=True, name="encoder")
    encoded, *state = encoder(layers.Embedding(7, 4, mask_zero=True)(source))
    decoder = layers.LSTM(6, return_sequences=True, name="decoder")
    decoded = decoder(layers.Embedding(9, 4, mask_zero=True)(target), initial_state=state)
    context = layers.AdditiveAttention()([decoded, encoded])
    both = layers.Concatenate()([decoded, context])
    translated = layers.Dense(9, "softmax", name="translated")(both)
    return keras.Model({"source": source, "target": target}, translated)


# -- pictures -------------------------------------------------------------------------------------


class Wavelengths(layers.Layer):
    """Turns a step of time into sines and cosines."""

    def call(self, time: Any) -> Any:
        angles = time[:, None] * ops.exp(-ops.arange(4, dtype="float32"))
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


def _residual(x: Any, condition: Any, width: int) -> Any:
    h = layers.Conv2D(width, 3, padding="same")(ops.silu(layers.GroupNormalization(2)(x)))
    h = h + layers.Dense(width)(condition)[:, None, None, :]
    h = layers.Conv2D(width, 3, padding="same")(ops.silu(layers.GroupNormalization(2)(h)))
    return h + layers.Conv2D(width, 1)(x)


@kind(
    "label: int32[?], noisy: float32[?, 8, 8, 3], time: float32[?] -> noise: float32[?, 8, 8, 3]",
    lambda: (
        {
            "noisy": floats(2, 8, 8, 3),
            "time": np.array([3.0, 70.0], "float32"),
            "label": integers(5, 2),
        },
    ),
)
def diffusion_unet() -> Any:
    noisy, time = keras.Input((8, 8, 3), name="noisy"), keras.Input((), name="time")
    label = keras.Input((), dtype="int32", name="label")
    condition = layers.Dense(8, "silu")(Wavelengths()(time)) + layers.Embedding(5, 8)(label)
    wide = _residual(layers.Conv2D(4, 3, padding="same")(noisy), condition, 4)
    low = _residual(layers.Conv2D(8, 3, strides=2, padding="same")(wide), condition, 8)
    flat = layers.Reshape((16, 8))(layers.GroupNormalization(2)(low))
    attended = layers.Reshape((4, 4, 8))(layers.MultiHeadAttention(2, 4)(flat, flat))
    low = _residual(low + attended, condition, 8)
    up = layers.Concatenate()([layers.UpSampling2D()(low), wide])
    noise = layers.Conv2D(3, 3, padding="same", name="noise")(_residual(up, condition, 4))
    return keras.Model({"noisy": noisy, "time": time, "label": label}, noise)


class Patches(layers.Layer):
    """Cuts a picture into patches, puts a learned token before them, and says where each is."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.projection = layers.Conv2D(width, 4, strides=4)
        self.width = width

    def build(self, input_shape: Any) -> None:
        self.projection.build(input_shape)
        count = (input_shape[1] // 4) * (input_shape[2] // 4)
        self.token = self.add_weight(shape=(1, 1, self.width), name="token")
        self.places = self.add_weight(shape=(1, count + 1, self.width), name="places")

    def call(self, images: Any) -> Any:
        x = self.projection(images)
        x = ops.reshape(x, (ops.shape(x)[0], -1, self.width))
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, self.width))
        return ops.concatenate([token, x], axis=1) + self.places


@kind("image: float32[?, 12, 12, 3] -> classes: float32[?, 5]", lambda: (floats(2, 12, 12, 3),))
def vision_transformer() -> Any:
    image = keras.Input((12, 12, 3), name="image")
    x = Patches(8)(image)
    for _ in range(2):
        x = TransformerBlock(8, 2)(x)
    return keras.Model(image, layers.Dense(5, name="classes")(x[:, 0]))


@kind(
    "image: float32[?, 16, 16, 3] -> boxes: float32[?, 80, 4], scores: float32[?, 80, 3]",
    lambda: (floats(2, 16, 16, 3),),
)
def object_detector() -> Any:
    image = keras.Input((16, 16, 3), name="image")
    fine = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    coarse = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(fine)
    fine = layers.Add()([fine, layers.UpSampling2D()(coarse)])
    heads = {"boxes": layers.Conv2D(4, 1), "scores": layers.Conv2D(3, 1, activation="sigmoid")}
    outputs = {
        name: layers.Concatenate(axis=1)(
            [ops.reshape(head(level), (-1, side * side, head.filters)) for level, side in
             ((fine, 8), (coarse, 4))]
        )
        for name, head in heads.items()
    }  # fmt: skip
    return keras.Model(image, outputs)


class Sampling(layers.Layer):
    """Draws a code from a distribution; its mean in inference."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, mean: Any, log_variance: Any, training: bool = False) -> Any:
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        return mean + ops.exp(log_variance / 2) * noise


@kind(
    "image: float32[?, 8, 8, 1] -> decoded: float32[?, 8, 8, 1], code: float32[?, 2]",
    lambda: (floats(2, 8, 8, 1),),
)
def variational_autoencoder() -> Any:
    image = keras.Input((8, 8, 1), name="image")
    h = layers.Flatten()(layers.Conv2D(4, 3, strides=2, padding="same")(image))
    code = Sampling(name="code")(layers.Dense(2)(h), layers.Dense(2)(h))
    code_input = keras.Input((2,))
    h = layers.Reshape((4, 4, 2))(layers.Dense(32, "relu")(code_input))
    h = layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(h)
    decoder = keras.Model(code_input, h, name="decoded")
    return keras.Model(image, [decoder(code), code])


# -- sound and series -----------------------------------------------------------------------------


@kind("wave: float32[?, 32, 1] -> next: float32[?, 32, 8]", lambda: (floats(2, 32, 1),))
def wavenet() -> Any:
    wave = keras.Input((32, 1), name="wave")
    x, skips = layers.Conv1D(4, 2, padding="causal")(wave), []
    for dilation in (1, 2, 4, 8):
        options = {"padding": "causal", "dilation_rate": dilation}
        signal = layers.Conv1D(4, 2, activation="tanh", **options)(x)
        gate = layers.Conv1D(4, 2, activation="sigmoid", **options)(x)
        h = layers.Conv1D(4, 1)(layers.Multiply()([signal, gate]))
        skips.append(h)
        x = layers.Add()([x, h])
    total = layers.Activation("relu")(layers.Add()(skips))
    return keras.Model(wave, layers.Conv1D(8, 1, activation="softmax", name="next")(total))


@kind(
    "readings: float32[2, 6, 3] -> forecast: float32[2, 1], spread: float32[2, 1]",
    lambda: (floats(2, 6, 3),),
    calls=2,
)
def stateful_time_series() -> Any:
    readings = keras.Input(batch_shape=(2, 6, 3), name="readings")
    scaled = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(readings)
    x = layers.LSTM(5, stateful=True, return_sequences=True)(scaled)
    x = layers.GRU(4, stateful=True)(x)
    outputs = [
        layers.Dense(1, name="forecast")(x),
        layers.Dense(1, "softplus", name="spread")(x),
    ]
    return keras.Model(readings, outputs)


@kind("wave: float32[?, 320] -> letters: float32[?, 17, 6]", lambda: (floats(2, 320),))
def speech_recognizer() -> Any:
    wave = keras.Input((320,), name="wave")
    mel = layers.MelSpectrogram(
        fft_length=64, sequence_stride=20, num_mel_bins=8, sampling_rate=800, max_freq=400
    )(wave)
    x = layers.Permute((2, 1))(mel)
    x = layers.BatchNormalization()(layers.Conv1D(6, 3, padding="same", activation="relu")(x))
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    return keras.Model(wave, layers.Dense(6, "softmax", name="letters")(x))


# -- graphs, sets and tables ----------------------------------------------------------------------


class GraphConvolution(layers.Layer):
    """Gives every node the mean of its neighbours' messages."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.message, self.update = layers.Dense(units, "relu"), layers.Dense(units, "relu")

    def call(self, nodes: Any, edges: Any) -> Any:
        count = ops.shape(nodes)[0]
        messages = self.message(ops.take(nodes, edges[:, 0], axis=0))
        total = ops.segment_sum(messages, edges[:, 1], num_segments=count)
        degree = ops.segment_sum(ops.ones_like(messages), edges[:, 1], num_segments=count)
        return self.update(ops.concatenate([nodes, total / ops.maximum(degree, 1.0)], axis=-1))


class GraphNetwork(keras.Model):
    """Classifies the nodes of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = [GraphConvolution(5), GraphConvolution(4)]
        self.head = layers.Dense(2)

    def call(self, nodes: Any, edges: Any) -> Any:
        for convolution in self.convolutions:
            nodes = convolution(nodes, edges)
        return {"classes": self.head(nodes), "graph": ops.mean(nodes, axis=0)}


@kind(
    "nodes: float32[?, 3], edges: int32[?, 2] -> classes: float32[?, 2], graph: float32[4]",
    lambda: (floats(5, 3), integers(5, 8, 2)),
    called=True,
)
def graph_network() -> Any:
    return GraphNetwork()


@kind("points: float32[?, ?, 3] -> classes: float32[?, 4]", lambda: (floats(2, 9, 3),))
def point_cloud() -> Any:
    points = keras.Input((None, 3), name="points")
    x = layers.BatchNormalization()(layers.Conv1D(6, 1, activation="relu")(points))
    turn = layers.Reshape((3, 3))(layers.Dense(9)(layers.GlobalMaxPooling1D()(x)))
    x = layers.Conv1D(8, 1, activation="relu")(layers.Dot(axes=(2, 1))([points, turn]))
    return keras.Model(points, layers.Dense(4, name="classes")(layers.GlobalMaxPooling1D()(x)))


def _tower(names: list[str], width: int) -> keras.Sequential:
    lookup = layers.StringLookup(vocabulary=names)
    return keras.Sequential(
        [
            lookup,
            layers.Embedding(lookup.vocabulary_size(), width),
            layers.Flatten(),
            layers.Dense(width),
        ]
    )


@kind(
    "title: string[?, 1], user: string[?, 1] -> score: float32[?, 1]",
    lambda: ({"user": texts(["ann"], ["zoe"]), "title": texts(["up"], ["alien"])},),
)
def two_tower_recommender() -> Any:
    user, title = (keras.Input((1,), dtype="string", name=name) for name in ("user", "title"))
    left = _tower(["ann", "bob"], 4)(user)
    right = _tower(["alien", "up", "heat"], 4)(title)
    score = layers.Dot(axes=1, normalize=True, name="score")([left, right])
    return keras.Model({"user": user, "title": title}, score)


class Retrieval(keras.Model):
    """Finds the best of all titles for a user, and gives their names."""

    def __init__(self) -> None:
        super().__init__()
        titles = ["alien", "up", "heat", "ran"]
        self.tower = _tower(["ann", "bob"], 4)
        self.names = layers.StringLookup(vocabulary=titles, num_oov_indices=0, invert=True)
        self.candidates = layers.Embedding(len(titles), 4)
        self.candidates.build(())

    def call(self, user: Any) -> Any:
        scores = ops.matmul(self.tower(user), ops.transpose(self.candidates.embeddings))
        best, indices = ops.top_k(scores, 2)
        return {"score": best, "title": self.names(indices)}


@kind(
    "user: string[?, 1] -> score: float32[?, 2], title: string[?, 2]",
    lambda: (texts(["ann"], ["zoe"], ["bob"]),),
    called=True,
)
def retrieval_index() -> Any:
    return Retrieval()


@kind(
    "item: int64[?, 1], price: float32[?, 2], shop: string[?, 1] -> click: float32[?, 1]",
    lambda: (
        {
            "item": np.array([[7], [8]], "int64"),
            "price": floats(2, 2),
            "shop": texts(["north"], ["east"]),
        },
    ),
)
def wide_and_deep() -> Any:
    item = keras.Input((1,), dtype="int64", name="item")
    shop = keras.Input((1,), dtype="string", name="shop")
    price = keras.Input((2,), name="price")
    items = layers.IntegerLookup(vocabulary=[7, 9], output_mode="one_hot")(item)
    shops = layers.Flatten()(layers.Embedding(13, 3)(layers.Hashing(13)(shop)))
    deep = layers.Dense(5, "relu")(layers.Concatenate()([items, shops, price]))
    both = layers.Add()([layers.Dense(1)(items), layers.Dense(1)(deep)])
    click = layers.Activation("sigmoid", name="click")(both)
    return keras.Model({"item": item, "shop": shop, "price": price}, click)


class Experts(layers.Layer):
    """Sends each row to its two best experts."""

    def __init__(self, count: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate, self.experts = layers.Dense(count), [layers.Dense(units) for _ in range(count)]

    def call(self, x: Any) -> Any:
        weights, chosen = ops.top_k(ops.softmax(self.gate(x)), 2)
        answers = ops.stack([expert(x) for expert in self.experts], axis=1)
        picked = ops.take_along_axis(answers, chosen[:, :, None], axis=1)
        return ops.sum(picked * weights[:, :, None], axis=1)


@kind("x: float32[?, 4] -> y: float32[?, 3]", lambda: (floats(5, 4),))
def mixture_of_experts() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, Experts(4, 3, name="y")(x))


@kind(
    "anchor: float32[?, 6], other: float32[?, 6] -> distance: float32[?, 1]",
    lambda: ([floats(3, 6), floats(3, 6) ** 2],),
)
def siamese() -> Any:
    anchor, other = keras.Input((6,), name="anchor"), keras.Input((6,), name="other")
    tower = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(3)], name="tower")
    gap = layers.Subtract()([tower(anchor), tower(other)])
    distance = ops.sqrt(ops.sum(ops.square(gap), axis=1, keepdims=True))
    return keras.Model([anchor, other], layers.Identity(name="distance")(distance))
