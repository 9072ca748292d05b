"""The oracles themselves, against loops that spell out their definitions."""

import math

import numpy as np
import pytest
from helpers import inputs
from hypothesis import given
from hypothesis import strategies as st

from icecore import reference
from icecore.reference.cells import summarize_tree
from icecore.reference.combine import combine
from icecore.reference.dense import visible_count, visible_keys
from icecore.reference.near_far import choose, exact_and_sealed, min_risk, query_moments, sealed_ranges

# ---- Dense ----


def is_visible(queries, keys, i, j, causal, window, sinks):
    position = keys - queries + i
    if causal and j > position:
        return False
    return window is None or abs(position - j) < window or j < sinks


def loop_attention(query, key, value, visible, scale, bias=None):
    """One head: query (L, d), key (S, d), value (S, dv), visible (L, S) bool."""
    out, lse = np.zeros((len(query), value.shape[1])), np.full(len(query), -np.inf)
    for i in range(len(query)):
        total = 0.0
        for j in np.flatnonzero(visible[i]):
            score = scale * sum(a * b for a, b in zip(query[i], key[j], strict=True))
            weight = math.exp(score + (0.0 if bias is None else bias[i, j]))
            total += weight
            out[i] += weight * value[j]
        if total > 0:
            out[i] /= total
            lse[i] = math.log(total)
    return out, lse


small = st.integers(0, 7)


@given(
    small, small, st.booleans(), st.none() | small, small, st.sampled_from([None, 0.0, -0.4]), st.booleans()
)
def test_attention(queries, keys, causal, window, sinks, scale, additive):
    query, key, value = inputs((2, 4, queries, 3), (2, 2, keys, 3), 5, "float64")
    keep = np.random.default_rng(1).random((2, 4, queries, keys)) < 0.8
    bias = np.random.default_rng(2).standard_normal(keep.shape)
    mask = np.where(keep, bias, -np.inf) if additive else keep
    out, lse = reference.attention(
        query, key, value, causal=causal, window=window, sinks=sinks, attn_mask=mask, scale=scale
    )
    for i, j in np.ndindex(queries, keys):
        keep[:, :, i, j] &= is_visible(queries, keys, i, j, causal, window, sinks)
    for b, h in np.ndindex(2, 4):
        rows = query[b, h], key[b, h // 2], value[b, h // 2]
        factor = 1 / math.sqrt(3) if scale is None else scale
        expected = loop_attention(*rows, keep[b, h], factor, bias[b, h] if additive else None)
        np.testing.assert_allclose(out[b, h], expected[0], atol=1e-12)
        np.testing.assert_allclose(lse[b, h], expected[1], atol=1e-12)


@given(small, small, st.booleans(), st.none() | small, small)
def test_visible_keys_and_their_count(queries, keys, causal, window, sinks):
    visible = visible_keys(queries, keys, causal, window, sinks)
    for i, j in np.ndindex(queries, keys):
        assert visible[i, j] == is_visible(queries, keys, i, j, causal, window, sinks)
    np.testing.assert_array_equal(visible_count(queries, keys, causal, window, sinks), visible.sum(axis=1))


def test_chunks_of_queries_are_joined():
    """More scores than one chunk holds."""
    query, key, value = inputs((1, 1, 3000, 2), (1, 1, 3000, 2), 1, "float64")
    out, lse = reference.attention(query, key, value, causal=True)
    for i in (0, 1397, 1398, 2999):
        rows = query[0, 0, i : i + 1], key[0, 0, : i + 1], value[0, 0, : i + 1]
        expected = loop_attention(*rows, np.ones((1, i + 1)), 1 / math.sqrt(2))
        np.testing.assert_allclose(out[0, 0, i], expected[0][0])
        np.testing.assert_allclose(lse[0, 0, i], expected[1][0])


def test_hidden_keys_contribute_nothing_whatever_they_hold():
    query, key, value = inputs((1, 1, 4, 3), (1, 1, 4, 3), 2, "float64")
    expected = reference.attention(query, key, value, causal=True)
    key[:, :, 2:], value[:, :, 2:] = np.nan, np.inf
    actual = reference.attention(query, key, value, causal=True)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a[:, :, :2], e[:, :, :2])
        assert np.isnan(a[:, :, 2:]).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("k", [1, 4, 12, 20])
def test_top_k_attention(k, causal):
    query, key, value = inputs((1, 2, 9, 3), (1, 1, 12, 3), 5, "float64")
    key[:, :, 5] = key[:, :, 2]  # of equal scores the first is kept
    out, lse, near = reference.top_k_attention(query, key, value, k=k, causal=causal)
    kept = np.zeros((2, 9, 12), bool)
    for h, i in np.ndindex(2, 9):
        seen = [j for j in range(12) if is_visible(9, 12, i, j, causal, None, 0)]
        scores = {j: query[0, h, i] @ key[0, 0, j] for j in seen}
        kept[h, i, sorted(scores, key=scores.get, reverse=True)[:k]] = True
    np.testing.assert_array_equal(near[0], kept.sum(axis=-1))
    expected = reference.attention(query, key, value, attn_mask=kept[None])
    np.testing.assert_allclose(out, expected[0], atol=1e-12)
    np.testing.assert_allclose(lse, expected[1], atol=1e-12)


# ---- Near and far ----


@pytest.mark.parametrize(
    ("blocks", "sinks", "expected"),
    [
        (0, 0, []),
        (1, 0, [(0, 10)]),
        (2, 0, [(0, 20)]),
        (3, 0, [(0, 20), (20, 30)]),
        (7, 4, [(4, 40), (40, 60), (60, 70)]),
        (3, 20, [(20, 30)]),
        (3, 25, [(25, 30)]),
        (3, 30, []),
    ],
)
def test_sealed_ranges(blocks, sinks, expected):
    assert sealed_ranges(blocks, 10, sinks) == expected


@pytest.mark.parametrize(
    ("blocks", "sizes"),
    [(6, [1] * 6), (7, [2, 1, 1, 1, 1, 1]), (8, [2, 1, 1, 1, 1, 2]), (11, [2, 2, 2, 2, 2, 1]), (15, [4, 2, 2, 2, 2, 2, 1])],
)
def test_large_pairs_wait(blocks, sizes):
    ends = 2000 * np.cumsum(sizes)
    assert sealed_ranges(blocks, 2000, 0) == list(zip([0, *ends[:-1]], ends, strict=True))


def test_segments_stop_growing_at_the_largest_size():
    largest = 10 * 2**11  # the largest power of two of blocks of 10 within 32768 keys
    assert sealed_ranges(8 * 2**11 + 3, 10, 4) == [
        (4, largest), *((i * largest, (i + 1) * largest) for i in range(1, 8)), (8 * largest, 8 * largest + 20),
        (8 * largest + 20, 8 * largest + 30),
    ]
    assert sealed_ranges(2, 40000, 0) == [(0, 40000), (40000, 80000)]


@given(st.integers(0, 600), st.sampled_from([1, 10, 100, 512, 768, 3000, 40000]))
def test_a_stack_grows_by_its_last_segment_and_at_most_one_pair(blocks, block):
    old, new = sealed_ranges(blocks, block, 0), sealed_ranges(blocks + 1, block, 0)
    assert [first for first, _ in new] == [0, *(end for _, end in new[:-1])]
    assert new[-1][1] == (blocks + 1) * block
    added = [each for each in new if each not in old]
    assert new[-1] in added
    assert len(added) <= 2
    # each is made of old segments and the new block
    assert {first for first, _ in added} <= {first for first, _ in old} | {blocks * block}
    if len(added) == 2:
        assert added[1][1] - added[1][0] == block
    if (blocks + 1) * block >= 8192:
        assert all(end - first <= max(block, (blocks + 1) * block * 2 / 7) for first, end in added)


@given(st.integers(0, 500), st.integers(1, 40), st.integers(0, 60))
def test_exact_and_sealed_keys_are_all_that_is_visible(position, block, sinks):
    exact, ranges = exact_and_sealed(position, position + 5, causal=True, block=block, sinks=sinks)
    sealed = [j for first, end in ranges for j in range(first, end)]
    assert sorted([*exact, *sealed]) == list(range(position + 1))
    # the current block and the one before stay open
    assert set(range(max(position // block - 1, 0) * block, position + 1)) <= set(exact)


def test_least_risk():
    risk, count = np.array([-1.0, 0.4, 0.4, 0.9, -2.0]), np.array([5, 6, 7, 8, 9])
    for wanted, expected in [(1, [3]), (8, [3]), (9, [1, 2, 3]), (21, [1, 2, 3]), (22, [0, 1, 2, 3])]:
        np.testing.assert_array_equal(np.flatnonzero(risk >= min_risk(risk, count, wanted)), expected)
    assert min_risk(risk, count, 35) == -np.inf


def test_a_row_is_the_formula():
    """Two cells, one opened: exact keys and its keys one by one, the other as one key of weight n exp(z)."""
    key, value = np.array([[1.0, 0], [3, 0], [0, 1], [0, 3], [-1, -1]]), np.arange(10.0).reshape(5, 2)
    query, scale = np.array([1.0, 0.2]), 0.5
    trees = [(0, summarize_tree(key, value, [np.array([0, 1]), np.array([2, 3])], [0, 0], np.ones(2)))]
    choice, margin = choose(
        query, key, value, np.zeros(5), trees, np.array([4]), k=1, threshold=None, scale=scale
    )
    out, lse, mass = combine(query, key, value, choice, scale)
    weight = {j: math.exp(scale * query @ key[j]) for j in (0, 1, 4)}
    far = 2 * math.exp(scale * query @ [0, 2])
    total = sum(weight.values()) + far
    expected = (sum(w * value[j] for j, w in weight.items()) + far * (value[2] + value[3]) / 2) / total
    np.testing.assert_allclose(out, expected)
    assert lse == pytest.approx(math.log(total))
    assert len(choice.keys) - 1 == 2
    assert mass == pytest.approx(1 - far / total)
    # both cells have variance 1/2: their risks differ as their masses do
    assert margin == pytest.approx(scale * query @ [2, 0] - scale * query @ [0, 2])


def test_query_moments():
    """Of every eighth position of the sequence, wherever the queries begin; of all where these are fewer than 64 rows."""
    query = np.random.default_rng(0).standard_normal((2, 400, 3))
    query[1, 3, 0] = np.nan  # position 103
    rows = [query[h, i] for i in range(400) for h in range(2) if (100 + i) % 8 == 7 and (h, i) != (1, 3)]
    assert len(rows) == 99
    np.testing.assert_allclose(query_moments(query, 100), np.mean([np.outer(q, q) for q in rows], axis=0))
    few = [query[h, i] for i in range(200, 250) for h in range(2)]
    np.testing.assert_allclose(query_moments(query[:, 200:250], 300), np.mean([np.outer(q, q) for q in few], axis=0))
    assert query_moments(query[:, 200:231], 300) is None
    assert query_moments(query[:, :0], 300) is None
    long = np.ones((1, 2048 * 11, 1)) * (np.arange(2048 * 11) % 11 == 10)[:, None]
    np.testing.assert_array_equal(query_moments(long, 0), [[1]])


@pytest.mark.parametrize("queries", [300, 400])
@pytest.mark.parametrize("causal", [False, True])
def test_cells_are_found_by_the_moments_of_the_queries_that_stand_at_the_keys(causal, queries):
    """Those of sinks included."""
    query, key, value = inputs((2, 4, queries, 3), (2, 2, 400, 3), 5, "float64")
    seen, offset = [], 400 - queries

    def tree_of(rows, values, size, seed, moments):
        (b, head, first), *_ = np.argwhere((key[..., :, :] == rows[0]).all(axis=-1))
        seen.append((b, head, first, first + len(rows), moments))
        return reference.build_tree(rows, values, cell_size=size, seed=seed, moments=moments)

    options = {"k": 10, "causal": causal, "block": 64, "sinks": 9, "tree_of": tree_of}
    reference.near_far_attention(query, key, value, **options)
    assert len({each[:4] for each in seen}) == len(seen) >= 4
    assert min(each[2] for each in seen) == 9
    for b, head, first, end, moments in seen:
        start = 0 if first == 9 else first
        begin, stop = (max(start - offset, 0), max(end - offset, 0)) if causal else (0, queries)
        expected = query_moments(query[b, 2 * head : 2 * head + 2, begin:stop], offset + begin)
        if end <= offset and causal:
            assert moments is None
        else:
            np.testing.assert_array_equal(moments, expected)
    given, wanted = np.array([np.eye(3), 2 * np.eye(3)]), seen.copy()
    seen.clear()
    reference.near_far_attention(query, key, value, moments=given, **options)
    assert len(seen) == len(wanted)
    for _, head, _, _, moments in seen:
        np.testing.assert_array_equal(moments, given[head])


@pytest.mark.parametrize("causal", [False, True])
def test_near_far_attention_with_all_cells_open_is_exact(causal):
    query, key, value = inputs((1, 4, 40, 3), (1, 2, 60, 3), 5, "float64")
    expected = reference.attention(query, key, value, causal=causal)
    out, lse, _, mass = reference.near_far_attention(query, key, value, k=60, causal=causal, block=8, sinks=3, cell_size=4)
    np.testing.assert_allclose(out, expected[0], atol=1e-12)
    np.testing.assert_allclose(lse, expected[1], atol=1e-12)
    np.testing.assert_allclose(mass, 1)
