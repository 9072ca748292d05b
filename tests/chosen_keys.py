"""Inputs on which methods of choosing keys differ, and what their tests compare."""

import numpy as np


def arrays(rng, heads, key_heads, queries, keys, dim, value_dim):
    return [rng.normal(size=shape).astype(np.float32)
            for shape in ((1, heads, queries, dim), (1, key_heads, keys, dim), (1, key_heads, keys, value_dim))]


def assert_clear_equal(actual, expected, atol=5e-5):
    """Where lines or blocks are clearly chosen; returns the share of these heads or rows."""
    out, lse, info = actual
    expected, expected_lse, near, margin = expected
    clear = margin > 1e-4
    np.testing.assert_array_equal(info.near_keys[clear], near[clear])
    np.testing.assert_allclose(out[clear].astype(np.float64), expected[clear], atol=atol)
    np.testing.assert_allclose(lse[clear], expected_lse[clear], atol=5e-5)
    return clear.mean()


def clustered(rng, heads, key_heads, queries, keys, dim, value_dim=24):
    """Keys and queries around 40 centres: some keys matter much more than others."""
    centres = 2 * rng.normal(size=(40, dim))
    query, key, value = arrays(rng, heads, key_heads, queries, keys, dim, value_dim)
    return [(centres[rng.integers(40, size=a.shape[:-1])] + a).astype(np.float32) for a in (query, key)] + [value]
