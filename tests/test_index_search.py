"""What a search of an index finds: exactly and down the tree; and in which order."""

from functools import partial

import numpy as np
import pytest
from helpers import (
    VARIANTS,
    SavedFile,
    assert_nearest,
    assert_present,
    assert_same_result,
    clusters,
    encode,
    normal,
    recall,
    run_python,
)
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import _native, reference
from icecore.reference import Level
from icecore.reference.search import true_scores

METRICS = ("ip", "l2")
#: Enough vectors at once that they become a segment.
SEGMENT = 1100

variants = pytest.mark.parametrize("variant", VARIANTS)


def filled(vectors, ids=None, **options):
    index = icecore.Index(vectors.shape[1], **options)
    index.add(vectors, ids)
    return index


def in_parts(vectors, sizes, **options):
    """An index of several segments and an open block."""
    index = icecore.Index(vectors.shape[1], **options)
    for part in np.split(vectors, np.cumsum(sizes)[:-1]):
        index.add(part)
    return index


# ---- Exactly ----


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [1, 3, 64, 100])
def test_exact_is_brute_force(isa, dtype, dim, metric):
    vectors, queries = normal(0, 1700, dim), normal(1, 19, dim)
    vectors[::50] = 0
    vectors[300:310] = vectors[7]
    queries[3] = 0
    index = in_parts(vectors, [SEGMENT, 600], metric=metric, dtype=dtype)
    assert index.stats["segments"] == 1
    assert index.stats["open"] == 600
    stored = encode(vectors, dtype).astype(np.float64)
    assert_nearest(index.search(queries, 12, exact=True), index.ids, index[index.ids], queries, 12, metric)
    assert_nearest(index.search(queries, 12, exact=True), range(1700), stored, queries, 12, metric)


@st.composite
def small_integers(draw):
    """Vectors of small integers, whose scores are exact in float32 and tie often; any ids."""
    count, dim = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = draw(st.sampled_from([0, 1, 3, 20]))
    vectors = generator.integers(-largest, largest + 1, (count, dim)).astype(np.float32)
    ids = generator.choice(draw(st.sampled_from([count, 1000])), count, replace=False)
    return vectors, ids, generator.integers(-3, 4, (5, dim)).astype(np.float32)


@given(data=small_integers(), k=st.integers(1, 70), metric=st.sampled_from(METRICS))
def test_ties_go_to_the_smaller_id(isa, data, k, metric):
    vectors, ids, queries = data
    order = np.argsort(ids)
    index = filled(vectors, ids, metric=metric)
    for options in ({"exact": True}, {"retrieve": len(ids)}, {}):
        for found, scores, count, query in zip(*index.search(queries, k, **options), queries, strict=True):
            rows, expected = reference.search_exact(vectors[order], query, k, metric)
            assert count == len(rows)
            np.testing.assert_array_equal(scores[:count], expected)
            np.testing.assert_array_equal(found[:count], ids[order][rows])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [100, 3000])
def test_many_ties(isa, metric, count):
    """All alike, and ids against the order in which they came."""
    vectors, ids = np.ones((count, 8), np.float32), np.arange(count)[::-1].copy()
    index = filled(vectors, ids, metric=metric)
    np.testing.assert_array_equal(index.search(vectors[:3], 5, retrieve=count).ids, [[0, 1, 2, 3, 4]] * 3)


@pytest.mark.parametrize("metric", ("ip", "l2", "cosine"))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kinds", (1, 7))
@pytest.mark.parametrize("order", ("reversed", "random", "negative"))
def test_of_more_ties_than_are_kept_the_smallest_ids_are_found(isa, order, kinds, dtype, metric):
    count, dim = 3 * SEGMENT, 37
    ids = {"reversed": np.arange(count)[::-1], "random": np.random.default_rng(0).permutation(count),
           "negative": -np.arange(count)}[order]
    base, own = normal(1, kinds, dim), np.arange(count) % kinds
    base /= np.linalg.norm(base, axis=1, keepdims=True)  # a copy of the query is the nearest by every metric
    index = icecore.Index(dim, metric=metric, dtype=dtype)
    for part in np.split(np.arange(count), [5, SEGMENT + 50, count - 70]):
        index.add(base[own[part]], ids[part])
    best = np.sort(ids[own == 0])
    for k in (1, 5, 40):
        assert index.search(base[0], k, exact=True).ids.tolist() == best[:k].tolist()
        assert index.search(base[0], k, exact=True, filter=best[::3]).ids.tolist() == best[::3][:k].tolist()


@pytest.mark.parametrize("num_composite", (0, 2))
def test_of_ties_among_codes_and_candidates_of_lists_the_smallest_ids_are_found(isa, num_composite):
    count = 2 * SEGMENT
    index = filled(np.ones((count, 8), np.float32), np.arange(count)[::-1], num_composite=num_composite)
    assert index.search(np.ones(8, np.float32), 6, visit=10**6).ids.tolist() == [0, 1, 2, 3, 4, 5]


@variants
def test_one_vector(isa, variant):
    index = icecore.Index(7, **VARIANTS[variant])
    vector = normal(0, 7)
    index.add(vector, [42])
    for exact in (False, True):
        result = index.search(vector, 3, exact=exact)
        np.testing.assert_array_equal(result.ids, [42, -1, -1])
        assert result.counts == 1
        assert np.isnan(result.scores[1:]).all()
        assert_nearest(index.search(vector[None], 3, exact=exact), [42], vector[None], vector[None], 3, index.metric)


@variants
def test_more_neighbours_than_vectors(variant):
    vectors, queries = normal(0, SEGMENT, 6), normal(1, 4, 6)
    index = filled(vectors, **VARIANTS[variant])
    for options in ({"exact": True}, {"field_of_view": SEGMENT}):
        result = index.search(queries, SEGMENT + 50, **options)
        assert (result.counts == SEGMENT).all()
        assert_present(result, index, queries)
        np.testing.assert_array_equal(np.sort(result.ids)[:, 50:], [np.arange(SEGMENT)] * 4)


@pytest.mark.parametrize("metric", METRICS)
def test_zero_vectors(isa, metric):
    vectors, queries = np.zeros((SEGMENT, 5), np.float32), normal(0, 3, 5)
    for options in ({}, {"num_composite": 2, "num_levels": 1}):
        index = filled(vectors, metric=metric, **options)
        for result in (index.search(queries, 4), index.search(queries, 4, exact=True), index.search(vectors[:2], 4)):
            np.testing.assert_array_equal(result.ids, [[0, 1, 2, 3]] * len(result.ids))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e15])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale(metric, scale):
    vectors, queries = normal(0, 1500, 20) * np.float32(scale), normal(1, 10, 20) * np.float32(scale)
    index = filled(vectors, metric=metric)
    assert_nearest(index.search(queries, 10, exact=True), index.ids, vectors, queries, 10, metric)
    everything = index.search(queries, 10, field_of_view=index.stats["cells"], retrieve=1500)
    assert_nearest(everything, index.ids, vectors, queries, 10, metric)


def test_exact_distances_of_clusters_far_apart():
    vectors = normal(0, 4000, 16)
    vectors[::2] += 1000
    vectors[1::2] -= 1000
    index = filled(vectors, metric="l2")
    assert_nearest(index.search(vectors[:20], 10, exact=True), index.ids, vectors, vectors[:20], 10, "l2")


@pytest.mark.parametrize("scale", [1e19, 1e20])
def test_exact_distances_of_huge_vectors(scale):
    """Distances that float32 holds are found, whatever the squares of the vectors do."""
    vectors = np.float32([[1, 0], [-1, 0], [1, 1], [1, 0.1]]) * np.float32(scale)
    index = filled(vectors, metric="l2")
    result = index.search(vectors[:1], 2, exact=True)
    np.testing.assert_array_equal(result.ids, [[0, 3]])
    np.testing.assert_allclose(result.scores, [[0, (0.1 * scale) ** 2]], rtol=1e-6)


OVERFLOW = """
import numpy as np, icecore
row = np.zeros(64, np.float32)
row[0::16], row[1::16] = 2.0**64, -(2.0**64)  # products cancel in the order of the dimensions; in lanes they overflow
vectors = np.concatenate([np.tile(row, (300, 1)), np.full((1500, 64), -1, np.float32)])
queries = np.concatenate([np.full((40, 64), 2.0**63, np.float32), -vectors[:40]])
for options in ({}, {"metric": "l2"}, {"num_composite": 2}):
    index = icecore.Index(64, **options)
    index.add(vectors)
    for exact in (True, False):
        for k in (3, 100, 1000):
            result = index.search(queries, k, exact=exact)
            for ids, count in zip(result.ids, result.counts):
                assert set(ids[:count].tolist()) <= set(range(1800)), (options, exact, k, ids)
                assert len(set(ids[:count].tolist())) == count, (options, exact, k, ids)
    index.tune(queries, 10)
"""


@pytest.mark.parametrize("name", _native.usable_isas())
def test_scores_beyond_float32_are_safe(name):
    """Finite numbers whose products overflow: infinities and NaN among the scores, which name no other vectors."""
    done = run_python(OVERFLOW, ICECORE_ISA=name)
    assert done.returncode == 0, done.stderr


# ---- Down the tree ----


@variants
def test_all_cells_are_everything(isa, variant):
    vectors, queries = normal(0, 2600, 24), normal(1, 40, 24)
    index = in_parts(vectors, [1400, SEGMENT, 100], **VARIANTS[variant])
    assert index.stats["open"] == 100
    index.remove(np.arange(0, 2500, 7))
    exact = index.search(queries, 10, exact=True)
    found = index.search(queries, 10, field_of_view=max(1, index.stats["cells"]), retrieve=2600)
    assert_same_result(found, exact)


@variants
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_recall_with_default_budgets(variant, dtype):
    data = clusters(0, 5100, 32)
    vectors, queries = data[100:], data[:100]
    index = filled(vectors, dtype=dtype, **VARIANTS[variant])
    found = index.search(queries, 10)
    assert recall(found.ids, index.search(queries, 10, exact=True).ids) > 0.8
    assert_present(found, index, queries)


def neighbours(vectors, queries, metric, k=10):
    """Indices of the k nearest of the float32 numbers that are given, in float64."""
    vectors = vectors.astype(np.float64)
    return np.array([reference.search_exact(vectors, query, k, metric)[0] for query in queries.astype(np.float64)])


L2_VARIANTS = pytest.mark.parametrize("variant", [name for name in VARIANTS if " l2" in name])


@L2_VARIANTS
@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_far_from_the_origin(variant, offset):
    """Distances do not drown in the vectors' common offset."""
    data = clusters(0, 5100, 32)
    moved = data + np.float32(offset)
    near, far = (filled(a[100:], **VARIANTS[variant]) for a in (data, moved))
    truth = neighbours(moved[100:], moved[:100], "l2")
    assert recall(far.search(moved[:100], 10, exact=True).ids, truth) > 0.99
    expected = recall(near.search(data[:100], 10).ids, near.search(data[:100], 10, exact=True).ids)
    assert recall(far.search(moved[:100], 10).ids, truth) > expected - 0.05


@variants
@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_constant_component_that_queries_lack_changes_no_inner_product(variant, offset):
    vectors, queries = normal(0, 5000, 20), normal(1, 100, 20)
    constant = np.full(5000, offset, np.float32)
    index = filled(np.column_stack([vectors, constant]), **VARIANTS[variant] | {"metric": "ip"})
    plain = filled(vectors, **VARIANTS[variant] | {"metric": "ip"})
    longer = np.column_stack([queries, np.zeros(100, np.float32)])
    truth = neighbours(vectors, queries, "ip")
    assert recall(index.search(longer, 10, exact=True).ids, truth) > 0.999
    assert recall(index.search(longer, 10).ids, truth) > recall(plain.search(queries, 10).ids, truth) - 0.05


@variants
@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e-20, 1e25, 1e37])
def test_vectors_of_any_size_find_the_same(variant, scale):
    """Squares and products that float32 does not hold decide all the same; only the scores become 0 or infinite."""
    data = clusters(0, 5100, 16)
    index, plain = (filled(a[100:], **VARIANTS[variant]) for a in (data * np.float32(scale), data))
    queries = data[:100] * np.float32(scale)
    truth = plain.search(data[:100], 10, exact=True).ids
    for exact in (False, True):
        found, expected = index.search(queries, 10, exact=exact), plain.search(data[:100], 10, exact=exact)
        assert recall(found.ids, truth) > recall(expected.ids, truth) - 0.02
        assert np.isin(found.scores, [0, np.inf]).all() if scale < 1e-24 or scale > 1e24 else True
    few = filled(data[100:400] * np.float32(scale), metric=index.metric)
    expected = filled(data[100:400], metric=index.metric).search(data[:100], 10)
    assert recall(few.search(queries, 10).ids, expected.ids) > 0.999


@pytest.mark.parametrize("metric", METRICS)
def test_segments_of_different_sizes_are_compared(metric):
    small, large = clusters(0, 2500, 16) * np.float32(1e-12), clusters(1, 2500, 16)
    index = in_parts(np.concatenate([small, large]), [2500, 2500], metric=metric)
    queries = np.concatenate([small[:50], large[:50]])
    exact = index.search(queries, 10, exact=True)
    assert recall(exact.ids, neighbours(np.concatenate([small, large]), queries, metric)) > 0.999
    found = index.search(queries, 10, field_of_view=index.stats["cells"], retrieve=100)
    assert recall(found.ids, exact.ids) > 0.99


@pytest.mark.parametrize("metric", METRICS)
def test_an_outlier_does_not_decide_for_all(metric):
    data = clusters(0, 5100, 16)
    vectors, queries = data[100:].copy(), data[:100]
    vectors[7] = 0
    vectors[7, 3] = -1e30 if metric == "l2" else 1e-30
    plain, index = filled(data[100:], metric=metric), filled(vectors, metric=metric)
    truth = neighbours(vectors, queries, metric)
    assert recall(index.search(queries, 10, exact=True).ids, truth) > 0.999
    assert recall(index.search(queries, 10).ids, truth) > recall(plain.search(queries, 10).ids, truth) - 0.05


def tree_of(index):
    """(levels for the oracle, ids in the order of the tree) of an index of one segment."""
    assert index.stats["segments"] == 1
    arrays = SavedFile.of(index).arrays
    depth = int(arrays["segment0.shape"][1])
    levels = [
        Level(arrays[f"segment0.layer{i}.mean"].reshape(-1, index.dim), arrays[f"segment0.layer{i}.offset"])
        for i in range(1, depth)
    ]
    return levels, arrays["ids"][arrays["segment0.order"]]


def ranks_of(level, query, metric, reached):
    """Ranks of the oracle's `tree_search`, and how far rounding to 8 bits may move each: six standard deviations."""
    means = level.means[reached].astype(np.float64)
    ranks = means @ query - (0.5 * (means**2).sum(axis=1) if metric == "l2" else 0)
    top = means.mean(axis=0)  # about what the codes are relative to
    side = query - top if metric == "l2" else query
    step, own = (np.abs(a).max(axis=-1) / 127 for a in (means - top, side))
    blur = step * np.linalg.norm(side) + own * np.linalg.norm(means - top, axis=1)
    return ranks, 6 / np.sqrt(12) * 1.3 * blur + 1e-6 * np.abs(means).max()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("field_of_view", [1, 3, 10, 25])
@pytest.mark.parametrize("num_levels", [2, 3])
def test_the_best_parents_are_opened(isa, num_levels, field_of_view, metric):
    """With room for all vectors, what comes back names the parents that were opened."""
    vectors, queries = normal(0, 3000, 16), normal(1, 60, 16)
    index = filled(vectors, metric=metric, num_levels=num_levels)
    levels, ids = tree_of(index)
    cell = np.empty(3000, int)
    cell[ids] = np.repeat(np.arange(len(levels[-1].means)), np.diff(levels[-1].offset))
    result = index.search(queries, 3000, field_of_view=field_of_view)
    checked = 0
    for query, found, count in zip(queries.astype(np.float64), result.ids, result.counts, strict=True):
        opened = np.unique(cell[found[:count]])
        assert count == np.isin(cell, opened).sum()
        reached, clear = np.arange(len(levels[0].means)), True
        for level in levels[:-1]:
            ranks, blur = ranks_of(level, query, metric, reached)
            order = np.argsort(-ranks)
            kept, left = order[:field_of_view], order[field_of_view:]
            clear &= (ranks - blur)[kept].min() > (ranks + blur)[left].max(initial=-np.inf)
            reached = np.concatenate([np.arange(level.offset[i], level.offset[i + 1]) for i in reached[kept]])
        if not clear:
            continue
        checked += 1
        ranks, blur = ranks_of(levels[-1], query, metric, reached)
        assert len(opened) == min(field_of_view, len(reached))
        chosen = np.isin(reached, opened)
        assert chosen.sum() == len(opened)
        assert (ranks + blur)[chosen].min() >= (ranks - blur)[~chosen].max(initial=-np.inf)
    assert checked >= (60 if num_levels == 2 else 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_levels", [2, 3])
def test_as_many_found_as_by_the_oracle(num_levels, metric):
    vectors, queries = clusters(0, 4000, 24, centers=100), clusters(0, 100, 24, centers=100)
    queries += normal(2, 100, 24) * np.float32(0.1)
    index = filled(vectors, metric=metric, num_levels=num_levels)
    levels, ids = tree_of(index)
    exact = index.search(queries, 10, exact=True).ids
    for field_of_view in (2, 8):
        oracle = [
            ids[reference.tree_search(levels, vectors[ids], q, 10, metric=metric, field_of_view=field_of_view)[0]]
            for q in queries
        ]
        oracle = np.array([np.pad(row, (0, 10 - len(row)), constant_values=-1) for row in oracle])
        found = index.search(queries, 10, field_of_view=field_of_view, retrieve=200).ids
        assert recall(found, exact) == pytest.approx(recall(oracle, exact), abs=0.02)
        assert recall(found, oracle) > 0.97


NORMS = {
    "equal": lambda generator, count: np.ones(count),
    "lognormal": lambda generator, count: generator.lognormal(0, 1, count),
    "wide lognormal": lambda generator, count: generator.lognormal(0, 2, count),
    "Pareto": lambda generator, count: 1 + generator.pareto(1, count),
    "heavy Pareto": lambda generator, count: 1 + generator.pareto(0.5, count),
    "of three sizes": lambda generator, count: generator.choice([1, 10, 100], count, p=[0.9, 0.09, 0.01]),
}


def of_norms(norms, count, dim, clustered):
    """Vectors of such norms and queries of norm 1, in directions of clusters or all alike."""
    directions = clusters(0, count + 100, dim, centers=150) if clustered else normal(0, count + 100, dim)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    factors = NORMS[norms](np.random.default_rng(1), count).astype(np.float32)
    return directions[100:] * factors[:, None], directions[:100]


@pytest.mark.parametrize("clustered", [True, False], ids=["clustered", "iid"])
@pytest.mark.parametrize("norms", [name for name in NORMS if name != "equal"])
def test_inner_products_of_widely_varying_norms_are_found_with_default_budgets(norms, clustered):
    vectors, queries = of_norms(norms, 10000, 64, clustered)
    index = filled(vectors)
    assert recall(index.search(queries, 10).ids, index.search(queries, 10, exact=True).ids) >= 0.95


@pytest.mark.parametrize("clustered", [True, False], ids=["clustered", "iid"])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("metric", METRICS)
def test_the_default_opens_the_parents_that_the_oracle_opens(isa, metric, norms, clustered):
    vectors, queries = of_norms(norms, 3000, 16, clustered)
    index = filled(vectors, metric=metric)
    levels, ids = tree_of(index)
    found = index.search(queries, 10, retrieve=300).ids
    search = partial(reference.tree_search, levels, vectors[ids], k=10, metric=metric, field_of_view=16, extend=True)
    oracle, _, points = zip(*[search(query=query) for query in queries], strict=True)
    assert recall(found, ids[np.array(oracle)]) > 0.99
    assert visited(index, queries) == pytest.approx(np.mean(points), rel=0.05, abs=3 * len(levels[0].means))


@pytest.mark.parametrize("norms", ["equal", "lognormal"])
@pytest.mark.parametrize("metric", METRICS)
def test_many_small_adds_find_what_one_finds(norms, metric):
    vectors, queries = of_norms(norms, 10000, 64, clustered=True)
    one, many = filled(vectors, metric=metric), in_parts(vectors, [500] * 20, metric=metric)
    assert many.stats["segments"] > 2
    exact = one.search(queries, 10, exact=True).ids
    assert recall(many.search(queries, 10).ids, exact) > recall(one.search(queries, 10).ids, exact) - 0.02


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_default_budgets_find_what_is_left_where_the_nearest_were_removed(metric, share):
    """Queries are far from all vectors then, and many parents are about as good as the best."""
    vectors = clusters(0, 20000, 64, centers=300)
    queries = vectors[:100] + normal(1, 100, 64) * np.float32(0.2)
    index = filled(vectors, metric=metric)
    scores = queries @ vectors.T - ((vectors**2).sum(axis=1) / 2 if metric == "l2" else 0)
    near = np.argsort(-(scores - scores.max(axis=1, keepdims=True)).max(axis=0))[: round(share * len(vectors))]
    index.remove(near)
    assert recall(index.search(queries, 10).ids, index.search(queries, 10, exact=True).ids) > 0.95


@pytest.mark.parametrize("metric", METRICS)
def test_default_budgets_find_independent_vectors_of_equal_length(metric):
    """A tree has nothing to tell: nearly all parents are opened."""
    vectors, queries = normal(0, 10000, 64), normal(1, 100, 64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = filled(vectors, metric=metric)
    assert recall(index.search(queries, 10).ids, index.search(queries, 10, exact=True).ids) > 0.95


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("noise", [1e-2, 1e-4])
@pytest.mark.parametrize("copies", [20, 50, 200])
def test_near_duplicates_by_the_dozen_are_told_apart(metric, noise, copies):
    """Codes span the vectors of a cell, which holds several groups of near-duplicates, and see each group as one vector."""
    vectors = np.repeat(normal(0, 8000 // copies, 16), copies, axis=0) + np.float32(noise) * normal(1, 8000, 16)
    vectors = np.random.default_rng(2).permutation(vectors)
    index, queries = filled(vectors, metric=metric), vectors[:100]
    found, exact = index.search(queries, 10), index.search(queries, 10, exact=True)
    assert recall(found.ids, exact.ids) > 0.98
    for threads in (1, 2):
        alone = np.concatenate([index.search(query, 10, num_threads=threads).ids[None] for query in queries[:20]])
        np.testing.assert_array_equal(alone, found.ids[:20])


@pytest.mark.parametrize("parts", [2, 7])
def test_few_adds_of_inner_products_keep_the_recall(parts):
    vectors = clusters(0, 30000, 64, centers=300)
    queries = vectors[:100] + normal(1, 100, 64) * np.float32(0.2)
    index = in_parts(vectors, [30000 // parts] * parts)
    assert recall(index.search(queries, 10).ids, index.search(queries, 10, exact=True).ids) > 0.95


def visited(index, queries):
    """Vectors and means that a query is compared with by default, on average."""
    count, (n, k) = np.empty(len(queries), np.int64), (len(queries), 10)
    arrays = np.empty((n, k), np.int64), np.empty((n, k), np.float32), np.empty(n, np.int64)
    index._search(queries, k, index._budgets(k, None, None, None), [None, None], 1, *arrays, count)
    return count.mean()


@pytest.mark.parametrize("seed", range(3))
def test_many_small_adds_compare_distances_with_about_as_many_as_one_does(seed):
    vectors, queries = normal(seed, 14000, 32), normal(seed + 10, 100, 32)
    one, many = filled(vectors, metric="l2"), in_parts(vectors, [500] * 28, metric="l2")
    assert many.stats["segments"] > 2
    assert visited(many, queries) - many.stats["open"] < 1.4 * visited(one, queries)
    exact = one.search(queries, 10, exact=True).ids
    assert recall(many.search(queries, 10).ids, exact) > recall(one.search(queries, 10).ids, exact) - 0.02


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_levels", [2, 3])
@pytest.mark.parametrize("visit", [1, 100, 900, 10**9])
def test_visit_opens_parents_until_they_hold_enough(num_levels, visit, metric):
    vectors, queries = normal(0, 3000, 8), normal(1, 30, 8)
    index = filled(vectors, metric=metric, num_levels=num_levels)
    levels, ids = tree_of(index)
    size = np.diff(levels[-1].offset)
    cell = np.empty(3000, int)
    cell[ids] = np.repeat(np.arange(len(size)), size)
    result = index.search(queries, 3000, visit=visit)
    for found, count in zip(result.ids, result.counts, strict=True):
        assert count >= min(visit, 3000)
        opened = np.unique(cell[found[:count]])
        assert count == size[opened].sum()
        assert count - size[opened].max() < visit
    if visit == 10**9:
        assert_nearest(result._replace(ids=result.ids[:, :3000]), range(3000), vectors, queries, 3000, metric)


def test_budgets_bound_each_other():
    vectors, queries = normal(0, 3000, 8), normal(1, 30, 8)
    index = filled(vectors, metric="l2")
    by_both = index.search(queries, 3000, visit=500, field_of_view=3)
    by_view = index.search(queries, 3000, field_of_view=3)
    by_visit = index.search(queries, 3000, visit=500)
    np.testing.assert_array_equal(by_both.counts, np.minimum(by_view.counts, by_visit.counts))


def test_more_budget_finds_no_worse():
    vectors, queries = normal(0, 4000, 32), normal(1, 50, 32)
    index = filled(vectors)
    exact = index.search(queries, 10, exact=True).ids
    by_view = [recall(index.search(queries, 10, field_of_view=v, retrieve=200).ids, exact) for v in (1, 4, 16, 64)]
    assert (np.diff(by_view) >= 0).all()
    assert by_view[-1] == 1
    by_retrieve = [recall(index.search(queries, 10, field_of_view=64, retrieve=r).ids, exact) for r in (10, 20, 100)]
    assert (np.diff(by_retrieve) >= 0).all()
    assert by_retrieve[-1] == 1


# ---- The same bits ----


@variants
@pytest.mark.parametrize("budget", [{}, {"field_of_view": 3}, {"visit": 400}, {"exact": True}], ids=str)
def test_threads_and_batches_change_nothing(variant, budget):
    vectors, queries = clusters(0, 3000, 20), clusters(0, 1000, 20)
    built = [icecore.Index(20, **VARIANTS[variant]) for _ in range(3)]
    for index, threads in zip(built, (1, 2, 4), strict=True):
        index.add(vectors[:2500], num_threads=threads)
        index.add(vectors[2500:], num_threads=threads)
    expected = built[0].search(queries, 6, num_threads=1, **budget)
    for index, threads in zip(built, (1, 2, 4), strict=True):
        assert_same_result(index.search(queries, 6, num_threads=threads, **budget), expected)
    for size in (1, 7, 500):
        for first in (0, 3, 450):
            part = built[0].search(queries[first : first + size], 6, **budget)
            assert_same_result(part, [a[first : first + size] for a in expected])


@variants
def test_instruction_sets_agree(variant):
    vectors, queries = clusters(0, 3000, 20), clusters(0, 200, 20)
    before, index = _native.isa(), filled(vectors, **VARIANTS[variant])
    found = {}
    try:
        for name in _native.usable_isas():
            icecore.set_isa(name)
            index.validate()
            found[name] = index.search(queries, 10)
    finally:
        icecore.set_isa(before)
    expected = found[before]
    for name, result in found.items():
        assert recall(result.ids, expected.ids) > 0.999, name
        true = [true_scores(index[ids], q, index.metric) for ids, q in zip(result.ids, queries, strict=True)]
        np.testing.assert_allclose(result.scores, true, rtol=1e-4, atol=1e-4)


@variants
def test_seeds(variant):
    vectors, queries = clusters(0, 3000, 20), clusters(0, 50, 20)
    one, two, other = (filled(vectors, seed=seed, **VARIANTS[variant]) for seed in (5, 5, 6))
    assert_same_result(one.search(queries, 10, field_of_view=2), two.search(queries, 10, field_of_view=2))
    if variant != "scan l2, one level":
        assert SavedFile.of(one).arrays.keys() == SavedFile.of(two).arrays.keys()
        different = [
            not np.array_equal(a, b)
            for a, b in zip(SavedFile.of(one).arrays.values(), SavedFile.of(other).arrays.values(), strict=True)
        ]
        assert any(different)


# ---- Cosines ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_cosine_is_the_product_of_directions(dtype):
    vectors, queries = normal(0, 3000, 10), normal(1, 20, 10)
    scale = np.float32(10.0) ** np.random.default_rng(2).integers(-30, 30, (3000, 1))
    index, plain = filled(vectors * scale, metric="cosine", dtype=dtype), icecore.Index(10, dtype=dtype)
    plain.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = index.search(queries * np.float32(1e-30), 5, exact=True)
    expected = plain.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 5, exact=True)
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-6 if dtype == "float32" else 2e-2)
    assert recall(found.ids, expected.ids) > 0.95
    assert (np.abs(found.scores) <= 1.01).all()
    np.testing.assert_allclose(np.linalg.norm(index[np.arange(100)], axis=1), 1, rtol=1e-6 if dtype == "float32" else 1e-2)
    assert index.tune(queries, 5).recall >= 0.95
    assert index.copy().metric == "cosine"


def test_zero_vectors_have_no_cosine():
    index = icecore.Index(3, metric="cosine")
    index.add([1, 2, 3])
    with pytest.raises(ValueError, match="vectors is zero in row 1, which has no cosine"):
        index.add([[1, 0, 0], [0, 0, 0]])
    assert len(index) == 1
    for call in (index.search, index.search_within, index.tune):
        with pytest.raises(ValueError, match="queries is zero in row 0"):
            call([0, 0, 0], 1)


# ---- All within a bound ----


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
def test_all_within_a_bound(metric):
    vectors, queries = clusters(0, 4000, 8), clusters(0, 300, 8)
    index = filled(vectors, metric=metric)
    index.remove(np.arange(0, 4000, 7))
    ids, scores, _ = index.search(queries, len(index), exact=True)
    for bound in np.quantile(scores, [0.001, 0.02, 0.5]):
        for options in ({}, {"filter": np.arange(1000)}, {"exclude": np.arange(300)[:, None]}):
            result = index.search_within(queries, bound, **options)
            for i in range(300):
                own = (scores[i] <= bound) if metric == "l2" else (scores[i] >= bound)
                if "filter" in options:
                    own &= ids[i] < 1000
                if "exclude" in options:
                    own &= ids[i] != i
                part = slice(*result.offsets[i : i + 2])
                np.testing.assert_array_equal(result.ids[part], ids[i][own])
                np.testing.assert_array_equal(result.scores[part], scores[i][own])


def test_nothing_within_a_bound():
    index = filled(normal(0, 100, 4), metric="l2")
    for queries, count in ((normal(1, 4), 1), (normal(1, 3, 4), 3), (np.empty((0, 4)), 0)):
        result = index.search_within(queries, -1.0)
        np.testing.assert_array_equal(result.offsets, np.zeros(count + 1))
        assert result.ids.shape == result.scores.shape == (0,)
    for bound, error in (("1", TypeError), (True, TypeError), (float("nan"), ValueError)):
        with pytest.raises(error, match="bound must be a number, got"):
            index.search_within(normal(1, 4), bound)
    with pytest.raises(ValueError, match="the index is empty"):
        icecore.Index(4).search_within(normal(1, 4), 1.0)


def test_bounds_beyond_float32_are_the_largest_distance():
    index = icecore.Index(2, metric="l2")
    index.add(np.float32([[0, 0], [1, 1], [1e30, 0]]))
    found = index.search_within([0.0, 0.0], 1e39)
    assert found.ids.tolist() == [0, 1]
    assert index.search_within([0.0, 0.0], 10**400).ids.tolist() == [0, 1]
    assert index.search_within([0.0, 0.0], np.inf).ids.tolist() == [0, 1, 2]
    assert not len(index.search_within([0.0, 0.0], -(10**400)).ids)


def test_many_equal_scores_are_ordered_by_id():
    """Of vectors that are all alike, whose ids came in any order."""
    count = 60_000
    ids = np.random.default_rng(0).permutation(count) - 1000
    index = icecore.Index(4, metric="l2")
    index.add(np.zeros((count, 4), np.float32), ids=ids)
    found = index.search(np.zeros(4, np.float32), count, exact=True)
    np.testing.assert_array_equal(found.ids.ravel(), np.sort(ids))


@pytest.mark.parametrize("composites", [0, 3])
@pytest.mark.parametrize("exact", [True, False])
def test_vectors_of_quite_another_size_do_not_decide_for_all(composites, exact):
    """A block of vectors of 1e30 among ordinary ones, before and after they are merged, and tiny ones behind them."""
    ordinary = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
    tiny = ordinary[:700] * np.float32(1e-12)
    index = icecore.Index(8, metric="l2", num_composite=composites)
    index.add(ordinary)
    index.add(np.float32(1e30) * (1 + np.arange(1024, dtype=np.float32)[:, None] / 1024) * np.ones((1, 8), np.float32))
    index.add(tiny)
    every = np.concatenate([ordinary, np.float32(1e30) * (1 + np.arange(1024, dtype=np.float32)[:, None] / 1024)
                            * np.ones((1, 8), np.float32), tiny]).astype(np.float64)
    for _ in range(2):
        for query in (ordinary[1500], ordinary[3] + np.float32(0.01), tiny[5] * np.float32(1.0001), np.float32(every[2500])):
            found = index.search(query, 3, exact=exact)
            distances = ((every - query) ** 2).sum(axis=1)
            nearest = np.lexsort([np.arange(len(every)), distances])[:3]
            assert found.ids.ravel().tolist() == nearest.tolist()
            with np.errstate(over="ignore"):
                np.testing.assert_allclose(found.scores.ravel(), distances[nearest].astype(np.float32), rtol=1e-5)
        index.compact()


def test_new_vectors_far_larger_than_the_others_are_told_apart():
    index = icecore.Index(1, metric="l2")
    index.add(np.linspace(0, 1e-8, 2000, dtype=np.float32)[:, None])
    index.add(np.float32([[1e12], [2e12]]), ids=[5000, 5001])
    found = index.search(np.float32([2.1e12]), 1, exact=True)
    assert found.ids.ravel().tolist() == [5001]
    assert found.scores.ravel() == pytest.approx(1e22, rel=1e-5)
    assert index.search_within(np.float32([2.1e12]), 2e22).ids.tolist() == [5001]
