"""What a case costs, so that a run can say how long it will take."""

import time
from math import isqrt
from typing import NamedTuple

import numpy as np

from icecore import nn


class Cost(NamedTuple):
    """Counts of what a case computes: tokens of prefill at once, rows of logits and single steps after the prefill."""

    prefill: int
    logits: int = 0
    steps: int = 0

    def seconds(self, rates):
        """Expected with exact attention."""
        row, pair, logit = rates
        seen = pair * self.prefill
        return self.prefill * (row + seen) + self.logits * logit + self.steps * (STEP * row + seen)


#: A single step reads all weights for one row: so many rows of a prefill take as long.
STEP = 20
#: Lengths that are timed, of texts and of images.
SHORT, LONG = 256, 1536
IMAGE_SHORT, IMAGE_LONG = 12**2, 36**2


def decoder_rates(weights):
    """Seconds for a row, for a pair of query and key, and for a row of logits, measured in a few seconds."""
    tokens = np.arange(min(LONG, weights.config.context_length)) % weights.config.vocabulary  # any tokens cost the same
    short = min(SHORT, len(tokens) // 2)
    nn.forward(weights, tokens[:short])  # starts threads and touches the weights, outside the clock
    return (*_rates(lambda count: nn.forward(weights, tokens[:count]), short, len(tokens)), _logit(weights, short))


def image_rates(weights):
    """The same of an image encoder, without logits."""
    patch = weights.config.patch

    def encode(count):
        nn.encode_image(weights, np.zeros((isqrt(count) * patch, isqrt(count) * patch, 3), np.float32))

    encode(IMAGE_SHORT)
    return (*_rates(encode, IMAGE_SHORT, IMAGE_LONG), 0.0)


def _logit(weights, count):
    """Seconds for a row of logits."""
    hidden = np.zeros((count, weights.config.width), np.float32)
    started = time.perf_counter()
    for _ in nn.logits_in_chunks(weights, hidden):
        pass
    return (time.perf_counter() - started) / count


def _rates(call, short, long):
    """Seconds for a row and for a pair, from two lengths."""
    seconds = []
    for count in (short, long):
        started = time.perf_counter()
        call(count)
        seconds.append((time.perf_counter() - started) / count)
    pair = max(seconds[1] - seconds[0], 0.0) / (long - short)
    return max(seconds[0] - pair * short, seconds[1] / 2), pair
