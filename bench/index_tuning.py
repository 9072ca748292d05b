"""Recall against time, as ann-benchmarks draws it: exact neighbours to judge by, and a method's options for a recall.

`Tuner` builds a method's options in turn and asks a sample of the queries with one budget after another. Of each recall wanted
it keeps, for build + search of all queries and for search alone, the options that are fastest, and the two budgets next to one
another between whose recalls the wanted one lies: times are interpolated there, so that all methods are compared at one recall.
"""

import time
from dataclasses import dataclass, field

import numpy as np

GOALS = ("total", "search")
STALL = 0.002  # two budgets in a row that bring less recall than this are the last of their list


@dataclass
class Truth:
    """Brute force of some queries: what a result's recall is measured against, ties by value.

    A returned key counts where its score, in float64, is no worse than the k-th best, but for float32's rounding; a key
    returned twice counts once.
    """

    keys: np.ndarray
    queries: np.ndarray
    metric: str
    maximum: int
    best: np.ndarray = field(init=False)  # (m, maximum), descending

    def __post_init__(self):
        norms = np.einsum("nd,nd->n", self.keys, self.keys)
        self.maximum = min(self.maximum, len(self.keys))
        found = np.empty((len(self.queries), self.maximum), np.int64)
        for first in range(0, len(found), 128):
            scores = self.queries[first : first + 128] @ self.keys.T
            if self.metric == "l2":
                scores -= norms / 2
            found[first : first + 128] = np.argpartition(scores, -self.maximum, axis=1)[:, -self.maximum :]
        self.best = -np.sort(-self.scores(found), axis=1)
        maximum = norms.max()
        self.slack = 2e-6 * (maximum if self.metric == "l2" else maximum**0.5 * np.linalg.norm(self.queries, axis=1))

    def scores(self, ids):
        """Float64 scores of keys (m, k), the larger the better; -inf where there is none."""
        out = np.empty(ids.shape)
        for row, (query, chosen) in enumerate(zip(self.queries.astype(np.float64), ids, strict=True)):
            keys = self.keys[np.maximum(chosen, 0)]
            out[row] = keys @ query if self.metric == "ip" else -np.square(keys - query).sum(axis=1)
        return np.where(ids < 0, -np.inf, out)

    def recall(self, ids):
        """Mean share of the k best that `ids` (m, k) hold."""
        ids = np.sort(np.asarray(ids), axis=1)
        ids = np.where(np.diff(ids, axis=1, prepend=-1) == 0, -1, ids)
        k = min(ids.shape[1], self.maximum)
        good = self.scores(ids) >= (self.best[:, k - 1] - self.slack)[:, None]
        return float(np.minimum(good.sum(axis=1), k).mean() / k)


@dataclass
class Choice:
    """Options of one method and the budgets on both sides of a recall, with the seconds they took or would take at that recall.

    `budgets` is one budget where the least that there is finds more.
    """

    options: dict
    budgets: tuple
    build: float
    search: float  # of all queries

    @property
    def total(self):
        return self.build + self.search


def cpu_clock(threads):
    """Seconds of this process on all cores by the threads that it may use: what it takes where no other process disturbs it.

    What one thread does alone counts for less than it takes, which favours whoever has more of that.
    """
    return lambda: time.process_time() / threads


def timed(call, *arguments, clock=time.perf_counter, **options):
    """(result, seconds); the shortest of three where it takes less than a fifth of a second."""
    shortest = np.inf
    for _ in range(3):
        start = clock()
        result = call(*arguments, **options)
        shortest = min(shortest, clock() - start)
        if shortest > 0.2:
            break
    return result, shortest


def at_recall(wanted, recalls, seconds):
    """Seconds at a recall, from those of one or two budgets; their logarithm is taken as linear in the recall between them.

    Builds that differ by chance may have both recalls on one side: then by half of their distance beyond them at most.
    """
    low, high = recalls[0], recalls[-1]
    share = np.clip((wanted - low) / (high - low), -0.5, 1.5) if high > low else 1.0
    return float(seconds[0] ** (1 - share) * seconds[-1] ** share)


def points(searcher, budgets, k, truth, enough, longest, clock):
    """(budget, recall, seconds) of one list of budgets, until a recall is enough, grows no more or a search takes too long."""
    found = []
    for budget in budgets:
        searcher.limit(budget)
        ids, seconds = timed(searcher.search, truth.queries, k, clock=clock)
        found.append((budget, truth.recall(ids), seconds))
        stalls = len(found) > 2 and found[-1][1] - found[-3][1] < STALL
        if found[-1][1] >= enough or stalls or seconds > longest:
            break
    return found


def between(found, wanted):
    """The points on both sides of a recall; one where the first has it; none where no point has."""
    for i, (_, recall, _) in enumerate(found):
        if recall >= wanted:
            return found[max(i - 1, 0) : i + 1]
    return []


class Tuner:
    """The best of one method, while its options are tried.

    Parameters
    ----------
    method : Method
    targets : list of (k, recall)
    truth : Truth
        Of a sample of the queries.
    queries : int
        How many there are in all.
    longest : float
        Give up where a search of the sample takes longer: what brute force needs.
    clock : callable
    """

    def __init__(self, method, keys, metric, threads, targets, truth, queries, longest=np.inf, clock=time.perf_counter):
        self.method, self.keys, self.metric, self.threads, self.targets = method, keys, metric, threads, targets
        self.truth, self.scale, self.longest = truth, queries / len(truth.queries), longest
        self.clock = clock
        self.best = {}  # (k, recall): {goal: Choice}

    def tune(self, seconds=np.inf):
        """Try the default, then one option after another at the best of the others, first for build + search, then for search.

        No build begins after so many seconds. Returns whether all was tried.
        """
        begin, grid, tried = self.clock(), self.method.grid(self.keys, self.metric), []
        default = {name: values[0] for name, values in grid.items()}
        self._try(default)
        tried.append(default)
        for goal in GOALS:
            for name, values in grid.items():
                base = self._middle(goal, default)
                for value in values:
                    options = base | {name: value}
                    if options in tried:
                        continue
                    if self.clock() - begin > seconds:
                        return False
                    self._try(options)
                    tried.append(options)
        return True

    def _middle(self, goal, default):
        """The best options for the middle one of the targets that are reached."""
        reached = [target for target in self.targets if target in self.best]
        return self.best[reached[len(reached) // 2]][goal].options if reached else default

    def _try(self, options):
        searcher, build = timed(self.method.build, self.keys, self.metric, self.threads, clock=self.clock, **options)
        for k in dict.fromkeys(k for k, _ in self.targets):
            recalls = [recall for of, recall in self.targets if of == k]
            for budgets in searcher.budgets(k):
                longest = self.longest
                if (k, max(recalls)) in self.best:  # what is slower than the best at the highest recall is worse at all
                    longest = min(longest, self.best[k, max(recalls)]["search"].search / self.scale)
                found = points(searcher, budgets, k, self.truth, max(recalls), longest, self.clock)
                for recall in recalls:
                    self._keep(k, recall, options, build, between(found, recall))

    def _keep(self, k, recall, options, build, around):
        if not around:
            return
        budgets, recalls, seconds = zip(*around, strict=True)
        choice = Choice(options, budgets, build, at_recall(recall, recalls, seconds) * self.scale)
        kept = self.best.setdefault((k, recall), dict.fromkeys(GOALS, choice))
        for goal in GOALS:
            if getattr(choice, goal) < getattr(kept[goal], goal):
                kept[goal] = choice
