"""attention() without k differs from float64 by rounding only: any shape, layout, dtype, instruction set."""

import ml_dtypes
import numpy as np
import pytest
from helpers import DTYPES, as_four, assert_exact, assert_same_bits, decode, inputs, normal, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

import icecore
from icecore import reference

# around the widths of vectors, register tiles, panels and key blocks
AWKWARD = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129]
lengths = st.one_of(st.integers(0, 20), st.sampled_from(AWKWARD))
dims = st.one_of(st.integers(1, 40), st.sampled_from([*AWKWARD, 80, 255, 256, 257, 512, 575, 576]))


@st.composite
def problems(draw):
    """(query, key, value, options)."""
    dim, value_dim, queries, keys = draw(dims), draw(dims), draw(lengths), draw(lengths)
    batch, key_heads, group = draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    query_axes, key_axes = draw(
        st.sampled_from(
            [((), ()), ((key_heads * group,), (key_heads,)), ((batch, key_heads * group), (batch, key_heads))]
        )
    )
    seed, dtype = draw(st.integers(0, 2**32)), draw(st.sampled_from(DTYPES))
    arrays = inputs((*query_axes, queries, dim), (*key_axes, keys, dim), value_dim, dtype, seed)
    options = {
        "causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(0, 80)),
        "sinks": draw(st.integers(0, 20)),
        "scale": draw(st.sampled_from([None, None, 0.0, -0.3, 0.5, 2.0])),
    }
    return *arrays, options


@settings(max_examples=80)
@given(problems())
def test_equals_the_float64_oracle(isa, problem):
    query, key, value, options = problem
    result = icecore.attention(query, key, value, return_lse=True, **options)
    assert_exact(result, query, key, value, **options)


@pytest.fixture(scope="module", params=[(64, False), (64, True), (128, False), (128, True)], ids=str)
def long_problem(request):
    """(query, key, value, causal, expected out) with 4096 queries and keys."""
    dim, causal = request.param
    query, key, value = inputs((4096, dim), (4096, dim), dim)
    expected, _ = reference.attention(*(as_four(a) for a in (query, key, value)), causal=causal)
    return query, key, value, causal, expected[0, 0]


def test_float32_error_at_4096_keys(long_problem, isa):
    query, key, value, causal, expected = long_problem
    assert relative_error(icecore.attention(query, key, value, causal=causal), expected) <= 2e-6


# Few queries over many keys are computed row by row, with the keys split in ranges that are merged.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 2, 5, 8, 9])
def test_decode_shapes(isa, queries, dtype):
    query, key, value = inputs((4, queries, 40), (2, 6000, 40), 24, dtype)
    for options in ({"causal": True}, {"causal": True, "window": 4500, "sinks": 3}, {"window": 70}):
        result = icecore.attention(query, key, value, return_lse=True, **options)
        assert_exact(result, query, key, value, **options)


def test_many_heads_on_one_key_head_of_a_long_cache(isa):
    query, key, value = inputs((2, 8, 1, 64), (2, 1, 9001, 64), 64)
    result = icecore.attention(query, key, value, causal=True, return_lse=True)
    assert_exact(result, query, key, value, causal=True)


@pytest.mark.parametrize(("dim", "value_dim"), [(32, 16), (64, 64), (96, 80), (256, 512)])
def test_bfloat16_widths_of_matrix_tiles(isa, dim, value_dim):
    query, key, value = inputs((3, 100, dim), (3, 333, dim), value_dim, "bfloat16")
    for options in ({}, {"causal": True, "window": 150, "sinks": 5}):
        result = icecore.attention(query, key, value, return_lse=True, **options)
        assert_exact(result, query, key, value, **options)


@pytest.mark.parametrize("options", [{}, {"causal": True, "window": 150, "sinks": 5}])
@pytest.mark.parametrize("rise", [-0.5, 0.02, 0.5, 3.0])
def test_bfloat16_scores_that_rise_or_fall_along_the_keys(isa, rise, options):
    """By a little, or by far more than a softmax's reference may lag behind: in blocks, and from one block to the next."""
    query, key, value = inputs((2, 90, 64), (2, 400, 64), 32, "float32")
    query[..., 0] = 1 + np.arange(90) % 7
    key[..., 0] = rise * np.arange(400)
    query, key, value = (array.astype(ml_dtypes.bfloat16) for array in (query, key, value))
    assert_exact(icecore.attention(query, key, value, return_lse=True, **options), query, key, value, **options)


def test_tiles_that_share_stretches_of_bfloat16_keys(isa):
    """More keys than a stretch, and so many rows that threads take several tiles together: the same bits for any threads."""
    query, key, value = inputs((1600, 128), (1600, 128), 128, "bfloat16")
    options, results = {"causal": True, "window": 1300, "sinks": 5}, []
    for threads in (1, 2, 7):
        with icecore.threads(threads):
            results.append(icecore.attention(query, key, value, return_lse=True, **options))
    assert_exact(results[0], query, key, value, **options)
    for out, lse in results[1:]:
        assert_same_bits(out, results[0][0])
        assert_same_bits(lse, results[0][1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dim", "sinks"), [(64, 200), (64, 2500), (64, 3000), (576, 200)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_sinks_beside_a_window(isa, dtype, dim, sinks, threads):
    """Sinks that splits of the keys, and stretches of packed ones, begin and end among; some rows see them all, others not."""
    query, key, value = inputs((2, 100, dim), (1, 4608, dim), dim, dtype)
    ranges = np.tile([0, 4608], (1, 100, 1))
    ranges[0, ::3] = 100, 4600
    ranges[0, 1::7, 0] = sinks - 30
    for more in ({}, {"key_ranges": ranges}):
        options = {"causal": True, "window": 64, "sinks": sinks} | more
        with icecore.threads(threads):
            result = icecore.attention(query, key, value, return_lse=True, **options)
        assert_exact(result, query, key, value, **options)


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_a_query_that_sees_no_key_gives_zero(dtype):
    query, key, value = inputs((60, 8), (50, 8), 5, dtype)
    out, lse = icecore.attention(query, key, value, causal=True, return_lse=True)
    # queries 0 to 9 stand before key 0
    assert not decode(out[:10]).any()
    assert np.all(lse[:10] == -np.inf)
    assert decode(out[10:]).any(axis=-1).all()
    assert np.isfinite(lse[10:]).all()


@pytest.mark.parametrize("queries", [3, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_keys_at_all(dtype, queries):
    query, key, value = inputs((4, queries, 8), (2, 0, 8), 5, dtype)
    out, lse = icecore.attention(query, key, value, return_lse=True)
    assert out.shape == (4, queries, 5)
    assert not decode(out).any()
    assert np.all(lse == -np.inf)


def rows_of_a_record(array):
    """Strides that are no multiple of the element's size."""
    records = np.zeros(array.shape[:-1], [("tag", "i1"), ("row", array.dtype, array.shape[-1])])
    records["row"] = array
    return records["row"]


LAYOUTS = {
    "sliced rows": lambda a: np.repeat(a, 2, axis=-2)[..., ::2, :],
    "part of wider rows": lambda a: np.concatenate([a, a, a], axis=-1)[..., a.shape[-1] : 2 * a.shape[-1]],
    "batch, length, heads, dim": lambda a: np.ascontiguousarray(a.swapaxes(-2, -3)).swapaxes(-2, -3),
    "reversed": lambda a: np.ascontiguousarray(a[:, ::-1, ::-1])[:, ::-1, ::-1],
    "reversed last axis": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "column major": np.asfortranarray,
    "every second component": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "unaligned": lambda a: np.frombuffer(b"-" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "rows of a record": rows_of_a_record,
}


@pytest.mark.parametrize("queries", [5, 70])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bits", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout, dtype, queries):
    arrays = inputs((2, 4, queries, 19), (2, 2, 90, 19), 21, dtype)
    expected = icecore.attention(*arrays, causal=True)
    views = [LAYOUTS[layout](a) for a in arrays]
    for view, array in zip(views, arrays, strict=True):
        np.testing.assert_array_equal(view, array)
    assert_same_bits(icecore.attention(*views, causal=True), expected)


@pytest.mark.parametrize("queries", [5, 70])
def test_broadcast_inputs(queries):
    query, key, value = normal(0, 3, 4, queries, 16), normal(1, 1, 1, 90, 16), normal(2, 1, 1, 1, 16)
    key, value = np.broadcast_to(key, (3, 2, 90, 16)), np.broadcast_to(value, (3, 2, 90, 16))
    result = icecore.attention(query, key, value, return_lse=True)
    assert_exact(result, query, key, value)
    assert_same_bits(result[0], icecore.attention(query, key.copy(), value.copy()))


OUT_LAYOUTS = {
    "contiguous": lambda b, h, n, d, dtype: np.full((b, h, n, d), 7, dtype),
    "batch, length, heads, dim": lambda b, h, n, d, dtype: np.full((b, n, h, d), 7, dtype).swapaxes(1, 2),
    "column major": lambda b, h, n, d, dtype: np.full((d, n, h, b), 7, dtype).T,
    "reversed": lambda b, h, n, d, dtype: np.full((b, h, n, d), 7, dtype)[:, ::-1, ::-1, ::-1],
    "part of wider rows": lambda b, h, n, d, dtype: np.full((b, h, n, d + 8), 7, dtype)[..., 3:-5],
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bits", "float64"])
@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out(layout, dtype):
    arrays = inputs((2, 4, 70, 16), (2, 2, 90, 16), 21, dtype)
    out = OUT_LAYOUTS[layout](2, 4, 70, 21, arrays[0].dtype)
    assert icecore.attention(*arrays, out=out) is out
    assert_same_bits(out, icecore.attention(*arrays))
    if layout == "part of wider rows":  # its neighbours are left alone
        assert np.all(out.base[..., :3] == 7)
        assert np.all(out.base[..., -5:] == 7)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": 9, "sinks": 2}, {"scale": -0.3}], ids=str
)
def test_float64_is_computed_by_the_oracle(options):
    query, key, value = inputs((4, 30, 8), (2, 40, 8), 5, "float64")
    out, lse, info = icecore.attention(query, key, value, return_lse=True, return_info=True, **options)
    expected, expected_lse = reference.attention(query[None], key[None], value[None], **options)
    assert info.path == "reference"
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(lse, expected_lse[0].astype(np.float32))


def test_lists_of_numbers_are_arrays_of_float64():
    out = icecore.attention([[1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[2.0], [4.0]])
    np.testing.assert_allclose(out, [[3.0]])


def test_info_of_an_exact_call():
    query, key, value = inputs((2, 5, 8), (1, 9, 8), 8)
    out, info = icecore.attention(query, key, value, causal=True, window=3, sinks=1, return_info=True)
    assert info.path == "exact"
    assert info.near_keys.dtype == np.int32
    np.testing.assert_array_equal(info.near_keys, [[4, 4, 4, 4, 4]] * 2)  # a window of 3 and one sink
    np.testing.assert_array_equal(info.captured_mass, np.ones((2, 5), np.float32))
    assert_same_bits(out, icecore.attention(query, key, value, causal=True, window=3, sinks=1))


def test_huge_window_and_sinks_are_no_limits():
    query, key, value = inputs((20, 8), (40, 8), 8)
    assert_same_bits(
        icecore.attention(query, key, value, causal=True, window=2**80, sinks=2**80),
        icecore.attention(query, key, value, causal=True),
    )


def test_a_window_over_more_keys_than_memory_could_hold():
    query, key, value = inputs((20, 8), (1, 8), 5)
    key, value = np.broadcast_to(key, (2**40, 8)), np.broadcast_to(value, (2**40, 5))
    out, lse = icecore.attention(query, key, value, causal=True, window=10, sinks=4, return_lse=True)
    np.testing.assert_allclose(out, value[:20], rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(14) + query @ key[0] / np.sqrt(8), rtol=1e-5)
