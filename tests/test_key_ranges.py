"""key_ranges and two-sided windows: each query sees one run of keys, on every path, without an array of queries x keys."""

import numpy as np
import pytest
from helpers import as_four, assert_exact, assert_same_bits, clusters, inputs, near_far, normal
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import _cost_model, reference

HEADS, KEYS, DIM = 4, 300, 12


def random_ranges(seed, batch, queries, keys, empty=0.1):
    """(batch, queries, 2): runs of any length, some of none."""
    generator = np.random.default_rng(seed)
    ranges = np.sort(generator.integers(0, keys + 1, (batch, queries, 2)), axis=-1)
    ranges[generator.random((batch, queries)) < empty, 1] = 0
    ranges[..., 0] = np.minimum(ranges[..., 0], ranges[..., 1])
    return ranges


def documents(sizes, causal=False):
    """(L, 2): of each row its document, up to itself with causal."""
    ends = np.cumsum(sizes)
    first, end = np.repeat(ends - sizes, sizes), np.repeat(ends, sizes)
    return np.stack([first, np.arange(1, ends[-1] + 1) if causal else end], axis=-1)


def as_mask(ranges, keys):
    """The same as bool (B, 1, L, S)."""
    j = np.arange(keys)
    return ((ranges[..., :1] <= j) & (j < ranges[..., 1:]))[:, None]


WINDOWS = st.none() | st.integers(0, 200) | st.tuples(st.integers(-1, 200), st.integers(-1, 200))


# with few queries the row kernels run, with many the panel kernels
@pytest.mark.parametrize("queries", [3, 60])
@given(seed=st.integers(0, 2**32), shared=st.booleans(), causal=st.booleans(), window=WINDOWS,
       sinks=st.integers(0, 150), masked=st.booleans())
def test_equals_the_float64_oracle(isa, queries, seed, shared, causal, window, sinks, masked):
    ranges = random_ranges(seed, 1 if shared else 2, queries, KEYS)
    query, key, value = inputs((2, HEADS, queries, DIM), (2, 2, KEYS, DIM), DIM)
    options = {"key_ranges": ranges, "causal": causal, "window": window, "sinks": sinks}
    if masked:
        options["attn_mask"] = np.random.default_rng(seed).random((queries, KEYS)) < 0.7
    result = icecore.attention(query, key, value, return_lse=True, **options)
    assert_exact(result, query, key, value, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bits", "float64"])
def test_every_dtype_of_inputs(isa, dtype):
    query, key, value = inputs((2, HEADS, 60, 16), (2, 2, KEYS, 16), 16, dtype)
    options = {"key_ranges": random_ranges(1, 2, 60, KEYS), "window": (20, 60), "sinks": 3}
    if dtype == "float64":
        expected = reference.attention(query, key, value, **options)[0]
        np.testing.assert_array_equal(icecore.attention(query, key, value, **options), expected)
        return
    assert_exact(icecore.attention(query, key, value, return_lse=True, **options), query, key, value, **options)


def test_keys_that_are_split_among_tasks(isa):
    query, key, value = inputs((HEADS, 2, DIM), (2, 9000, DIM), DIM)
    for ranges in ([[10, 20], [0, 0]], [[8000, 9000], [100, 8999]]):
        options = {"key_ranges": np.array(ranges), "sinks": 15, "window": 5000}
        assert_exact(icecore.attention(query, key, value, return_lse=True, **options), query, key, value, **options)


@pytest.mark.parametrize("queries", [3, 60])
@given(window=st.integers(0, 310), causal=st.booleans(), sinks=st.integers(0, 4))
def test_a_window_is_the_pair_of_one_less(queries, window, causal, sinks):
    query, key, value = inputs((HEADS, queries, DIM), (2, KEYS, DIM), DIM)
    options = {"causal": causal, "sinks": sinks}
    if window:
        one, other = (icecore.attention(query, key, value, window=w, **options) for w in (window, (window - 1, window - 1)))
        assert_same_bits(one, other)
    every = icecore.attention(query, key, value, causal=causal, window=(-1, -1), sinks=sinks)
    assert_same_bits(every, icecore.attention(query, key, value, causal=causal))


@pytest.mark.parametrize("queries", [5, 300])
def test_ranges_of_all_keys_are_none(isa, queries):
    """Bit for bit, for a range that is shared too; and ranges in place of causality."""
    query, key, value = inputs((2, HEADS, queries, DIM), (2, 2, KEYS, DIM), DIM)
    for causal in (False, True):
        expected = icecore.attention(query, key, value, causal=causal)
        for ranges in ([[0, KEYS]], np.full((2, 1, 2), (0, KEYS))):
            assert_same_bits(icecore.attention(query, key, value, causal=causal, key_ranges=ranges), expected)
    ends = np.arange(KEYS - queries + 1, KEYS + 1)
    assert_same_bits(icecore.attention(query, key, value, key_ranges=np.stack([0 * ends, ends], axis=-1)), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "list", "strided"])
def test_any_integers(dtype):
    query, key, value = inputs((HEADS, 60, DIM), (2, 100, DIM), DIM)
    ranges = random_ranges(3, 1, 60, 100)[0]
    expected = icecore.attention(query, key, value, key_ranges=ranges)
    given = {"list": ranges.tolist(), "strided": np.repeat(ranges, 2, axis=1)[:, ::2]}.get(dtype)
    given = ranges.astype(dtype) if given is None else given
    assert_same_bits(icecore.attention(query, key, value, key_ranges=given), expected)


BAD = {
    "key_ranges\\[1\\] is \\[-1, 3\\]": [[0, 1], [-1, 3]],
    "key_ranges\\[0, 1\\] is \\[2, 10\\]; expected first and end with 0 <= first <= end <= 9": [[[0, 9], [2, 10]]],
    "key_ranges\\[0\\] is \\[5, 4\\]": [[5, 4], [0, 1]],
    "shape \\(3, 2\\); expected one that broadcasts to \\(1, 2, 2\\)": [[0, 1]] * 3,
    "shape \\(2, 3\\)": [[0, 1, 2]] * 2,
    "shape \\(2,\\)": [0, 1],
    "shape \\(1, 1, 2, 2\\)": [[[[0, 1]] * 2]],
    "18446744073709551615": np.array([[0, 2**64 - 1]] * 2, np.uint64),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_ranges_are_refused(message):
    query, key, value = inputs((HEADS, 2, DIM), (2, 9, DIM), DIM)
    with pytest.raises(ValueError, match=message):
        icecore.attention(query, key, value, key_ranges=BAD[message])


def test_other_bad_arguments_are_refused():
    query, key, value = inputs((HEADS, 2, DIM), (2, 9, DIM), DIM)
    with pytest.raises(TypeError, match="key_ranges has dtype float64"):
        icecore.attention(query, key, value, key_ranges=np.zeros((2, 2)))
    with pytest.raises(TypeError, match="key_ranges has dtype bool"):
        icecore.attention(query, key, value, key_ranges=np.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"window\[1\] must be at least -1, got -2"):
        icecore.attention(query, key, value, window=(3, -2))
    with pytest.raises(ValueError, match="window has 3 numbers"):
        icecore.attention(query, key, value, window=(3, 2, 1))
    with pytest.raises(TypeError, match=r"window\[0\] must be an integer"):
        icecore.attention(query, key, value, window=(None, 1))
    with pytest.raises(ValueError, match=r"window=\(1, 1\) with k or tolerance"):
        icecore.attention(query, key, value, k=2, causal=True, window=(1, 1))
    with pytest.raises(ValueError, match="takes no key_ranges"):
        icecore.attention(query, key, value, selector="top_k", key_ranges=[[0, 9]])
    cache = icecore.KVCache(2, DIM)
    cache.append(key, value)
    with pytest.raises(TypeError, match="key_ranges"):
        cache.attend(query, key_ranges=[[0, 9]])


@pytest.mark.parametrize("queries", [3, 60])
def test_hidden_keys_contribute_nothing_whatever_they_hold(isa, queries):
    query, key, value = inputs((HEADS, queries, 16), (2, KEYS, 16), 16)
    ranges = np.full((queries, 2), (40, 200))
    expected = icecore.attention(query, key, value, key_ranges=ranges)
    key[:, :40], value[:, 200:] = np.nan, np.inf
    assert_same_bits(icecore.attention(query, key, value, key_ranges=ranges), expected)
    ranges[0] = 0, 200  # the others do not notice that one row of the tile sees the NaN
    seen = icecore.attention(query, key, value, key_ranges=ranges)
    assert np.isnan(seen[:, 0]).all()
    np.testing.assert_allclose(seen[:, 1:], expected[:, 1:], atol=1e-6)


@given(seed=st.integers(0, 2**32), causal=st.booleans(), side=st.sampled_from(["left", "right"]))
def test_lengths_cut_ranges(seed, causal, side):
    """Ranges count the places of the array, padding included."""
    lengths = np.random.default_rng(seed).integers(0, KEYS + 1, 3)
    query, key, value = inputs((3, HEADS, 60, DIM), (3, 2, KEYS, DIM), DIM)
    ranges = random_ranges(seed, 3, 60, KEYS)
    out = icecore.attention(query, key, value, key_ranges=ranges, lengths=lengths, padding_side=side, causal=causal)
    for b, length in enumerate(lengths):
        own = slice(0, length) if side == "right" else slice(KEYS - length, KEYS)
        count = min(60, length) if causal else 60
        rows = slice(0, count) if side == "right" else slice(60 - count, 60)
        expected = np.zeros((HEADS, 60, DIM))
        if length:
            options = {"attn_mask": as_mask(ranges[b : b + 1], KEYS)[..., rows, own], "causal": causal}
            arrays = (as_four(a) for a in (query[b, :, rows], key[b, :, own], value[b, :, own]))
            expected[:, rows] = reference.attention(*arrays, **options)[0][0]
        np.testing.assert_allclose(out[b], expected, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 20, (5, 40)])
@pytest.mark.parametrize("masked", [False, True])
def test_info_counts_the_keys_that_are_left(causal, window, masked):
    query, key, value = inputs((2, HEADS, 40, DIM), (2, 2, 50, DIM), DIM)
    ranges, options = random_ranges(5, 2, 40, 50), {"causal": causal, "window": window, "sinks": 7}
    mask = np.random.default_rng(0).random((40, 50)) < 0.6 if masked else None
    info = icecore.attention(query, key, value, key_ranges=ranges, attn_mask=mask, return_info=True, **options)[1]
    seen = reference.dense.visible_keys(40, 50, key_ranges=ranges, **options) & (True if mask is None else mask)
    np.testing.assert_array_equal(info.near_keys, np.broadcast_to(seen.sum(axis=-1)[:, None], (2, HEADS, 40)))


# ---- Near/far attention ----

NEAR_FAR_KEYS = 1500
KINDS = {
    "documents": lambda queries, keys: np.broadcast_to(documents([700, 20, 300, 480]), (2, keys, 2))[:, -queries:],
    "windows": lambda queries, keys: np.clip(
        np.arange(keys - queries, keys)[None, :, None] + np.array([[[-400, 380]], [[-90, 700]]]), 0, keys),
    "prefix": lambda queries, keys: np.stack(
        [np.zeros((2, queries), int), np.maximum(np.arange(keys - queries + 1, keys + 1), [[900], [1400]])], axis=-1),
    "any": lambda queries, keys: random_ranges(8, 2, queries, keys),
}


def structured(queries):
    """Keys that are near others of about their place, so that cells lie within ranges or outside, and few are cut."""
    topic = normal(0, 2, 2, NEAR_FAR_KEYS // 50, 16).repeat(50, axis=2)
    key, value = topic + 0.3 * normal(3, *topic.shape), np.roll(topic, 1, axis=-1) + 0.5 * normal(2, *topic.shape)
    return normal(1, 2, HEADS, queries, 16), key, value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("how", [{"k": 60}, {"threshold": 0.03}, {"tolerance": 0.05}], ids=str)
def test_near_far_is_as_with_the_same_mask(isa, kind, causal, how):
    """To rounding: cells that a range hides or cuts are those that the mask hides or cuts, sampled rows included."""
    query, key, value = structured(200)
    ranges = np.ascontiguousarray(KINDS[kind](200, NEAR_FAR_KEYS))
    options = {**how, "causal": causal, "block": 128, "sinks": 5, "cell_size": 8, "prices": (0.1, 0.1), "return_measured": True}
    by_ranges, measured = near_far(query, key, value, key_ranges=ranges, **options)
    by_mask, expected = near_far(query, key, value, attn_mask=as_mask(ranges, NEAR_FAR_KEYS), **options)
    same = by_ranges.near_keys == by_mask.near_keys  # rounding may move a risk across a threshold
    assert same.mean() > 0.99
    np.testing.assert_allclose(by_ranges.out[same], by_mask.out[same], atol=2e-5)
    np.testing.assert_allclose(by_ranges.lse[same], by_mask.lse[same], atol=2e-5)
    np.testing.assert_allclose(by_ranges.captured_mass[same], by_mask.captured_mass[same], atol=2e-5)
    np.testing.assert_array_equal(measured.rows, expected.rows)
    np.testing.assert_allclose(measured.error, expected.error, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_near_far_opens_what_a_range_cuts(kind, causal):
    """All cells opened: exact attention within the ranges."""
    query, key, value = structured(200)
    ranges = np.ascontiguousarray(KINDS[kind](200, NEAR_FAR_KEYS))
    result = near_far(query, key, value, key_ranges=ranges, k=10**6, causal=causal, block=128, sinks=5, cell_size=8)
    assert_exact((result.out, result.lse), query, key, value, key_ranges=ranges, causal=causal)
    seen = reference.dense.visible_keys(200, NEAR_FAR_KEYS, causal, key_ranges=ranges).any(axis=-1)
    np.testing.assert_allclose(result.captured_mass, np.broadcast_to(seen[:, None], (2, HEADS, 200)), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_tolerance_is_kept_within_ranges(causal):
    query, key, value = structured(NEAR_FAR_KEYS)
    ranges = np.ascontiguousarray(KINDS["windows"](NEAR_FAR_KEYS, NEAR_FAR_KEYS))
    result, measured = near_far(query, key, value, key_ranges=ranges, tolerance=0.05, causal=causal, block=128, cell_size=8,
                                prices=(0.01, 0.01), return_measured=True)
    exact = icecore.attention(query, key, value, key_ranges=ranges, causal=causal)
    error = np.linalg.norm(result.out - exact, axis=-1).sum(axis=-1) / np.linalg.norm(exact, axis=-1).sum(axis=-1)
    assert (error < 1.3 * 0.05).all()
    assert error.max() > 1e-4  # something was far
    assert (measured.rows > 0).all()


@pytest.mark.parametrize("options", [{}, {"k": 60}, {"tolerance": 0.05}], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits_for_any_number_of_threads(options, causal):
    query, key, value = structured(400)
    ranges = KINDS["any"](400, NEAR_FAR_KEYS)
    if options:
        options = {**options, "key_ranges": ranges, "block": 128, "causal": causal}
        one, two = (near_far(query, key, value, threads=n, **options) for n in (1, 2))
        assert_same_bits(one.out, two.out)
    else:
        one, two = (icecore.attention(query, key, value, key_ranges=ranges, causal=causal, num_threads=n) for n in (1, 2))
        assert_same_bits(one, two)


def test_the_public_call_takes_the_path_that_pays():
    """Near/far where rows see much; exact where documents are short, whose keys are read by their own rows alone."""
    key = clusters(0, 6000, 32)
    query, value = normal(1, 6000, 32), normal(2, 6000, 32)
    long, short = np.full((6000, 2), (0, 5900)), documents([200] * 30)
    with _cost_model.use(_cost_model.SHIPPED["avx2"]):
        infos = [icecore.attention(query, key, value, k=100, key_ranges=own, return_info=True)[1] for own in (long, short)]
    assert [info.path for info in infos] == ["near_far", "exact"]
    assert infos[0].error < 0.5
    out = icecore.attention(query, key, value, k=100, key_ranges=long, last_exact=50)
    expected = icecore.attention(query[-50:], key, value, key_ranges=long[-50:])
    np.testing.assert_allclose(out[-50:], expected, atol=2e-6)
