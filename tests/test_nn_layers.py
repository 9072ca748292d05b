"""Each formula of the row-wise layers against its definition in float64."""

import numpy as np
import pytest
from scipy.special import expit, logsumexp, ndtr

from icecore.nn.layers import (
    apply_rotary,
    cross_entropy,
    geglu,
    gelu,
    gelu_tanh,
    layer_norm,
    linear,
    merge_heads,
    rms_norm,
    rotary_tables,
    split_heads,
    swiglu,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def float32(generator, *shape):
    return generator.standard_normal(shape, np.float32)


def test_linear_multiplies_by_the_rows_of_the_weight(generator):
    x, weight = float32(generator, 5, 3), float32(generator, 4, 3)
    expected = [[np.dot(row, output) for output in weight] for row in x.astype(np.float64)]
    np.testing.assert_allclose(linear(x, weight), expected, atol=1e-6)


def test_linear_adds_its_bias(generator):
    x, weight, bias = float32(generator, 5, 3), float32(generator, 4, 3), float32(generator, 4)
    out = np.empty((5, 4), np.float32)
    assert linear(x, weight, bias, out=out) is out
    np.testing.assert_allclose(out, x.astype(np.float64) @ weight.T + bias, atol=1e-6)


def test_heads_are_runs_of_columns(generator):
    x = float32(generator, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (3, 5, 4) and np.shares_memory(heads, x)
    np.testing.assert_array_equal(heads[1, 2], x[2, 4:8])
    np.testing.assert_array_equal(merge_heads(heads), x)


def test_layer_norm_gives_mean_and_variance_of_each_row(generator):
    x, weight, bias = 5 + 3 * float32(generator, 7, 12), float32(generator, 12), float32(generator, 12)
    wide = x.astype(np.float64)
    mean, variance = wide.mean(axis=1, keepdims=True), wide.var(axis=1, keepdims=True)
    expected = (wide - mean) / np.sqrt(variance + 1e-5) * weight + bias
    out = layer_norm(x, weight, bias, 1e-5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_layer_norm_of_equal_values_is_the_bias():
    bias = np.float32([1, 2, 3, 4])
    np.testing.assert_array_equal(layer_norm(np.full((2, 4), 7, np.float32), np.ones(4, np.float32), bias, 1e-6), [bias, bias])


def test_rms_norm_of_heads_norms_each_row_of_each(generator):
    x, weight = float32(generator, 3, 5, 8), float32(generator, 8)
    expected = [rms_norm(head, weight, 1e-6) for head in x]
    np.testing.assert_allclose(rms_norm(x, weight, 1e-6), expected, rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_gelu_up_to_extreme_values(generator):
    x = np.concatenate([3 * float32(generator, 50), np.float32([-1e4, -100, -6, 0, 6, 100, 1e4])])[None]
    wide = x.astype(np.float64)
    for function, share in (
        (gelu, ndtr(wide)),
        (gelu_tanh, (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))) / 2),
    ):
        out = function(x)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, wide * share, rtol=1e-6, atol=1e-6)
    up = float32(generator, *x.shape)
    np.testing.assert_array_equal(geglu(np.concatenate([x, up], axis=1)), gelu_tanh(x) * up)


def test_rms_norm_divides_by_the_root_mean_square(generator):
    x, weight = float32(generator, 7, 12), float32(generator, 12)
    expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5) * weight
    out = rms_norm(x, weight, 1e-5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_rms_norm_of_zeros_is_zero():
    np.testing.assert_array_equal(rms_norm(np.zeros((2, 4), np.float32), np.ones(4, np.float32), 1e-5), 0)


def test_rotary_is_multiplication_by_a_complex_number(generator):
    positions, width, base = np.array([0, 1, 5, 8191]), 8, 100000.0
    x = float32(generator, 3, len(positions), width)
    out = np.empty_like(x)
    apply_rotary(x, *rotary_tables(positions, width, base), out=out)

    pairs = x[..., : width // 2] + 1j * x[..., width // 2 :]
    angles = positions[:, None] * base ** (-2.0 * np.arange(width // 2) / width)
    turned = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-6)


def test_rotary_scores_depend_on_distance_only(generator):
    query, key = float32(generator, 1, 1, 16), float32(generator, 1, 1, 16)

    def score(query_position, key_position):
        turned = []
        for x, position in ((query, query_position), (key, key_position)):
            out = np.empty_like(x)
            apply_rotary(x, *rotary_tables(np.array([position]), 16, 10000.0), out=out)
            turned.append(out[0, 0])
        return turned[0] @ turned[1]

    assert score(7, 3) == pytest.approx(score(8004, 8000), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


@pytest.mark.filterwarnings("error")
def test_swiglu_up_to_extreme_gates(generator):
    gate = np.concatenate([float32(generator, 50), np.float32([-1e4, -100, -88.8, 0, 100, 1e4])])[None]
    up = float32(generator, *gate.shape)
    expected = gate * expit(gate.astype(np.float64)) * up
    np.testing.assert_allclose(swiglu(np.concatenate([gate, up], axis=1)), expected, rtol=1e-6, atol=1e-30)


@pytest.mark.filterwarnings("error")
def test_cross_entropy_with_large_logits(generator):
    logits = 1e4 * float32(generator, 6, 11)
    targets = generator.integers(11, size=6)
    expected = logsumexp(logits.astype(np.float64), axis=1) - logits[np.arange(6), targets]
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-2)
    uniform = cross_entropy(np.zeros((2, 8), np.float32), np.array([0, 7]))
    np.testing.assert_allclose(uniform, np.log(8), rtol=1e-6)
