"""attend_indices() differs from float64 by rounding only, whatever the shape, layout or dtype; bad indices are refused."""

import numpy as np
import pytest
from helpers import (
    DTYPES,
    as_four,
    assert_exact,
    assert_same_bits,
    assert_within,
    decode,
    encode,
    inputs,
    relative_error,
    rounding_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i4", ">i8"]
# roundoff of each dtype, and the spacing of its smallest numbers
ROUNDING = {"float32": (2.0**-24, 2.0**-126), "float16": (2.0**-11, 2.0**-24), "bfloat16": (2.0**-8, 2.0**-126)}
ROUNDING["uint16"] = ROUNDING["bfloat16"]


def lists(seed, *shape, keys, padding=0.2, dtype=np.int32):
    """Random indices, repeated ones among them, and -1 at a share of the places."""
    generator = np.random.default_rng((seed, 9))
    indices = generator.integers(0, keys, shape) if keys else np.full(shape, -1)
    return np.where(generator.random(shape) < padding, -1, indices).astype(dtype)


def whole(indices, query, key):
    """`indices` as (B, H, L, K): the lists of a key head repeated for its query heads."""
    query, key = as_four(query), as_four(key)
    indices = as_four(np.asarray(indices))
    if indices.shape[1] not in (1, query.shape[1]):
        indices = np.repeat(indices, query.shape[1] // key.shape[1], axis=1)
    return np.broadcast_to(indices, (*query.shape[:3], indices.shape[-1]))


def assert_attends(result, query, key, value, indices, scale=None, **options):
    """`result` = (out, lse) is the oracle's up to rounding."""
    out, lse = result
    assert out.dtype == query.dtype
    assert lse.dtype == np.float32
    assert out.shape == (*query.shape[:-1], value.shape[-1])
    assert lse.shape == query.shape[:-1]
    indices = whole(indices, query, key)
    # where panels of native bfloat16 serve, weights are rounded too
    roundoff, smallest = ROUNDING[out.dtype.name]
    weights = roundoff if roundoff == 2.0**-8 else 0.0
    out, query, key, value = (as_four(decode(a)) for a in (out, query, key, value))
    expected, expected_lse = reference.attend_indices(query, key, value, indices, scale=scale, **options)
    total, _ = reference.attend_indices(query, key, np.abs(value), indices, scale=scale, **options)
    # the bound over all keys holds for any of them, but for the sums over K
    _, on_lse = rounding_bound(query, key, value, scale=scale)
    size = np.abs(np.where(np.isfinite(expected_lse), expected_lse, 0.0))
    scores = on_lse + 2.0**-24 * (np.sqrt(indices.shape[-1]) + 16 + size)
    lse = lse.reshape(expected_lse.shape).astype(np.float64)
    nothing = np.isneginf(expected_lse)
    np.testing.assert_array_equal(np.isneginf(lse), nothing)
    assert not out[nothing].any()
    bound = (2 * scores + weights)[..., None] * total
    assert_within(out, expected, bound + roundoff * (np.abs(expected) + bound) + smallest, "out")
    assert_within(lse[~nothing], expected_lse[~nothing], scores[~nothing], "lse")


@st.composite
def problems(draw):
    """(query, key, value, indices, options)."""
    awkward = st.sampled_from([1, 3, 15, 16, 17, 64, 65, 100])
    dim, value_dim = draw(st.one_of(awkward, st.just(512))), draw(awkward)
    queries, keys = draw(st.integers(0, 12)), draw(st.one_of(st.integers(0, 9), st.integers(100, 300)))
    count = draw(st.sampled_from([0, 1, 7, 127, 128, 129, 300]))
    batch, key_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 8, 9, 16, 50]))
    heads = key_heads * group
    axes = draw(st.integers(0, 2))
    query_axes, key_axes = [((), ()), ((heads,), (key_heads,)), ((batch, heads), (batch, key_heads))][axes]
    seed, dtype = draw(st.integers(0, 2**32)), draw(st.sampled_from(DTYPES))
    arrays = inputs((*query_axes, queries, dim), (*key_axes, keys, dim), value_dim, dtype, seed)
    sizes = ([1, batch], [1, heads, key_heads], [1, queries], [count])
    shape = [draw(st.sampled_from(size)) for size in sizes][draw(st.integers(2 - axes, 3)) :]
    padding, integer = draw(st.sampled_from([0, 0.2, 0.9, 1])), draw(st.sampled_from([np.int32, np.int64]))
    indices = lists(seed, *shape, keys=keys, padding=padding, dtype=integer)
    return *arrays, indices, {"causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, None, 0.0, -0.3]))}


@settings(max_examples=80)
@given(problems())
def test_equals_the_float64_oracle(isa, problem):
    *arrays, indices, options = problem
    result = icecore.attend_indices(*arrays, indices, return_lse=True, **options)
    assert_attends(result, *arrays, indices, **options)


@pytest.mark.parametrize("group", [1, 3, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_keys_in_any_order_are_exact_attention(isa, dtype, group):
    query, key, value = inputs((2, group * 2, 30, 40), (2, 2, 300, 40), 24, dtype)
    indices = np.random.default_rng(0).permuted(np.tile(np.arange(300), (2, 2, 30, 1)), axis=-1)
    for causal in (False, True):
        result = icecore.attend_indices(query, key, value, indices, causal=causal, return_lse=True)
        assert_exact(result, query, key, value, causal=causal)


@pytest.mark.parametrize("group", [1, 3, 8, 9, 60])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_lists_equal_repeated_ones(isa, dtype, group):
    arrays = inputs((2, 2 * group, 7, 33), (2, 2, 200, 33), 18, dtype)
    indices = lists(0, 2, 2, 7, 150, keys=200)
    shared = icecore.attend_indices(*arrays, indices, return_lse=True)
    repeated = icecore.attend_indices(*arrays, np.repeat(indices, group, axis=1), return_lse=True)
    for one in (shared, repeated):
        assert_attends(one, *arrays, indices)
    if group <= 8:  # the same kernels
        for one, other in zip(shared, repeated, strict=True):
            assert_same_bits(one, other)


@settings(max_examples=60)
@given(st.data())
def test_blocks_equal_the_oracle(isa, data):
    group, queries, keys = (data.draw(st.sampled_from(of)) for of in ([1, 3, 9, 50], [1, 5, 40], [0, 1, 100, 300]))
    block, count = data.draw(st.sampled_from([1, 2, 16, 64, 128, 500])), data.draw(st.sampled_from([0, 1, 4, 20]))
    dtype, seed, causal = data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 2**32)), data.draw(st.booleans())
    arrays = inputs((2, 2 * group, queries, 32), (2, 2, keys, 32), 16, dtype, seed)
    indices = lists(seed, 2, data.draw(st.sampled_from([1, 2, 2 * group])), queries, count, keys=-(-keys // block))
    options = {"block_size": block, "causal": causal}
    assert_attends(icecore.attend_indices(*arrays, indices, return_lse=True, **options), *arrays, indices, **options)


def test_blocks_in_float64():
    arrays = inputs((2, 5, 8), (2, 50, 8), 8, "float64")
    indices = np.array([[0, 3, -1]])
    listed = np.array([[*range(16), *range(48, 50), -1]])
    assert_same_bits(icecore.attend_indices(*arrays, indices, block_size=16), icecore.attend_indices(*arrays, listed))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bad_block_is_named(dtype):
    arrays = [a.astype(dtype) for a in (QUERY, KEY, VALUE)]
    with pytest.raises(ValueError, match=r"indices\[1\] is 3; expected -1 \(ignored\) or a block of 8 keys, from 0 to 2"):
        icecore.attend_indices(*arrays, [2, 3], block_size=8)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        icecore.attend_indices(*arrays, [0], block_size=0)


def test_shapes_that_broadcast():
    arrays = inputs((2, 6, 5, 16), (2, 3, 50, 16), 16)
    full = lists(0, 2, 6, 5, 9, keys=50)
    four = [full[:1], full[:, :1], full[:, :3], full[:, :, :1], full[..., :0]]
    for part in (*four, full[0], full[0, :3], full[0, 0], full[0, 0, 0]):
        result = icecore.attend_indices(*arrays, part, return_lse=True)
        assert_attends(result, *arrays, part)
        for one, other in zip(icecore.attend_indices(*arrays, whole(part, *arrays[:2]), return_lse=True), result, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_types(dtype):
    arrays = inputs((3, 7, 16), (1, 100, 16), 16)
    indices = lists(0, 3, 7, 40, keys=100, padding=0.0)
    assert_same_bits(icecore.attend_indices(*arrays, indices.astype(dtype)), icecore.attend_indices(*arrays, indices))
    assert_same_bits(icecore.attend_indices(*arrays, indices.tolist()), icecore.attend_indices(*arrays, indices))


LAYOUTS = {
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
    "column major": np.asfortranarray,
    "unaligned": lambda a: np.frombuffer(b"-" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "field of records": lambda a: np.rec.fromarrays([a.astype("i1"), a], names="tag,own")["own"],
}


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_indices_do_not_matter(layout, dtype):
    arrays = inputs((2, 6, 5, 16), (2, 3, 50, 16), 16)
    indices = lists(0, 2, 6, 5, 140, keys=50, dtype=dtype)
    view = LAYOUTS[layout](indices)
    np.testing.assert_array_equal(view, indices)
    assert_same_bits(icecore.attend_indices(*arrays, view), icecore.attend_indices(*arrays, indices))


@pytest.mark.parametrize("group", [2, 12])
def test_strides_of_arrays_do_not_matter(isa, group):
    arrays = inputs((2, group, 20, 19), (2, 1, 90, 19), 21, "bits")
    indices = lists(0, 20, 70, keys=90)
    expected = icecore.attend_indices(*arrays, indices)
    for layout in (
        lambda a: np.repeat(a, 2, axis=-2)[..., ::2, :],
        lambda a: np.ascontiguousarray(a[:, ::-1, ::-1])[:, ::-1, ::-1],
        np.asfortranarray,
    ):
        assert_same_bits(icecore.attend_indices(*map(layout, arrays), indices), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bits", "float64"])
def test_out(dtype):
    arrays = inputs((2, 4, 7, 16), (2, 2, 90, 16), 21, dtype)
    indices = lists(0, 7, 40, keys=90)
    expected = icecore.attend_indices(*arrays, indices)
    for out in (np.full((2, 4, 7, 21), 7, expected.dtype), np.full((21, 7, 4, 2), 7, expected.dtype).T):
        assert icecore.attend_indices(*arrays, indices, out=out) is out
        assert_same_bits(out, expected)


# ---- What the indices mean ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", [1, 12])
def test_a_key_listed_twice_counts_twice(dtype, group):
    query, key, value = inputs((group, 4, 16), (1, 30, 16), 16, dtype)
    twice = icecore.attend_indices(query, key, value, [3, 8, 3, 3], return_lse=True)
    rows = [3, 8, 3, 3]
    there = icecore.attention(query, key[:, rows], value[:, rows], return_lse=True)
    for one, other in zip(twice, there, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
@pytest.mark.parametrize("group", [1, 3, 12])
def test_a_query_that_sees_no_key_gives_zero(dtype, group):
    query, key, value = inputs((group, 6, 8), (1, 10, 8), 5, dtype)
    indices = lists(0, 6, 200, keys=10)
    indices[2] = -1
    indices[3] = 9  # later than query 3, which stands at 10 - 6 + 3 = 7
    out, lse = icecore.attend_indices(query, key, value, indices, causal=True, return_lse=True)
    assert not decode(out[:, 2:4]).any()
    assert np.all(lse[:, 2:4] == -np.inf)
    assert np.isfinite(lse[:, [0, 1, 4, 5]]).all()


def test_more_queries_than_keys_when_causal():
    arrays = inputs((2, 20, 8), (2, 12, 8), 5)
    indices = lists(0, 20, 30, keys=12)
    result = icecore.attend_indices(*arrays, indices, causal=True, return_lse=True)
    assert_attends(result, *arrays, indices, causal=True)
    assert np.all(result[1][:, :8] == -np.inf)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bits", "float64"])
@pytest.mark.parametrize("group", [1, 3, 12])
def test_only_chosen_visible_keys_show_what_they_hold(isa, group, dtype, number):
    query, key, value = inputs((group, 6, 8), (1, 50, 8), 5, dtype)
    indices = lists(0, 6, 60, keys=50)
    indices[indices == 10] = 11
    indices[:3] = np.where(indices[:3] == 47, 12, indices[:3])
    indices[3:, 5] = 47
    # key 10 is listed nowhere; 47 by query 0, which stands at 44 and cannot see it, and by queries 3 to 5, which can
    indices[0, 0] = 47
    # the oracle sums in another order where values are not finite
    same = assert_same_bits if dtype != "float64" else lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13)
    expected = icecore.attend_indices(query, key, value, indices, causal=True, return_lse=True)
    odd_key, odd_value = key.copy(), value.copy()
    odd_key[:, 10], odd_value[:, 10] = encode(np.float32(number), dtype), encode(np.float32(number), dtype)
    odd_value[:, 47, 2] = encode(np.float32(number), dtype)
    out, lse = icecore.attend_indices(query, odd_key, odd_value, indices, causal=True, return_lse=True)
    same(out[:, :3], expected[0][:, :3])
    same(lse, expected[1])
    np.testing.assert_array_equal(decode(out[:, 3:, 2]), np.full((group, 3), number))
    same(np.delete(out, 2, -1), np.delete(expected[0], 2, -1))
    odd_key[:, 47, 1] = encode(np.float32(np.nan), dtype)
    out, lse = icecore.attend_indices(query, odd_key, odd_value, indices, causal=True, return_lse=True)
    assert np.isnan(decode(out[:, 3:])).all()
    assert np.isnan(lse[:, 3:]).all()
    same(out[:, :3], expected[0][:, :3])


def test_parts_merge():
    query, key, value = inputs((4, 20, 32), (2, 400, 32), 32)
    indices = np.random.default_rng(0).permuted(np.tile(np.arange(400), (2, 20, 1)), axis=-1)
    parts = [icecore.attend_indices(query, key, value, part, return_lse=True) for part in np.split(indices, [1, 150], axis=-1)]
    out, lse = icecore.merge_states(*zip(*parts, strict=True))
    expected, expected_lse = reference.attention(*(as_four(a) for a in (query, key, value)))
    assert relative_error(out, expected[0]) < 1e-6
    np.testing.assert_allclose(lse, expected_lse[0], rtol=1e-6)


@pytest.mark.parametrize("group", [1, 3, 12])
@pytest.mark.parametrize("dtype", ["float32", "bits"])
def test_threads_do_not_change_a_bit(isa, dtype, group):
    arrays = inputs((2, 2 * group, 70, 33), (2, 2, 500, 33), 20, dtype)
    indices = lists(0, 2, 2, 70, 200, keys=500)
    one = icecore.attend_indices(*arrays, indices, return_lse=True, num_threads=1)
    for threads in (2, 5):
        for a, b in zip(icecore.attend_indices(*arrays, indices, return_lse=True, num_threads=threads), one, strict=True):
            assert_same_bits(a, b)


def test_a_list_longer_than_the_keys():
    arrays = inputs((2, 3, 16), (2, 5, 16), 16)
    indices = lists(0, 2, 3, 5000, keys=5)
    assert_attends(icecore.attend_indices(*arrays, indices, return_lse=True), *arrays, indices)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)], ids=str)
def test_empty_axes(shape):
    batch, heads, queries = shape
    arrays = inputs((batch, heads, queries, 4), (batch, heads, 6, 4), 5)
    out, lse = icecore.attend_indices(*arrays, lists(0, *shape, 7, keys=6), return_lse=True)
    assert out.shape == (*shape, 5)
    assert lse.shape == shape


# ---- Bad input ----

QUERY, KEY, VALUE = inputs((2, 4, 5, 8), (2, 2, 20, 8), 6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [20, -2, 2**31 - 1, -(2**31), 2**40, -(2**63), 2**63 - 1])
@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((2, 4, 5, 7), (1, 3, 2, 4)),
        ((2, 2, 5, 7), (1, 1, 4, 6)),
        ((1, 4, 1, 7), (0, 2, 0, 3)),
        ((4, 5, 7), (3, 0, 0)),
        ((2, 5, 7), (1, 2, 6)),
        ((5, 7), (4, 1)),
        ((7,), (5,)),
    ],
    ids=str,
)
def test_a_bad_index_is_named_with_its_place(shape, place, number, dtype):
    arrays = [a.astype(dtype) for a in (QUERY, KEY, VALUE)]
    indices = lists(0, *shape, keys=20, dtype=np.int32 if abs(number) < 2**31 else np.int64)
    indices[place] = number
    indices[(*(n - 1 for n in shape),)] = 99 if place != tuple(n - 1 for n in shape) else number  # the first one is named
    out = np.full((2, 4, 5, 6), 7, dtype)
    where = ", ".join(map(str, place))
    for layout in (np.ascontiguousarray, np.asfortranarray):
        message = rf"indices\[{where}\] is {number}; expected -1 \(ignored\) or a key, from 0 to 19"
        with pytest.raises(ValueError, match=message):
            icecore.attend_indices(*arrays, layout(indices), out=out)
    assert (out == 7).all()


def test_the_first_bad_index_among_many_lists():
    arrays = inputs((2, 3000, 8), (2, 50, 8), 8)
    indices = lists(0, 2, 3000, 40, keys=50)
    for place in ((1, 2999, 0), (1, 17, 39), (0, 2500, 3)):
        indices[place] = 50
        with pytest.raises(ValueError, match=rf"indices\[{place[0]}, {place[1]}, {place[2]}\] is 50"):
            icecore.attend_indices(*arrays, indices)


def test_large_unsigned_numbers_are_no_padding():
    for number, dtype in ((2**64 - 1, np.uint64), (2**63, np.uint64), (2**32 - 1, np.uint32)):
        with pytest.raises(ValueError, match=rf"indices\[1\] is {number};"):
            icecore.attend_indices(QUERY, KEY, VALUE, np.array([0, number], dtype))


def test_no_keys_at_all():
    out, lse = icecore.attend_indices(QUERY, KEY[:, :, :0], VALUE[:, :, :0], [-1, -1], return_lse=True)
    assert not out.any()
    assert np.all(lse == -np.inf)
    with pytest.raises(ValueError, match=r"indices\[1\] is 0; expected -1 \(ignored\), as there are no keys"):
        icecore.attend_indices(QUERY, KEY[:, :, :0], VALUE[:, :, :0], [-1, 0])


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (np.zeros((5, 7)), TypeError, "indices has dtype float64; expected integers"),
        (np.zeros((5, 7), bool), TypeError, "indices has dtype bool; expected integers"),
        ([], TypeError, "indices has dtype float64"),
        (3, ValueError, "indices is a number"),
        (np.zeros((1, 2, 4, 5, 7), int), ValueError, r"indices has shape \(1, 2, 4, 5, 7\); .* \(2, 4, 5, 7\)"),
        (np.zeros((3, 5, 7), int), ValueError, r"indices has shape \(3, 5, 7\); .* \(2, 4, 5, 7\), or with 2 in place of 4"),
        (np.zeros((4, 7), int), ValueError, r"indices has shape \(4, 7\); .*\(2, 4, 5, 7\)"),
        (np.zeros((3, 4, 5, 7), int), ValueError, r"indices has shape \(3, 4, 5, 7\)"),
    ],
)
def test_indices_that_cannot_be(indices, error, message):
    with pytest.raises(error, match=message):
        icecore.attend_indices(QUERY, KEY, VALUE, indices)


def test_other_arguments():
    with pytest.raises(ValueError, match="scale must lie from"):
        icecore.attend_indices(QUERY, KEY, VALUE, [0], scale=np.nan)
    with pytest.raises(ValueError, match="num_threads"):
        icecore.attend_indices(QUERY, KEY, VALUE, [0], num_threads=0)
    with pytest.raises(ValueError, match="value has shape"):
        icecore.attend_indices(QUERY, KEY, VALUE[:, :, :3], [0])
    with pytest.raises(ValueError, match="out overlaps query"):
        icecore.attend_indices(QUERY, KEY, np.zeros((2, 2, 20, 8), np.float32), [0], out=QUERY)
    memory = np.zeros((2, 4, 5, 6), np.int32)
    with pytest.raises(ValueError, match="out overlaps indices"):
        icecore.attend_indices(QUERY, KEY, VALUE, memory, out=memory.view(np.float32))
