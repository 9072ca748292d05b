"""Generation and sampling, on a model whose next token is known: each token is followed by its successor."""

import numpy as np
import pytest

from icecore import nn

VOCABULARY = 16


@pytest.fixture(scope="module")
def successor():
    """A model without layers: the logits of token t peak at t + 1, modulo the vocabulary."""
    config = nn.LlamaConfig(
        vocabulary=VOCABULARY,
        width=VOCABULARY,
        hidden_width=1,
        layers=0,
        query_heads=1,
        key_heads=1,
        head_width=2,
        context_length=10,
        rotary_base=1e4,
        norm_epsilon=1e-5,
    )
    identity = np.eye(VOCABULARY, dtype=np.float32)
    return nn.LlamaWeights(config, identity, (), np.ones(VOCABULARY, np.float32), np.roll(identity, 1, axis=0))


def test_greedy_generation_follows_the_most_likely_token(successor):
    assert nn.generate(successor, [7, 3], max_new_tokens=4) == [4, 5, 6, 7]


def test_no_tokens_asked_for(successor):
    assert nn.generate(successor, [3], max_new_tokens=0) == []


def test_stop_token_ends_the_text_and_is_left_out(successor):
    assert nn.generate(successor, [3], max_new_tokens=8, stop={6}) == [4, 5]


def test_generation_ends_with_the_context(successor):
    """The context of 10 holds the prompt of 7 and three new tokens; the last of them gives one more."""
    assert nn.generate(successor, [1] * 6 + [3], max_new_tokens=100) == [4, 5, 6, 7]


@pytest.mark.parametrize(("options", "held"), [({"max_new_tokens": 3}, 4), ({"max_new_tokens": 9, "stop": {6}}, 4)])
def test_the_cache_holds_what_was_asked_of_the_model(successor, options, held):
    """Not the last token where there was no need of what follows it."""
    cache = nn.KeyValueCache()
    nn.generate(successor, [2, 3], cache=cache, **options)
    assert cache.length == held


def test_callback_sees_each_token_as_it_comes(successor):
    seen = []
    assert nn.generate(successor, [3], max_new_tokens=5, callback=seen.append) == seen == [4, 5, 6, 7, 8]


def test_prompt_is_checked(successor):
    with pytest.raises(ValueError, match="at least one token"):
        nn.generate(successor, [], max_new_tokens=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stop": 2}, "stop must be a collection of tokens, got 2"),
        ({"stop": "</s>"}, "stop must be a collection of tokens, got '</s>'"),
        ({"stop": [2.5]}, r"stop must be a collection of tokens, got \[2\.5\]"),
        ({"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 0, got -1"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens must be an integer of at least 0, got 2\.5"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0"),
        ({"temperature": float("nan")}, "temperature must be finite and at least 0"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 1"),
        ({"top_p": 2}, "top_p must lie above 0 and up to 1"),
    ],
)
def test_parameters_are_checked_before_the_prompt_is_run(successor, options, message):
    def never(*_, **__):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        nn.generate(successor, [3], attention=never, cache=nn.KeyValueCache(), **{"max_new_tokens": 3} | options)


def test_stop_tokens_may_come_from_anything_that_is_gone_through_once(successor):
    assert nn.generate(successor, [3], max_new_tokens=8, stop=iter([6])) == [4, 5]
    assert nn.generate(successor, [3], max_new_tokens=np.int64(8), stop=np.array([6])) == [4, 5]


def test_draws_are_repeatable_by_their_seed(successor):
    def draw(seed):
        return nn.generate(successor, [3], max_new_tokens=9, temperature=5.0, seed=seed)

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def shares(**options):
    generator = np.random.default_rng(0)
    tokens = [nn.sample(LOGITS, generator, **options) for _ in range(4000)]
    return np.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 1}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, [1 / 28.5, 16 / 28.5, 0.25 / 28.5, 9 / 28.5, 2.25 / 28.5]),
        ({"temperature": 1, "top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 1, "top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 1, "top_p": 0.6}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 1, "top_p": 0.8}, [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        ({"temperature": 1, "top_p": 1e-6}, [0, 1, 0, 0, 0]),
        ({"temperature": 1, "top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 3 / 7, 0]),
    ],
)
def test_shares_of_drawn_tokens(options, expected):
    # the standard deviation of a share over 4000 draws is at most 0.008
    np.testing.assert_allclose(shares(**options), expected, atol=0.035)
    assert not shares(**options)[np.array(expected) == 0].any()


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_sampling_parameters_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        nn.sample(LOGITS, np.random.default_rng(0), **options)
