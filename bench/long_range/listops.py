"""ListOps, after Nangia and Bowman (arXiv 1804.06028) and Long Range Arena (arXiv 2011.04006): lists of digits and of lists
under MAX, MIN and MED (the median, rounded down); the answer is the value, one of ten.

Own generator, far easier than the published task: without SM, the sum modulo 10, and lists lie in the outer list only, which is
as long as the sequence. It is a median when long: maximum and minimum of so many digits are always 9 and 0. How often each
operator and each digit comes changes from expression to expression, so that medians differ. Closing brackets are asked for
their list's value, other tokens for their depth.
"""

from itertools import islice

import numpy as np
from task import Batch, Task, waves

OPERATORS = ("[MAX", "[MIN", "[MED")
MEDIAN = 2  # counts in OPERATORS
CLOSE = 10 + len(OPERATORS)  # tokens: the digits, the operators, the closing bracket
MAX_DIGITS = 5  # in an inner list; at least 2
CONTEXT = 2048
LONGEST = 2000
#: Until which share of training: shortest and longest.
STAGES = ((0.04, 4, 7), (0.1, 10, 30), (0.2, 20, 100), (0.5, 50, 500), (0.8, 200, 1000), (np.inf, 512, LONGEST))
MOST = 128  # expressions of a batch of one CPU thread
LONG = 100  # from here on training asks for medians alone
TEST_SEED = 2_000_000_000


def apply(operator, values):
    """Value of a list: `operator` counts in OPERATORS."""
    values = sorted(values)
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2
    return (values[-1], values[0], median)[operator]


def expression(generator, length, outermost=None):
    """Tokens and targets of a random expression of a length of at least 4, (length,) int64 each.

    `outermost` counts in OPERATORS; default any.
    """
    shares = generator.dirichlet(np.full(len(OPERATORS), 0.5))
    of_digits = generator.dirichlet(np.ones(10))
    lists = generator.uniform(0.5, 1.0)  # share of the outer list's arguments
    if outermost is None:
        outermost = int(generator.integers(len(OPERATORS)))
    # All at once, as one by one is slow: numbers of digits of lists, which of the arguments are lists, operators, digits
    counts = iter(generator.integers(2, MAX_DIGITS + 1, size=length).tolist())
    nested = iter((generator.random(length) < lists).tolist())
    operators = iter(generator.choice(len(OPERATORS), p=shares, size=length).tolist())
    digits = iter(generator.choice(10, p=of_digits, size=length).tolist())
    tokens, targets, values = [10 + outermost], [10], []
    while len(tokens) < length - 1:
        room = length - 1 - len(tokens)
        count = next(counts)
        if next(nested) and count + 2 <= room and (tokens[1:] or count + 2 < room):  # at least two arguments
            operator, inner = next(operators), list(islice(digits, count))
            values.append(apply(operator, inner))
            tokens += [10 + operator, *inner, CLOSE]
            targets += [11] * (count + 1) + [values[-1]]
        else:
            values.append(next(digits))
            tokens.append(values[-1])
            targets.append(10)
    return np.array([*tokens, CLOSE]), np.array([*targets, apply(outermost, values)])


def training_batch(generator, progress, size):
    """Short expressions first."""
    low, high = next(stage[1:] for stage in STAGES if progress < stage[0])
    length = int(generator.integers(low, high + 1))
    outermost = MEDIAN if length > LONG else None
    pairs = [expression(generator, length, outermost) for _ in range(size * min(MOST, 4096 // length))]
    first = int(generator.integers(CONTEXT - length + 1))  # anywhere in the table, so that all of it is learned
    return Batch(np.array([pair[0] for pair in pairs]), first + np.arange(length), np.array([pair[1] for pair in pairs]))


def test_set(count):
    """Medians of 1024 to 2000 tokens."""
    sequences, answers = [], []
    for index in range(count):
        generator = np.random.default_rng(TEST_SEED + index)
        tokens, targets = expression(generator, int(generator.integers(1024, LONGEST + 1)), outermost=MEDIAN)
        sequences.append(tokens)
        answers.append(targets[-1])
    return sequences, np.array(answers)


TASK = Task(
    vocabulary=CLOSE + 1,
    context=CONTEXT,
    classes=10,
    outputs=12,
    answer_at=-1,
    layers=6,
    width=64,
    heads=2,
    look_back=(1, 2, 3, 4, 0, 0),
    position_features=waves(np.arange(CONTEXT), 6, 4 * CONTEXT, count=12),
    training_batch=training_batch,
    test_set=test_set,
)
