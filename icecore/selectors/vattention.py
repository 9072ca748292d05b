"""vAttention: the largest scores, and a sample of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .selector import Selector


@dataclass(frozen=True)
class VAttention(Selector):
    """vAttention [1]_: the largest scores, and a sample of the rest whose size keeps a promise.

    A query attends to the first `sinks` keys, to the last `window` ones that it sees, to the `k` of those between with the
    largest scores, and to a uniform sample without replacement of the n others. Each of b sampled keys has log(n / b) added to
    its score, so that the sum of weights, the softmax's denominator, is unbiased. The promise is of this sum: with probability
    1 - `delta` it is within the share `epsilon` of what it is over all keys. For that ``b = (z n s / (epsilon D))^2``: z is the
    normal deviate that is exceeded to both sides with probability `delta`; s is the standard deviation of the samples' weights
    and D the sum, both estimated from the first ``max(n / 40, 32)`` of the sample. It holds by the central limit theorem, as
    far as these have seen what the rest holds. The sample depends on the seed of the call, the query's position and its head.

    The published method takes the largest scores from an index that finds them approximately; here all scores are computed, as
    by `TopK`. It also has a sample size for the numerator, the weighted sum of values, of which no promise is made here; and
    what it gives as shares of the keys are numbers of keys here. O(L S d) time; 13 bytes per key and 400 `k` bytes per thread.

    Parameters
    ----------
    k : int, default 256
        Keys with the largest scores, at least 1; of equal scores the first keys.
    sinks, window : int, default 128
        At least 0.
    epsilon, delta : float, default 0.05
        Above 0 and below 1.

    References
    ----------
    .. [1] arXiv 2510.05688.
    """

    k: int = 256
    sinks: int = 128
    window: int = 128
    epsilon: float = 0.05
    delta: float = 0.05
    name: ClassVar[str] = "vattention"
    _is_seeded: ClassVar[bool] = True

    def __post_init__(self):
        self._set_integers("k")
        self._set_integers("sinks", "window", minimum=0)
        self._set_shares("epsilon", "delta")

    def _takes_all(self, keys):
        return self.k + self.sinks + self.window >= keys
