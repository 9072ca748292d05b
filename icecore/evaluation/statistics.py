"""What counts tell: shares with the interval that holds the true share."""

from typing import NamedTuple

from scipy.special import betaincinv

CONFIDENCE = 0.95


class Share(NamedTuple):
    """So many of a total, with a binomial (Clopper-Pearson) interval of 95 %; a total of 0 says nothing: share None, 0 to 1."""

    count: int
    total: int
    share: float | None
    minimum: float
    maximum: float


def share(count, total):
    """A `Share` of `count` out of `total`."""
    tail = (1 - CONFIDENCE) / 2
    minimum = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    maximum = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Share(count, total, count / total if total else None, minimum, maximum)


def retained(mine, exact):
    """Of what exact attention gets right, the share that a method gets right too; sequences of bool, equally long."""
    both = sum(bool(a and b) for a, b in zip(mine, exact, strict=True))
    return share(both, sum(map(bool, exact)))
