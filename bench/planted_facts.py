"""Facts planted in texts, wordings and depths that nothing was tuned by, beside those of `python -m icecore evaluate`.

    python bench/planted_facts.py [--contexts 0 1 ...] [--method near_far ...] [--resume facts.jsonl]

Thirty facts lie at random depths of each context, of 3200 to 6000 tokens, in five wordings; SmolLM2 reads the context once and
is asked for each. A fact counts where exact attention finds it.
"""

import _pydecimal
import argparse
import inspect
import json
import mailbox
from pathlib import Path

import numpy as np
from recorded import record

from icecore.evaluation import methods, models, questions, texts
from icecore.evaluation.statistics import retained

CONTEXTS, FACTS, LEAST, MOST = 10, 30, 3200, 6000
TEXTS = {
    "decimals": lambda: inspect.getsource(_pydecimal),
    "mailboxes": lambda: inspect.getsource(mailbox),
    "manual": lambda: texts.manual()[len(texts.manual()) // 2 :],
}
#: Beginnings, and how they end after the number; {} is a word that no other fact of its wording has.
WORDINGS = (
    ("The serial number of the {} is", "."),
    ("Note: the code for {} is", "."),
    ("In {} there are", " houses."),
    ("The phone extension of {} is", "."),
    ("Parcel {} weighs", " grams."),
)
WORDS = (
    ("lawnmower", "camera", "piano", "bicycle", "tractor", "printer", "kettle", "telescope", "freezer", "drum"),
    ("Lisbon", "Oslo", "Nairobi", "Lima", "Prague", "Quebec", "Manila", "Tunis", "Geneva", "Havana"),
    ("Ashford", "Milton", "Bristol", "Dover", "Salem", "Burton", "Kingston", "Newport", "Harlow", "Preston"),
    ("Alice", "Robert", "Martha", "Victor", "Helen", "Oscar", "Julia", "Peter", "Diana", "Simon"),
    ("Alpha", "Bravo", "Delta", "Echo", "Foxtrot", "Hotel", "Juliet", "Kilo", "Tango", "Zulu"),
)


def context(model, number):
    """(name of the text, its tokens with the facts, about; the text with the facts; the questions) of a seed."""
    rng = np.random.default_rng((7, number))
    length, name = int(rng.integers(LEAST, MOST)), [*TEXTS][number % len(TEXTS)]
    questions_of, sentences = [], []
    for wording, words in zip(WORDINGS, WORDS, strict=True):
        for word in rng.choice(words, FACTS // len(WORDINGS), replace=False):
            beginning, answer = wording[0].format(word), str(rng.integers(10 ** rng.integers(3, 6), 10**6))
            sentences.append(f"{beginning} {answer}{wording[1]} ")
            questions_of.append(questions.Question(f"\n\n{beginning}", f" {answer}"))
    text = TEXTS[name]()
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    taken = sum(len(encode(sentence)) for sentence in sentences)
    text = text[int(rng.integers(len(text) - 8 * length)) :]
    text = decode(encode(text[: 8 * length])[: length - taken - questions.ROOM])
    places, order = np.sort(rng.integers(len(text), size=FACTS)), rng.permutation(FACTS)
    pieces, start = [], 0
    for place, fact in zip(places, order, strict=True):
        end = max(start, text.rfind("\n", start, place) + 1)
        pieces += [text[start:end], sentences[fact]]
        start = end
    return name, length, "".join([*pieces, text[start:]]), questions_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", nargs="*", type=int, default=[*range(CONTEXTS)])
    parser.add_argument("--method", nargs="*", default=["near_far"], help="as of python -m icecore evaluate")
    parser.add_argument("--resume", type=Path, help="results, one a line, which are not computed again")
    given = parser.parse_args()
    found = {}
    if given.resume and given.resume.exists():
        found = {tuple(line[:2]): line[2] for line in map(json.loads, given.resume.read_text().splitlines())}
    model, names = models.load("smollm2"), ["exact", *given.method]
    print("| context | tokens | method | right | of those that exact finds |\n|---|---|---|---|---|")
    pairs = {name: ([], []) for name in names}
    for number in given.contexts:
        text, length, read, asked = context(model, number)
        for name in names:
            if (number, name) not in found:
                contexts = [(model.tokenizer.encode(read), asked)]
                found[number, name] = questions.ask(model, contexts, methods.parse(name))["right"]
                if given.resume:
                    with given.resume.open("a") as file:
                        file.write(json.dumps([number, name, found[number, name]]) + "\n")
            mine, exact = pairs[name]
            mine += found[number, name]
            exact += found[number, "exact"]
            kept = retained(found[number, name], found[number, "exact"])
            right = f"{sum(found[number, name])} of {FACTS}"
            print(f"| {text} | {length} | {name} | {right} | {kept.count} of {kept.total} |", flush=True)
    for name, (mine, exact) in pairs.items():
        kept = retained(mine, exact)
        print(f"| together | | {name} | {sum(mine)} of {len(mine)} | {kept.count} of {kept.total} |")


if __name__ == "__main__":
    record()
    main()
