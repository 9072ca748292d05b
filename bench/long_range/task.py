"""What every task says of itself, and the sequences that it hands out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: The target of a token that is not asked for anything.
NOTHING = -1


class Batch(NamedTuple):
    """Sequences of one length; each is also asked about its inner tokens, which makes it far easier to learn."""

    tokens: np.ndarray  # (n, length) int64
    positions: np.ndarray  # (length,) or (n, length) int64: rows of the table of positions
    targets: np.ndarray  # (n, length) int64, NOTHING where nothing is asked


@dataclass(frozen=True)
class Task:
    """A task and the shape of the model that learns it."""

    vocabulary: int
    context: int  # longest sequence
    classes: int  # answers; they are the first of the outputs
    outputs: int  # answers, and what else is asked of inner tokens
    answer_at: int  # the token that gives the answer: 0 the first, -1 the last
    layers: int
    width: int
    heads: int
    look_back: tuple  # how many places before a token the first head of each layer begins by looking
    position_features: np.ndarray  # (context, features) float32; the table of positions is a learned linear map of them
    training_batch: Callable  # (generator, progress, size) -> Batch: progress from 0 to 1, size times what one CPU thread takes
    test_set: Callable  # (count) -> sequences (list of (length,) int64), answers (count,) int64


def waves(coordinate, shortest, longest, count):
    """Sines and cosines of a coordinate, (n,) -> (n, 2 * count) float32, wavelengths from `shortest` to `longest`."""
    angles = 2 * np.pi * np.asarray(coordinate)[:, None] / np.geomspace(shortest, longest, count)  # (n, count)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
