"""Attention inputs that defeat an approximation which trusts a model of its keys.

Each generator takes (seed, keys, dim, value_dim) and options of its own, and returns (query, key, value): float32 arrays of
shapes (1, keys, dim), (1, keys, dim) and (1, keys, value_dim). Equal arguments give equal arrays. `CASES` names some of them
for tests and benchmarks; `hostile` draws others for Hypothesis.
"""

from dataclasses import dataclass
from functools import partial
from inspect import signature

import numpy as np

#: Components that carry a constant, in `offset`, `rotary` and `with_offset`.
OFFSET_COMPONENTS = 4


def clustered(seed=0, keys=8192, dim=64, value_dim=64, *, topics=40, run=64, noise=0.7, drift=0.0, values="random"):
    """Topics recur in runs, and keys carry no position.

    Encoders, layers without rotary embedding, and vectors stored for retrieval. With drift: long documents, logs and streams.
    Values alike: heads that count or gate, and heads whose values depend on nothing but the topic.

    Parameters
    ----------
    topics, run : int
        Different topics, and successive keys on one of them.
    noise : float
        Standard deviation about the topic's centre, whose own components have 1.5.
    drift : float
        Right angles by which the centres turn from the first position to the last.
    values : {"random", "topic", "ones"}
        Independent; the same for all keys of a topic; 1 everywhere.
    """
    random = np.random.default_rng(seed)
    centre = 1.5 * random.standard_normal((topics, dim))
    topic = _runs(random, topics, run, keys)
    query_noise, key_noise = (noise * random.standard_normal((keys, dim)) for _ in range(2))
    value = random.standard_normal((keys, value_dim))
    at = centre[topic]
    if drift:
        angle = drift * np.pi / 2 * np.arange(keys)[:, None] / keys
        at = np.cos(angle) * at + np.sin(angle) * 1.5 * random.standard_normal((topics, dim))[topic]
    if values == "topic":
        value = random.standard_normal((topics, value_dim))[topic]
    elif values == "ones":
        value = np.ones((keys, value_dim))
    return _batch(at + query_noise, at + key_noise, value)


def scaled(seed=0, keys=8192, dim=256, value_dim=64, *, spread=1.0, topics=64):
    """The large components of the keys are those that queries weigh least; scaled scores have standard deviation 3.

    Models with learned norms of queries and keys (Qwen 3, Gemma 3). `spread` is the standard deviation of the components'
    log sizes.
    """
    random = np.random.default_rng(seed)
    size = np.exp(spread * random.standard_normal(dim))
    centre = random.standard_normal((topics, dim))
    runs = random.integers(0, topics, -(-keys // 16))
    topic, asked = runs.repeat(16)[:keys], random.permutation(runs[:, None].repeat(16, axis=1)).reshape(-1)[:keys]
    key = centre[topic] + random.standard_normal((keys, dim))
    query = centre[asked] + random.standard_normal((keys, dim))
    value = random.standard_normal((topics, value_dim))[topic] + 0.7 * random.standard_normal((keys, value_dim))
    query *= 3 * np.sqrt(dim) / (query @ key[:512].T).std()
    return _batch(query / size, key * size, value)


def offset(seed=0, keys=8192, dim=64, value_dim=64, *, size=300.0):
    """A few components hold the same large number in all keys, which softmax does not notice.

    Models with biases on keys (Qwen 2 and 2.5).
    """
    random = np.random.default_rng(seed)
    query, key, value = (random.standard_normal((keys, width)) for width in (dim, dim, value_dim))
    wide = random.choice(dim, OFFSET_COMPONENTS, replace=False)
    key[:, wide] += size * random.choice([-1, 1], OFFSET_COMPONENTS)
    query[:, wide] += 1
    return _batch(query, key, value)


def rotary(seed=0, keys=8192, dim=64, value_dim=64, *, norm=155.0, base=10_000.0, topics=200, run=16):
    """Topics, and a constant of the given norm in all keys, turned by their positions afterwards.

    The same models as `offset`, as a cache sees them: the constant lies in slow pairs of components, and is a different
    vector at each position. Queries are small there, so that the constant moves scores by about 4.
    """
    query, key, value = clustered(seed, keys, dim, value_dim, topics=topics, run=run)
    random = np.random.default_rng((seed, 1))
    pairs = dim // 2
    slow = random.choice(np.arange(pairs - max(pairs // 4, 2), pairs), OFFSET_COMPONENTS // 2, replace=False)
    wide = np.concatenate([slow, slow + pairs])
    constant = random.standard_normal(OFFSET_COMPONENTS)
    key[:, :, wide] += norm * constant / np.linalg.norm(constant)
    query[:, :, wide] = 4 * np.sqrt(dim) / norm * random.standard_normal((keys, OFFSET_COMPONENTS))
    angle = np.arange(keys)[:, None] * base ** (-np.arange(pairs) / pairs)
    return _batch(*(_turned(array[0], np.cos(angle), np.sin(angle)) for array in (query, key)), value[0])


def needle(seed=0, keys=8192, dim=64, value_dim=64, *, asking=0.25):
    """One key of ordinary norm holds half of the mass of some queries, and nothing around it says so.

    Planted facts, passwords, definitions that are used much later. `asking` is the share of rows that look for it; all
    others are diffuse, and the values have a mean, so that they need hardly any key.
    """
    random = np.random.default_rng(seed)
    query, key, value = (random.standard_normal((keys, width)) for width in (dim, dim, value_dim))
    value += random.standard_normal(value_dim)
    place = random.integers(keys // 2)
    key[place] *= np.sqrt(dim) / np.linalg.norm(key[place])
    asks = random.random(keys) < asking
    query[asks] += (np.log(keys) + 0.5) * key[place] / np.sqrt(dim)
    value[place] *= 3
    return _batch(query, key, value)


def few_large(seed=0, keys=8192, dim=64, value_dim=64, *, count=8, size=8.0):
    """A few keys with a norm `size` times that of the others, which draw queries or repel them.

    Massive activations at delimiters and first tokens.
    """
    random = np.random.default_rng(seed)
    query, key, value = (random.standard_normal((keys, width)) for width in (dim, dim, value_dim))
    key[random.choice(keys, count, replace=False)] *= size
    return _batch(query, key, value)


def heavy_tails(seed=0, keys=8192, dim=64, value_dim=64, *, degrees=3.0):
    """Norms of queries and keys have heavy tails: Student's distribution with so many degrees of freedom.

    Embeddings whose norm is a popularity (recommenders, retrieval).
    """
    random = np.random.default_rng(seed)
    query, key, value = (random.standard_normal((keys, width)) for width in (dim, dim, value_dim))
    query, key = (array * np.sqrt(degrees / random.chisquare(degrees, (keys, 1))) for array in (query, key))
    return _batch(query, key, value)


def two_regimes(seed=0, keys=8192, dim=64, value_dim=64, *, topics=100, run=16, diffuse=0.2, change=0.5):
    """Queries are `diffuse` times as large before the share `change` of the sequence as after it.

    A prompt of instructions followed by data, two documents in one context: what holds for early rows does not for late ones.
    """
    query, key, value = clustered(seed, keys, dim, value_dim, topics=topics, run=run)
    query[:, : int(change * keys)] *= np.float32(diffuse)
    return query, key, value


def idle(seed=0, keys=8192, dim=64, value_dim=64, *, topics=100, run=16, change=0.5):
    """Queries ask for nothing before the share `change` of the sequence, though they are as long as those that follow.

    As `two_regimes`, but that no query by itself tells which of the two it belongs to.
    """
    query, key, value = clustered(seed, keys, dim, value_dim, topics=topics, run=run)
    early = query[:, : int(change * keys)]
    other = np.random.default_rng((seed, 1)).standard_normal(early.shape)
    early[:] = other * np.linalg.norm(early, axis=-1, keepdims=True) / np.linalg.norm(other, axis=-1, keepdims=True)
    return query, key, value


def gaussian(seed=0, keys=8192, dim=64, value_dim=64, *, sharpness=1.0):
    """Independent numbers without structure: nothing groups. Scaled scores have standard deviation `sharpness`.

    Untrained models, random projections and benchmarks.
    """
    random = np.random.default_rng(seed)
    query, key, value = (random.standard_normal((keys, width)) for width in (dim, dim, value_dim))
    return _batch(sharpness * query, key, value)


def equal(seed=0, keys=8192, dim=64, value_dim=64):
    """All keys are the same: every cell has spread 0, and every weight is 1 / keys.

    Padding, blank pages, silence, one repeated token without positions.
    """
    random = np.random.default_rng(seed)
    query, value = (random.standard_normal((keys, width)) for width in (dim, value_dim))
    return _batch(query, np.tile(random.standard_normal(dim), (keys, 1)), value)


GENERATORS = {
    generator.__name__: generator
    for generator in (clustered, scaled, offset, rotary, needle, few_large, heavy_tails, two_regimes, gaussian, equal)
}

CASES = {
    "clustered": clustered,
    "clustered, 200 topics in runs of 16": partial(clustered, topics=200, run=16),
    "clustered, drift": partial(clustered, drift=1.0),
    "clustered, values of topics": partial(clustered, values="topic"),
    "clustered, values of ones": partial(clustered, values="ones"),
    "scaled, spread 0": partial(scaled, spread=0.0),
    "scaled, spread 0.5": partial(scaled, spread=0.5),
    "scaled, spread 1": scaled,
    "offset 300": offset,
    "rotary, offset 155": rotary,
    "rotary, offset 925": partial(rotary, norm=925.0),
    "needle": needle,
    "few large keys": few_large,
    "heavy tails": heavy_tails,
    "two regimes": two_regimes,
    "Gaussian": gaussian,
    "Gaussian, sharp": partial(gaussian, sharpness=3.0),
    "equal keys": equal,
}


def has_few_topics(case, keys=8192):
    """Whether a generator of `CASES` has topics, each of 64 keys or more on average."""
    topics = signature(case).parameters.get("topics")
    return topics is not None and topics.default <= keys / 64


# ---- Changes that softmax does not notice ----


def with_spread(arrays, spread, seed=0):
    """Key components multiplied, and query components divided, by numbers whose logs have standard deviation `spread`."""
    query, key, value = arrays
    size = np.exp(spread * np.random.default_rng((seed, 2)).standard_normal(key.shape[-1])).astype(np.float32)
    return query / size, key * size, value


def with_offset(arrays, size, seed=0):
    """A constant of `size`, up or down, in a few components of all keys."""
    query, key, value = arrays
    random = np.random.default_rng((seed, 3))
    constant = np.zeros(key.shape[-1], np.float32)
    wide = random.choice(key.shape[-1], OFFSET_COMPONENTS, replace=False)
    constant[wide] = size * random.choice([-1, 1], OFFSET_COMPONENTS)
    return query, key + constant, value


# ---- Drawn by Hypothesis ----


@dataclass(frozen=True)
class Example:
    """What `hostile` draws: small to print, and its arrays on demand."""

    generator: str
    options: dict
    spread: float
    offset: float
    causal: bool

    def arrays(self):
        """(query, key, value) as of the generators."""
        arrays = GENERATORS[self.generator](**self.options)
        if self.spread:
            arrays = with_spread(arrays, self.spread, self.options["seed"])
        return with_offset(arrays, self.offset, self.options["seed"]) if self.offset else arrays

    @property
    def has_few_topics(self):
        return has_few_topics(partial(GENERATORS[self.generator], **self.options), self.options["keys"])


def hostile(keys=4096):
    """A strategy for `Example`: any generator, width 32 to 256, causal or not."""
    from hypothesis import strategies as st  # only here: benchmarks use the cases without it

    topics = {"topics": st.integers(2, 1024), "run": st.sampled_from([1, 4, 16, 64, 256])}
    drift, values = st.sampled_from([0.0, 0.0, 0.5, 1.0]), st.sampled_from(["random", "topic", "ones"])
    options = {
        "clustered": topics | {"noise": st.floats(0.1, 1.5), "drift": drift, "values": values},
        "scaled": {"spread": st.floats(0, 1.5), "topics": topics["topics"]},
        "offset": {"size": st.floats(1, 500)},
        "rotary": topics | {"norm": st.floats(155, 925)},
        "needle": {"asking": st.floats(0.05, 1)},
        "few_large": {"count": st.integers(1, 64), "size": st.floats(2, 20)},
        "heavy_tails": {"degrees": st.floats(2, 8)},
        "two_regimes": topics | {"diffuse": st.floats(0.05, 1), "change": st.floats(0.1, 0.8)},
        "gaussian": {"sharpness": st.floats(0, 4)},
        "equal": {},
    }
    common = {
        "seed": st.integers(0, 2**31 - 1),
        "keys": st.just(keys),
        "dim": st.integers(32, 256),
        "value_dim": st.sampled_from([32, 64, 128]),
    }
    spread, offset = st.just(0.0) | st.floats(0.1, 1.5), st.just(0.0) | st.floats(1, 300)

    def example(name):
        chosen = st.fixed_dictionaries(common | options[name])
        return st.builds(Example, st.just(name), chosen, spread, offset, causal=st.booleans())

    return st.sampled_from(sorted(options)).flatmap(example)


def _runs(random, topics, run, keys):
    """The topic of each key."""
    return random.integers(0, topics, -(-keys // run)).repeat(run)[:keys]


def _turned(array, cos, sin):
    """Rows (keys, dim) with the pairs (i, i + dim // 2) turned by angles (keys, dim // 2)."""
    pairs = cos.shape[1]
    turned = np.array(array, np.float64)
    first, second = turned[:, :pairs].copy(), turned[:, pairs : 2 * pairs].copy()
    turned[:, :pairs], turned[:, pairs : 2 * pairs] = first * cos - second * sin, first * sin + second * cos
    return turned


def _batch(*arrays):
    return tuple(array[None].astype(np.float32) for array in arrays)
