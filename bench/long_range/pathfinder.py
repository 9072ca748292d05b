"""Pathfinder, after Linsley et al. (arXiv 1805.08315) and Long Range Arena (arXiv 2011.04006): two dots in an image of dashed
curves; are they the two ends of one curve? The image is read pixel by pixel, 48 x 48 after a token that gives the answer.

Own generator, easier than the published images: curves neither cross nor touch, and pixels have three values (nothing, curve,
dot). Every image has two long curves and some short ones; the dots lie at the ends of one long curve, or at one end of each,
equally far apart. The pixels of curves are asked how many dots lie on their curve.
"""

import numpy as np
from task import NOTHING, Batch, Task, waves

SIDE, LENGTH = 48, 26  # of an image, and of its long curves in steps of a pixel
CURVE, DOT, ASK = 1, 2, 3  # tokens; 0 is the background
DASH, PERIOD = 4, 6  # steps drawn, of so many
LATE = 0.8  # share of training from which on much of the background is seen
REACH = 3  # pixels of one curve are joined by steps of at most this, over its gaps; other curves are farther away
ONE_DOT, TWO_DOTS, NO_DOT = 0, 1, 2  # targets of pixels; of the answer the first two
#: Until which share of training: side, length of the long curves, images of a batch.
STAGES = ((320 / 900, 24, 14, 40), (550 / 900, 36, 20, 24), (LATE, SIDE, LENGTH, 16), (np.inf, SIDE, LENGTH, 5))
TEST_SEED = 2_000_000_000


def image(generator, side=SIDE, length=LENGTH):
    """A random image: tokens and targets, (side, side) int64 each, and whether the dots are connected."""
    connected = bool(generator.integers(2))
    while True:
        drawn = _try_image(generator, side, length, connected)
        if drawn is not None:
            return (*drawn, connected)


def _try_image(generator, side, length, connected):
    """Tokens and targets; None where there is no room for two long curves, or the dots are too far apart or too close."""
    near = np.zeros((side, side), bool)  # where another curve may not go
    curves = [_path(generator, near, length), _path(generator, near, length)]
    if None in curves:
        return None
    first, second = curves
    ends = [first[0], first[-1] if connected else second[0]]
    if not length / 2 < np.hypot(*np.subtract(*ends)) < length:
        return None
    for _ in range(generator.integers(side // 8, side // 5)):
        curves.append(_path(generator, near, int(generator.integers(length // 4, length // 2)), tries=3) or [])
    tokens, targets = np.zeros((side, side), np.int64), np.full((side, side), NOTHING)
    dotted = (TWO_DOTS, NO_DOT) if connected else (ONE_DOT, ONE_DOT)
    for path, target in zip(curves, dotted + (NO_DOT,) * len(curves), strict=False):
        for step, pixel in enumerate(path):
            if step % PERIOD < DASH or step == len(path) - 1:
                tokens[pixel], targets[pixel] = CURVE, target
    for row, column in ends:
        square = slice(row - 1, row + 2), slice(column - 1, column + 2)
        tokens[square], targets[square] = DOT, dotted[0]
    return tokens, targets


def _path(generator, near, length, tries=30):
    """Find room for a smooth curve and mark its neighbourhood; its pixels [(row, column)], or None."""
    side = len(near)
    for _ in range(tries):
        row, column = generator.uniform(2, side - 3, 2)
        heading, turn, path = generator.uniform(0, 2 * np.pi), 0.0, []
        for change in generator.normal(0, 0.12, length):
            pixel = round(row), round(column)
            if not (2 <= pixel[0] < side - 2 and 2 <= pixel[1] < side - 2) or near[pixel]:
                break
            path.append(pixel)
            turn = 0.8 * turn + change
            heading += turn
            row, column = row + np.sin(heading), column + np.cos(heading)
        if len(path) == length and not any(near[row - 1 : row + 2, column - 1 : column + 2].any() for row, column in path):
            for row, column in path:
                near[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5] = True
            return path
    return None


def training_batch(generator, progress, size):
    """Small images first, at any place of the table, and of the background only some pixels until late."""
    side, length, count = next(stage[1:] for stage in STAGES if progress < stage[0])
    images = [image(generator, side, length) for _ in range(count * size)]
    curves = max(np.count_nonzero(tokens) for tokens, _, _ in images)
    share = generator.uniform(0.02, 1.0 if progress >= LATE else 0.2)
    kept = curves + int(share * (side * side - curves))
    rows = []
    for tokens, targets, connected in images:
        order = np.argsort(generator.random(side * side) - (tokens.ravel() > 0))[:kept]  # curves first, then random others
        row, column = np.divmod(order, side)
        first = generator.integers(SIDE - side + 1, size=2)
        positions = 1 + (row + first[0]) * SIDE + column + first[1]
        parts = ([ASK], tokens.ravel()[order]), ([0], positions), ([int(connected)], targets.ravel()[order])
        rows.append([np.concatenate(part) for part in parts])
    return Batch(*(np.array(each) for each in zip(*rows, strict=True)))


def test_set(count):
    """Images of 48 x 48, 2305 tokens each."""
    drawn = [image(np.random.default_rng(TEST_SEED + index)) for index in range(count)]
    sequences = [np.concatenate([[ASK], tokens.ravel()]) for tokens, _, _ in drawn]
    return sequences, np.array([connected for _, _, connected in drawn], np.int64)


def _features():
    """Waves of row and column; none for the first position."""
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    pixels = np.concatenate([waves(row, 8, 2 * SIDE, count=6), waves(column, 8, 2 * SIDE, count=6)], axis=1)
    return np.concatenate([np.zeros_like(pixels[:1]), pixels])


TASK = Task(
    vocabulary=4,
    context=SIDE * SIDE + 1,
    classes=2,
    outputs=3,
    answer_at=0,
    layers=6,
    width=64,
    heads=2,
    look_back=(0,) * 6,
    position_features=_features(),
    training_batch=training_batch,
    test_set=test_set,
)
