"""attn_mask: bool keeps, floating adds; any broadcast, dtype and strides; together with causal and window."""

import numpy as np
import pytest
from helpers import assert_exact, assert_same_bits, encode, inputs, near_far
from hypothesis import given
from hypothesis import strategies as st

import icecore
from icecore import reference

HEADS, KEYS, DIM = 4, 150, 12
MASK_DTYPES = ("bool", "float32", "float16", "float64", "bfloat16")


def random_mask(seed, shape, dtype, hidden=0.3):
    """Bool, or finite numbers with -inf where bool would be False."""
    generator = np.random.default_rng(seed)
    keep = generator.random(shape) >= hidden
    if dtype == "bool":
        return keep
    return encode(np.where(keep, generator.standard_normal(shape, np.float32), -np.inf), dtype)


@st.composite
def masks(draw, queries):
    """A mask that broadcasts to (2, HEADS, queries, KEYS)."""
    full = (2, HEADS, queries, KEYS)
    shape = tuple(draw(st.sampled_from([1, n])) for n in full)[draw(st.integers(0, 3)) :]
    hidden = draw(st.sampled_from([0.0, 0.3, 0.99, 1.0]))
    return random_mask(draw(st.integers(0, 2**32)), shape, draw(st.sampled_from(MASK_DTYPES)), hidden)


# with few queries the row kernels run, with many the panel kernels
@pytest.mark.parametrize("queries", [3, 60])
@given(data=st.data(), causal=st.booleans(), window=st.none() | st.integers(0, 200), sinks=st.integers(0, 5))
def test_equals_the_float64_oracle(isa, queries, data, causal, window, sinks):
    mask = data.draw(masks(queries))
    query, key, value = inputs((2, HEADS, queries, DIM), (2, 2, KEYS, DIM), DIM)
    options = {"attn_mask": mask, "causal": causal, "window": window, "sinks": sinks}
    result = icecore.attention(query, key, value, return_lse=True, **options)
    assert_exact(result, query, key, value, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bits", "float64"])
@pytest.mark.parametrize("mask_dtype", ["bool", "float32"])
def test_every_input_dtype_takes_masks(isa, dtype, mask_dtype):
    query, key, value = inputs((HEADS, 60, DIM), (2, KEYS, DIM), DIM, dtype)
    mask = random_mask(0, (60, KEYS), mask_dtype)
    result = icecore.attention(query, key, value, attn_mask=mask, return_lse=True)
    assert_exact(result, query, key, value, attn_mask=mask)


def test_a_mask_over_keys_that_are_split(isa):
    query, key, value = inputs((HEADS, 2, DIM), (2, 5000, DIM), DIM)
    for dtype in ("bool", "float32"):
        mask = random_mask(0, (2, 5000), dtype)
        result = icecore.attention(query, key, value, attn_mask=mask, return_lse=True)
        assert_exact(result, query, key, value, attn_mask=mask)


VIEWS = {
    "transposed": lambda m: np.ascontiguousarray(m.T).T,
    "reversed": lambda m: np.ascontiguousarray(m[::-1, ::-1])[::-1, ::-1],
    "every second key": lambda m: np.repeat(m, 2, axis=1)[:, ::2],
    "unaligned": lambda m: np.frombuffer(b"-" + m.tobytes(), m.dtype, offset=1).reshape(m.shape),
    "big-endian": lambda m: m.astype(m.dtype.newbyteorder(">")),
    "list": lambda m: m.tolist(),
}


@pytest.mark.parametrize("queries", [3, 60])
@pytest.mark.parametrize("dtype", ["bool", "float32"])
@pytest.mark.parametrize("view", VIEWS)
def test_strides_of_the_mask_do_not_matter(view, dtype, queries):
    query, key, value = inputs((HEADS, queries, DIM), (2, KEYS, DIM), DIM)
    mask = random_mask(0, (queries, KEYS), dtype)
    expected = icecore.attention(query, key, value, attn_mask=mask)
    assert_same_bits(icecore.attention(query, key, value, attn_mask=VIEWS[view](mask)), expected)


@pytest.mark.parametrize("queries", [3, 60])
class TestSameBits:
    """Masks that mean the same give the same result, bit for bit."""

    def attend(self, queries, **options):
        query, key, value = inputs((HEADS, queries, DIM), (2, KEYS, DIM), DIM)
        return np.concatenate(
            [a.ravel() for a in icecore.attention(query, key, value, return_lse=True, **options)]
        )

    def test_keeping_all_and_no_mask(self, queries):
        expected = self.attend(queries)
        assert_same_bits(self.attend(queries, attn_mask=np.True_), expected)
        assert_same_bits(self.attend(queries, attn_mask=np.zeros((queries, 1))), expected)

    def test_bool_and_minus_infinity(self, queries):
        keep = random_mask(0, (queries, KEYS), "bool")
        bias = np.where(keep, 0.0, -np.inf)
        assert_same_bits(self.attend(queries, attn_mask=bias), self.attend(queries, attn_mask=keep))

    def test_a_causal_mask_and_causal(self, queries):
        keep = reference.dense.visible_keys(queries, KEYS, causal=True)
        assert_same_bits(self.attend(queries, attn_mask=keep), self.attend(queries, causal=True))


@pytest.mark.parametrize("queries", [3, 60])
@pytest.mark.parametrize("dtype", MASK_DTYPES)
def test_a_fully_masked_row_gives_zero(queries, dtype):
    query, key, value = inputs((HEADS, queries, DIM), (2, KEYS, DIM), DIM)
    mask = random_mask(0, (queries, KEYS), dtype, hidden=0.0)
    mask[1] = False if dtype == "bool" else -np.inf
    out, lse = icecore.attention(query, key, value, attn_mask=mask, return_lse=True)
    assert not out[:, 1].any()
    assert np.all(lse[:, 1] == -np.inf)
    assert np.isfinite(np.delete(lse, 1, axis=1)).all()


@pytest.mark.parametrize("dtype", ["bool", "float32"])
@pytest.mark.parametrize("causal", [False, True])
def test_info_counts_the_keys_a_mask_leaves(dtype, causal):
    query, key, value = inputs((HEADS, 5, DIM), (2, 9, DIM), DIM)
    mask = random_mask(1, (5, 9), dtype)
    info = icecore.attention(query, key, value, causal=causal, attn_mask=mask, return_info=True)[1]
    visible = reference.dense.visible_keys(5, 9, causal) & (mask if dtype == "bool" else ~np.isneginf(mask))
    np.testing.assert_array_equal(info.near_keys, np.broadcast_to(visible.sum(axis=1), (HEADS, 5)))


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -3.3895313892515355e38])
def test_info_counts_no_key_that_the_lowest_number_hides(lowest):
    query, key, value = inputs((HEADS, 3, DIM), (2, 9, DIM), DIM)
    mask = np.zeros((3, 9), np.float32)
    mask[0, 4:], mask[1], mask[2, 0] = lowest, lowest, -np.inf
    mask[1, 0] = -np.inf
    info = icecore.attention(query, key, value, attn_mask=mask, return_info=True)[1]
    np.testing.assert_array_equal(info.near_keys, np.broadcast_to([4, 8, 8], (HEADS, 3)))


LOWEST, HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max


def rows_of_extremes(queries, keys):
    """Row 0 of the lowest number alone, row 1 with one key left, row 2 with three keys of the highest, the others halved."""
    mask = np.zeros((queries, keys), np.float32)
    mask[0] = LOWEST
    mask[1, 1:] = LOWEST
    mask[2, :3] = HIGHEST
    mask[3:, keys // 2 :] = LOWEST
    return mask


def assert_rows_of_extremes(out, value, group):
    """As rows_of_extremes says, of out (H, L, dv) and value (H_k, S, dv)."""
    value = np.repeat(value.astype(np.float64), group, axis=0)
    np.testing.assert_allclose(out[:, 0], value.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(out[:, 1], value[:, 0], atol=0.02)
    np.testing.assert_allclose(out[:, 2], value[:, :3].mean(axis=1), atol=0.02)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("queries", [4, 60])
@pytest.mark.parametrize("mask_dtype", ["float32", "float64"])
def test_finite_numbers_of_any_size_never_hide_and_never_give_nan(isa, queries, mask_dtype):
    """The lowest finite number, by which many masks hide, leaves a row of nothing else the mean of all values."""
    query, key, value = inputs((HEADS, queries, DIM), (2, KEYS, DIM), DIM)
    mask = rows_of_extremes(queries, KEYS).astype(mask_dtype)
    if mask_dtype == "float64":
        mask[np.abs(mask) > 1] *= 1e100  # finite, and beyond float32
    out, lse = icecore.attention(query, key, value, attn_mask=mask, return_lse=True)
    assert_rows_of_extremes(out, value, 2)
    assert np.isfinite(lse).all()
    oracle, _ = reference.attention(query[None], key[None], value[None], attn_mask=mask[None, None])
    np.testing.assert_allclose(out, oracle[0], atol=0.02)


@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("queries", [4, 60])
def test_finite_numbers_of_any_size_where_bfloat16_is_multiplied(isa, queries, scale):
    """Of a width that matrix tiles take, whose scores are scaled after the mask is added."""
    query, key, value = inputs((HEADS, queries, 64), (2, KEYS, 64), 64, "bfloat16")
    query = query * np.asarray(0.1, query.dtype)
    mask = rows_of_extremes(queries, KEYS)
    out, lse = icecore.attention(query, key, value, attn_mask=mask, scale=scale, return_lse=True)
    assert_rows_of_extremes(out.astype(np.float32), value, 2)
    assert np.isfinite(lse).all()


def test_a_key_that_a_mask_hides_stays_hidden_whatever_its_score(isa):
    """Scores of 4e9 beside the lowest finite number, of which one in a block is hidden for good."""
    query, key, value = inputs((2, 60, 64), (1, 64, 64), 64, "bfloat16")
    query[...], key[...] = 1e4, 0.0
    key[:, 5] = 5e4  # 64 1e4 5e4 / 8
    mask = np.zeros((60, 64), np.float32)
    mask[:, 5], mask[:, 9] = LOWEST, -np.inf
    out = icecore.attention(query, key, value, attn_mask=mask)
    left = np.delete(value[0].astype(np.float64), [5, 9], axis=0).mean(axis=0)
    np.testing.assert_allclose(out.astype(np.float64), np.broadcast_to(left, out.shape), atol=0.02)


def test_a_value_that_is_no_number_shows_where_the_lowest_number_is_all_there_is(isa):
    query, key, value = inputs((2, 64, 64), (1, 64, 64), 64, "bfloat16")
    value[:, 3, 0] = np.inf
    mask = np.zeros((64, 64), np.float32)
    mask[40] = LOWEST
    out = icecore.attention(query, key, value, causal=True, attn_mask=mask)
    assert (out[:, 40, 0] == np.inf).all()
    assert np.isfinite(out[:, 40, 1:].astype(np.float32)).all()


@pytest.mark.parametrize(
    "options", [{"k": 40}, {"threshold": 0.01}, {"tolerance": 0.05}, {"k": 3000}], ids=str
)
@pytest.mark.parametrize("dim", [DIM, 64])
def test_finite_numbers_of_any_size_in_near_far_attention(isa, options, dim):
    query, key, value = inputs((2, 60, dim), (2, 3000, dim), dim)
    mask = rows_of_extremes(60, 3000)
    result = near_far(query, key, value, attn_mask=mask, **options)
    assert_rows_of_extremes(result.out[0], value, 1)
    assert np.isfinite(result.lse).all()
    assert np.isfinite(result.captured_mass).all()
    hidden = near_far(query, key, value, attn_mask=np.where(mask == LOWEST, np.float32(-np.inf), mask), **options)
    np.testing.assert_allclose(result.out[:, :, 3:], hidden.out[:, :, 3:], atol=0.1)
