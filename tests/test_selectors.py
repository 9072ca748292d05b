"""attention(selector=): what all methods of choosing keys have in common."""

from dataclasses import asdict
from inspect import signature

import numpy as np
import pytest
from chosen_keys import arrays, clustered

import icecore
from icecore import reference
from icecore.selectors import (
    PDCI,
    ArkVale,
    BlockSparse,
    MagicPIG,
    MInference,
    Pages,
    RetroInfer,
    SparQ,
    TopK,
    VAttention,
    XAttention,
    Zeta,
)

#: One of each method.
EACH = [
    TopK(50), MInference(50, 120), BlockSparse(128), XAttention(8, 0.8), Pages(100), ArkVale(150, 32), PDCI(50, 100),
    SparQ(50, 9, 10), MagicPIG(5, 20, 4, 20), RetroInfer(0.1, 0.4, 128), VAttention(40, 8, 8, 0.2, 0.2), Zeta(50),
]
each_method = pytest.mark.parametrize("selector", EACH, ids=lambda selector: selector.name)


@each_method
def test_the_same_bits_for_any_number_of_threads(isa, selector):
    given = clustered(np.random.default_rng(12), 6, 2, 300, 1700, 48)
    one, two, again = (icecore.attention(*given, selector=selector, causal=True, num_threads=n) for n in (1, 2, 2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(two, again)


@each_method
def test_float64_is_computed_by_the_oracle(selector):
    wide = [a.astype(np.float64) for a in clustered(np.random.default_rng(13), 2, 1, 60, 600, 8)]
    out, info = icecore.attention(*wide, selector=selector, causal=True, seed=3, return_info=True)
    oracle = getattr(reference, f"{selector.name}_attention")
    seed = {"seed": 3} if "seed" in signature(oracle).parameters else {}
    assert info.path == "reference"
    np.testing.assert_allclose(out, oracle(*wide, causal=True, **asdict(selector), **seed)[0], atol=1e-12)


def test_what_it_does_not_know_is_not_told_and_infos_compare(isa):
    given = arrays(np.random.default_rng(7), 2, 1, 60, 50, 16, 3)
    info, other = (icecore.attention(*given, selector=Pages(16), return_info=True)[1] for _ in range(2))
    assert np.isnan(info.captured_mass).all() and "nan" not in str(info) and "near keys per query" in str(info)
    assert info == info and info != other and len({info, other}) == 2


@pytest.mark.parametrize("selector", [PDCI(7, 200), TopK(7)])
def test_of_equal_scores_as_many_are_kept_as_k_says(isa, selector):
    """Every key four times, and one value for all: the top seven scores are four equal ones and three of the next."""
    q, k, _ = arrays(np.random.default_rng(7), 2, 1, 60, 50, 16, 3)
    k, v = np.repeat(k, 4, axis=2), np.ones((1, 1, 200, 3), np.float32)
    out, lse, info = icecore.attention(q, k, v, selector=selector, return_lse=True, return_info=True)
    scores = np.sort((q / 4) @ k.swapaxes(-1, -2), axis=-1)[..., -7:]
    assert np.all(info.near_keys == 7)
    np.testing.assert_allclose(out, 1, atol=1e-6)
    np.testing.assert_allclose(lse, np.log(np.exp(scores).sum(axis=-1)), atol=1e-5)


def test_the_last_queries_may_attend_exactly():
    q, k, v = clustered(np.random.default_rng(14), 2, 1, 300, 900, 16)
    plain, out = (icecore.attention(q, k, v, selector=PDCI(9, 20), causal=True, last_exact=n) for n in (0, 40))
    np.testing.assert_array_equal(out[:, :, :260], plain[:, :, :260])
    exact = icecore.attention(q, k, v, causal=True)
    np.testing.assert_allclose(out[:, :, 260:], exact[:, :, 260:], atol=1e-5)


def test_far_field_is_deprecated():
    q, k, v = clustered(np.random.default_rng(15), 2, 1, 20, 900, 16)
    with pytest.warns(FutureWarning, match=r"selector=icecore.selectors.PDCI\(k, visit\) now"):
        dropped = icecore.attention(q, k, v, k=9, visit=20, far_field=False)
    np.testing.assert_array_equal(dropped, icecore.attention(q, k, v, selector=PDCI(9, 20)))
    with pytest.warns(FutureWarning, match="are deprecated"):
        same = icecore.attention(q, k, v, k=9, far_field=True)
    np.testing.assert_array_equal(same, icecore.attention(q, k, v, k=9))
    for wrong, named in (
        ({"selector": "pages", "k": 9, "far_field": False}, "got selector='pages'"),
        ({"far_field": False}, "k=None"),
        ({"k": 9, "sinks": 4, "far_field": False}, "no sinks"),
        ({"k": 9, "visit": 20}, "visit=20 needs far_field=False"),
    ):
        with pytest.warns(FutureWarning), pytest.raises(ValueError, match=named):
            icecore.attention(q, k, v, **wrong)


# ---- Bad calls ----


@pytest.mark.parametrize(("options", "named"), [
    ({"selector": "page"}, "must be one of top_k, minference, .* or made by .*, got 'page'"),
    ({"selector": 4}, "selector must be one of .* or made by a class of icecore.selectors, got 4"),
    ({"selector": "pages", "k": 4}, "takes no k"),
    ({"selector": "pdci", "tolerance": 0.1}, "tolerance"),
    ({"selector": "pdci", "window": 3, "causal": True}, "takes no window"),
    ({"selector": "pdci", "metric": np.ones((1, 4))}, "metric"),
    ({"selector": "minference"}, "needs causal=True"),
    ({"selector": "pages", "sinks": 1}, "sinks"),
    ({"selector": "pages", "attn_mask": np.ones((5, 9), bool)}, "attn_mask"),
])
def test_what_a_selector_does_not_take_is_refused(options, named):
    q, k, v = arrays(np.random.default_rng(4), 1, 1, 5, 9, 4, 4)
    with pytest.raises(ValueError, match=named):
        icecore.attention(q, k, v, **options)


@pytest.mark.parametrize(("make", "error", "named"), [
    (lambda: Pages(0), ValueError, "k must be at least 1, got 0"),
    (lambda: TopK(0), ValueError, "k must be at least 1, got 0"),
    (lambda: MInference(vertical=0), ValueError, "vertical must be at least 1, got 0"),
    (lambda: MInference(slash=2.5), TypeError, "slash must be an integer, got float"),
    (lambda: BlockSparse(0), ValueError, "k must be at least 1, got 0"),
    (lambda: Pages(k=True), TypeError, "k must be an integer, got a bool"),
    (lambda: ArkVale(0), ValueError, "k must be at least 1, got 0"),
    (lambda: ArkVale(page=0), ValueError, "page must be at least 1, got 0"),
    (lambda: ArkVale(page=16.0), TypeError, "page must be an integer, got float"),
    (lambda: PDCI(4, 3), ValueError, "visit must be at least k=4, got 3"),
    (lambda: PDCI(4, visit=4.0), TypeError, "visit must be an integer, got float"),
])
def test_wrong_parameters_are_refused(make, error, named):
    with pytest.raises(error, match=named):
        make()


@pytest.mark.parametrize("selector", [
    TopK, MInference, BlockSparse, XAttention, Pages, ArkVale, PDCI, SparQ, MagicPIG, RetroInfer, VAttention, Zeta,
])
def test_a_name_stands_for_the_defaults(selector):
    q, k, v = clustered(np.random.default_rng(16), 2, 1, 20, 1600, 8)
    by_name, made = (icecore.attention(q, k, v, selector=each, causal=True) for each in (selector.name, selector()))
    np.testing.assert_array_equal(by_name, made)
