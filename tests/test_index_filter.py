"""A search of an index among some of its vectors, and the forms of its arguments and results."""


import numpy as np
import pytest
from helpers import VARIANTS, assert_nearest, assert_same_result, clusters, encode, normal
from test_index_search import filled, in_parts, of_norms, variants

import icecore


@variants
def test_filter(isa, variant):
    vectors, queries = normal(0, 2000, 10), normal(1, 20, 10)
    index = in_parts(vectors, [1500, 500], **VARIANTS[variant])
    allowed = np.random.default_rng(2).choice(2000, 300, replace=False)
    absent = np.int64([-5, 2000, 2**62])
    for ids in (allowed, np.concatenate([absent, allowed, allowed[:5]]), allowed.astype(np.int16)):
        result = index.search(queries, 8, exact=True, filter=ids)
        assert_nearest(result, allowed, vectors[allowed], queries, 8, index.metric)
        everything = index.search(queries, 8, filter=ids, field_of_view=2000, retrieve=2000)
        assert_same_result(everything, result)
        assert np.isin(index.search(queries, 8, filter=ids).ids, [-1, *allowed]).all()
    for nothing in ([], absent):
        for exact in (False, True):
            result = index.search(queries, 3, filter=nothing, exact=exact)
            assert (result.ids == -1).all()
            assert np.isnan(result.scores).all()
            assert not result.counts.any()


def recall_among(index, queries, **options):
    """Recall of the default search, and whether it found as many as there are."""
    found, exact = index.search(queries, 10, **options), index.search(queries, 10, exact=True, **options)
    hits = sum(np.isin(true[:count], own).sum() for own, true, count in zip(found.ids, exact.ids, exact.counts, strict=True))
    return hits / exact.counts.sum(), (found.counts == exact.counts).all()


@pytest.mark.parametrize("share", [0.5, 0.3, 0.1, 0.01, 0.001])
@variants
def test_a_filter_keeps_recall_and_counts(variant, share):
    vectors = clusters(0, 12000, 24, centers=200)
    index, queries = filled(vectors, **VARIANTS[variant]), clusters(1, 100, 24, centers=200)
    unfiltered, _ = recall_among(index, queries)
    allowed = np.random.default_rng(2).permutation(12000)[: int(12000 * share)]
    for options in ({"filter": allowed}, {"exclude": np.setdiff1d(np.arange(12000), allowed)}):
        reached, full = recall_among(index, queries, **options)
        assert reached >= unfiltered - 0.02
        assert full


def test_a_filter_keeps_recall_of_varying_norms_and_small_adds():
    vectors, queries = of_norms("lognormal", 24000, 24, clustered=False)
    index = in_parts(vectors, [16000, 3000, 2000, 1500, 1500])
    assert index.stats["segments"] > 2
    allowed = np.random.default_rng(2).permutation(24000)[:16000]
    reached, full = recall_among(index, queries, filter=allowed)
    assert reached >= 0.95
    assert full


def test_a_filter_of_one_region_asked_from_everywhere():
    vectors = clusters(0, 12000, 24, centers=200)
    index = filled(vectors, metric="l2")
    region = np.argsort(((vectors - vectors[0]) ** 2).sum(axis=1))
    for count in (500, 5000):
        reached, full = recall_among(index, normal(1, 100, 24), filter=region[:count])
        assert reached >= recall_among(index, normal(1, 100, 24))[0] - 0.02
        assert full


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_few_allowed_are_all_compared(levels):
    index = filled(normal(0, 5000, 10), num_levels=levels)
    tuning = index.tune(normal(1, 20, 10), 5, 1.0, filter=np.arange(100))
    assert tuning.recall == 1
    assert tuning.visited == 100


@variants
def test_ways_to_filter(variant):
    """Ids, masks, exclusion, and one of each query give the same answers."""
    index, queries = filled(normal(0, 3000, 10), **VARIANTS[variant]), normal(1, 6, 10)
    for share in (2, 300):
        ids = np.arange(0, 3000, share)
        mask = np.zeros(3100, bool)
        mask[ids] = True
        expected = index.search(queries, 7, filter=ids)
        assert_same_result(index.search(queries, 7, filter=mask), expected)
        assert_same_result(index.search(queries, 7, exclude=~mask), expected)
        assert_same_result(index.search(queries, 7, filter=np.append(ids, [1, 3]), exclude=[1, 3, -7]), expected)
        assert_same_result(index.search(queries, 7, filter=np.tile(ids, (6, 1))), expected)
        assert_same_result(index.search(queries, 7, exclude=np.tile(~mask, (6, 1))), expected)
    each = np.int64([[5, -1], [6, 7], [8, 8], [-1, -1], [9, 10], [5000, 11]])
    found = index.search(queries, 2, filter=each)
    np.testing.assert_array_equal(np.sort(found.ids), [[-1, 5], [6, 7], [-1, 8], [-1, -1], [9, 10], [-1, 11]])
    one = index.search(queries[0], 7, exclude=[[3]])
    assert_same_result(one, index.search(queries[0], 7, exclude=[3]))


def test_excluding_the_query_itself():
    vectors = normal(0, 2000, 10)
    index = filled(vectors, metric="l2")
    found = index.search(vectors[:50], 3, field_of_view=2000, exclude=np.arange(50)[:, None])
    expected = index.search(vectors[:50], 4, field_of_view=2000)
    np.testing.assert_array_equal(found.ids, expected.ids[:, 1:])


def test_a_filter_does_not_name_removed_vectors():
    vectors = normal(0, 1500, 10)
    index = filled(vectors)
    index.remove([3, 4])
    result = index.search(vectors[:1], 5, filter=[3, 4, 5], field_of_view=2000)
    np.testing.assert_array_equal(result.ids, [[5, -1, -1, -1, -1]])


@pytest.mark.parametrize("exact", [False, True])
def test_out(exact):
    vectors, queries = normal(0, 2000, 10), normal(1, 20, 10)
    index = filled(vectors)
    expected = index.search(queries, 7, exact=exact)
    out = icecore.SearchResult(np.zeros((20, 7), np.int64), np.zeros((20, 7), np.float32), np.zeros(20, np.int64))
    result = index.search(queries, 7, exact=exact, out=out)
    assert all(one is other for one, other in zip(result, out, strict=True))
    assert_same_result(out, expected)
    pair = out[0] * 0, out[1] * 0
    assert_same_result(index.search(queries, 7, exact=exact, out=pair), expected)
    assert_same_result(pair, expected[:2])


def test_one_query():
    vectors, query = normal(0, 2000, 10), normal(1, 10)
    index = filled(vectors)
    one, many = index.search(query, 5), index.search(query[None], 5)
    assert one.ids.shape == one.scores.shape == (5,)
    assert one.counts.shape == ()
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b[0])
    out = icecore.SearchResult(np.zeros(5, np.int64), np.zeros(5, np.float32), np.zeros((), np.int64))
    assert_same_result(index.search(query, 5, out=out), one)
    assert out.counts == 5


def test_no_queries():
    index = filled(normal(0, 1500, 10))
    result = index.search(np.empty((0, 10), np.float32), 4)
    assert result.ids.shape == result.scores.shape == (0, 4)
    assert result.counts.shape == (0,)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", ">f4", "int8", "uint32", "int64"])
def test_real_numbers_of_any_type(dtype):
    vectors, queries = ((normal(seed, 1500, 10) * 50).astype(dtype if dtype != "bfloat16" else "float32") for seed in (0, 1))
    if dtype == "bfloat16":
        vectors, queries = encode(vectors, dtype), encode(queries, dtype)
    index, plain = filled(vectors), filled(vectors.astype(np.float32))
    assert_same_result(index.search(queries, 5), plain.search(queries.astype(np.float32), 5))


def test_any_layout():
    vectors, queries = normal(0, 1500, 10), normal(1, 30, 10)
    index = filled(np.asfortranarray(vectors))
    expected = filled(vectors).search(queries, 5)
    assert_same_result(index.search(np.asfortranarray(queries), 5), expected)
    assert_same_result(index.search(np.repeat(queries, 2, axis=0)[::2], 5), expected)
    assert_same_result(index.search(queries.tolist(), 5), expected)
