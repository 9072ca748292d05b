"""Scores of next-token predictions against their definition."""

import numpy as np
import pytest
from scipy.special import log_softmax

from icecore import nn

VOCABULARY, WIDTH, LENGTH = 31, 8, 1300  # more rows than one chunk of logits


@pytest.fixture(scope="module")
def scored():
    """A model of which only the head matters here, hidden states and tokens."""
    generator = np.random.default_rng(0)
    head = generator.standard_normal((VOCABULARY, WIDTH), np.float32)
    weights = nn.LlamaWeights(None, head, (), None, head)
    hidden = generator.standard_normal((LENGTH, WIDTH), np.float32)
    return weights, hidden, generator.integers(VOCABULARY, size=LENGTH)


@pytest.mark.parametrize("start", [1, 650, LENGTH - 1])
def test_each_token_is_scored_from_the_state_before_it(scored, start):
    weights, hidden, tokens = scored
    losses, predictions = nn.score(weights, hidden, tokens, start)
    logits = hidden.astype(np.float64) @ weights.head.T
    for place, token in enumerate(tokens[start:], start):
        expected = -log_softmax(logits[place - 1])[token]
        assert losses[place - start] == pytest.approx(expected, abs=1e-4)
    np.testing.assert_array_equal(predictions, logits[start - 1 : -1].argmax(axis=1))


@pytest.mark.parametrize("start", [0, 777])
def test_divergence_is_the_mean_over_places(scored, start):
    weights, hidden, _ = scored
    others = hidden + 0.1 * np.random.default_rng(1).standard_normal(hidden.shape, np.float32)
    own, reference = (log_softmax(states[start:].astype(np.float64) @ weights.head.T, axis=1) for states in (hidden, others))
    expected = np.mean(np.sum(np.exp(reference) * (reference - own), axis=1))
    assert nn.divergence(weights, hidden, others, start) == pytest.approx(expected, rel=1e-4)
    assert nn.divergence(weights, hidden, hidden, start) == 0


def test_divergence_of_states_that_do_not_fit(scored):
    weights, hidden, _ = scored
    with pytest.raises(ValueError, match=r"hidden has shape \(1299, 8\); expected that of others, \(1300, 8\)"):
        nn.divergence(weights, hidden[1:], hidden)
    with pytest.raises(ValueError, match=r"start must lie in 0\.\.1299, got 1300"):
        nn.divergence(weights, hidden, hidden, LENGTH)


def test_logits_come_in_chunks_that_cover_every_row(scored):
    weights, hidden, _ = scored
    rows = [(rows.start, rows.stop, logits.shape) for rows, logits in nn.logits_in_chunks(weights, hidden, 500)]
    assert rows == [(0, 500, (500, 31)), (500, 1000, (500, 31)), (1000, 1300, (300, 31))]


@pytest.mark.parametrize("start", [0, -1, LENGTH])
def test_start_out_of_range(scored, start):
    with pytest.raises(ValueError, match=r"start must lie in 1\.\.1299"):
        nn.score(*scored, start)


def test_lengths_must_agree(scored):
    weights, hidden, tokens = scored
    with pytest.raises(ValueError, match="1299 hidden states for 1300 tokens"):
        nn.score(weights, hidden[1:], tokens)


def test_perplexity_of_even_odds_is_the_number_of_choices():
    assert nn.perplexity(np.full(10, np.log(7), np.float32)) == pytest.approx(7)


def test_agreement_is_the_share_of_equal_predictions():
    assert nn.agreement([1, 2, 3, 4], [1, 2, 3, 5]) == 0.75
