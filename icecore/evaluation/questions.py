"""Questions about one long context: it is read once, and each question is asked and answered from there."""

from typing import NamedTuple

from icecore import nn

from .statistics import retained, share
from .watch import COLUMNS, Watch

#: Tokens of an answer at most: a number of five digits and what stands before it.
ANSWER_TOKENS = 8
#: Tokens kept free for a question with its answer.
ROOM = 40


class Question(NamedTuple):
    """The beginning of a sentence or line of the context, which follows the context, and the answer, with which it went on."""

    text: str
    answer: str


def ask(model, context, questions, method):
    """Read a context and answer each question greedily.

    Parameters
    ----------
    model : Model
    context : str
    questions : list of Question
    method : Method

    Returns
    -------
    dict
        ``right`` (of each question), ``answers`` (what came) and the means of `Watch` over the context.
    """
    encode, watch, cache = model.tokenizer.encode, Watch(method), method.cache()
    nn.forward(model.weights, encode(context), attention=watch.method.causal, cache=cache)
    length, answers = cache.length, []
    for question in questions:
        cache.truncate(length)
        tokens = nn.generate(model.weights, encode(question.text), max_new_tokens=ANSWER_TOKENS, attention=method.causal,
                             cache=cache, stop={model.tokenizer.end})
        answers.append(model.tokenizer.decode(tokens))
    right = [came.lstrip().startswith(question.answer) for came, question in zip(answers, questions, strict=True)]
    return {"right": right, "answers": answers} | watch.means()


def compare(result, exact):
    """The columns of a report for one case."""
    return overall([(result, exact)]) | {name: result[name] for name in COLUMNS}


def overall(pairs):
    """The columns of a report for all cases together, from pairs of a method's and exact attention's results."""
    mine, exact = ([right for results in side for right in results["right"]] for side in zip(*pairs, strict=True))
    kept = retained(mine, exact)
    return {
        "right": f"{sum(mine)} of {len(mine)}",
        "accuracy": share(sum(mine), len(mine)).share,
        "retained": kept.share,
        "retained_of": f"{kept.count} of {kept.total}",
        "interval": (kept.minimum, kept.maximum),
    }
