"""attention(lengths=): each entry of a batch is a call of its own, and its padding counts for nothing."""

import numpy as np
import pytest
from helpers import assert_same_bits, encode

import icecore
from icecore.selectors import Pages

LENGTHS = [300, 1, 0, 147, 256]
OPTIONS = {
    "exact": {}, "window": {"window": 20, "sinks": 2}, "k": {"k": 8, "window": 16}, "pages": {"selector": Pages(32)},
    "tolerance": {"tolerance": 0.1, "window": 16}, "last_exact": {"k": 8, "window": 16, "last_exact": 3},
}


def arrays(queries, dtype="float32", keys=300):
    rng = np.random.default_rng(0)
    shapes = (len(LENGTHS), 4, queries, 16), (len(LENGTHS), 2, keys, 16), (len(LENGTHS), 2, keys, 9)
    return [encode(2 * rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def own(count, rows, side):
    """The slice of an entry's own rows."""
    return slice(0, count) if side == "right" else slice(rows - count, rows)


@pytest.fixture
def always_near_far(monkeypatch):
    monkeypatch.setattr(icecore._cost_model, "choose", lambda *_: "near_far")


@pytest.mark.filterwarnings("ignore:.* ended above:RuntimeWarning")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", [300, 5, 1])
@pytest.mark.parametrize("way", OPTIONS)
def test_an_entry_is_a_call_of_its_own_bit_for_bit(way, queries, causal, side, always_near_far):
    options = {**OPTIONS[way], "causal": causal}
    if not causal and way in ("k", "tolerance", "last_exact"):
        del options["window"]
    query, key, value = arrays(queries)
    everything = {"return_lse": True, "return_info": True}
    out, lse, info = icecore.attention(query, key, value, lengths=LENGTHS, padding_side=side, **options, **everything)
    for i, length in enumerate(LENGTHS):
        count = min(queries, length) if causal else queries
        rows, keys = own(count, queries, side), own(length, 300, side)
        alone = icecore.attention(query[i, :, rows], key[i, :, keys], value[i, :, keys], **options, **everything)
        assert_same_bits(out[i, :, rows], alone[0])
        assert_same_bits(lse[i, :, rows], alone[1])
        np.testing.assert_array_equal(info.near_keys[i, :, rows], alone[2].near_keys)
        padding = np.delete(np.arange(queries), np.arange(queries)[rows])
        assert not out[i, :, padding].any() and (lse[i, :, padding] == -np.inf).all()
        assert not info.near_keys[i, :, padding].any() and not info.captured_mass[i, :, padding].any()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_it_is_what_a_mask_of_the_padding_gives(dtype, side):
    query, key, value = arrays(5) if dtype == "float64" else arrays(5, dtype)
    if dtype == "float64":
        query, key, value = (array.astype(dtype) for array in (query, key, value))
    keep = np.zeros((len(LENGTHS), 1, 1, 300), bool)
    for i, length in enumerate(LENGTHS):
        keep[i, :, :, own(length, 300, side)] = True
    out = icecore.attention(query, key, value, lengths=np.array(LENGTHS), padding_side=side)
    masked = icecore.attention(query, key, value, attn_mask=keep)
    np.testing.assert_allclose(out.astype(np.float64), masked.astype(np.float64), atol=1e-5 if "32" in dtype else 0.01)


@pytest.mark.parametrize("mask", [(1, 1, 1, 300), (5, 1, 1, 300), (1, 4, 7, 300), (300,)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_are_cut_as_the_keys_and_queries_are(mask, kind):
    query, key, value = arrays(7)
    mask = np.random.default_rng(1).standard_normal(mask).astype(np.float32)
    mask = mask > -1 if kind == "bool" else mask
    full = np.broadcast_to(mask, (5, 4, 7, 300))
    out = icecore.attention(query, key, value, lengths=LENGTHS, attn_mask=mask)
    for i, length in enumerate(LENGTHS):
        alone = (array[i, :, :length] for array in (key, value))
        assert_same_bits(out[i], icecore.attention(query[i], *alone, attn_mask=full[i, :, :, :length]))


def test_padding_is_never_read(isa):
    query, key, value = arrays(5)
    clean = icecore.attention(query, key, value, lengths=LENGTHS)
    for i, length in enumerate(LENGTHS):
        key[i, :, length:], value[i, :, length:] = np.nan, np.inf
    assert_same_bits(icecore.attention(query, key, value, lengths=LENGTHS), clean)


def test_out_takes_the_result_and_one_entry_may_come_without_its_axis():
    query, key, value = arrays(5)
    out = np.full((len(LENGTHS), 4, 5, 9), np.nan, np.float32)
    assert icecore.attention(query, key, value, lengths=LENGTHS, out=out) is out
    assert_same_bits(out, icecore.attention(query, key, value, lengths=LENGTHS))
    for entry in ((0,), (0, 0)):
        one = icecore.attention(query[entry], key[entry], value[entry], lengths=[70])
        keys = (slice(None),) * (3 - len(entry) - 1) + (slice(0, 70),)
        assert_same_bits(one, icecore.attention(query[entry], key[entry][keys], value[entry][keys]))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lengths": [300, 1, 0, 147]}, ValueError, r"lengths has shape \(4,\); expected \(5,\), one for each entry"),
        ({"lengths": 3}, ValueError, r"lengths has shape \(\); expected \(5,\)"),
        ({"lengths": [300, 1, -1, 0, 0]}, ValueError, r"lengths\[2\] must be from 0 to 300, the rows of key, got -1"),
        ({"lengths": [300, 1, 1, 0, 301]}, ValueError, r"lengths\[4\] must be from 0 to 300, the rows of key, got 301"),
        ({"lengths": [2.0] * 5}, TypeError, "lengths has dtype float64; expected integers"),
        ({"lengths": [True] * 5}, TypeError, "lengths has dtype bool; expected integers"),
        ({"padding_side": "top"}, ValueError, "padding_side must be 'right' or 'left', got 'top'"),
    ],
)
def test_wrong_lengths_are_refused_before_any_work(options, error, match):
    query, key, value = arrays(5)
    out = np.full((len(LENGTHS), 4, 5, 9), 7, np.float32)
    with pytest.raises(error, match=match):
        icecore.attention(query, key, value, out=out, **options)
    assert (out == 7).all()
