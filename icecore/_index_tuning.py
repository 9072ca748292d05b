"""Index.tune: the cheapest budgets that reach a recall."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Tuning(NamedTuple):
    """What `Index.tune` found.

    Attributes
    ----------
    budgets : dict
        Arguments for `Index.search`: ``index.search(queries, k, **tuning.budgets)``.
    recall : float
        Reached on the sample, ties by value.
    visited : float
        Vectors and means that a query was compared with, on average.
    trials : list of (dict, float, float)
        All that was tried: budgets, recall, visited.
    """

    budgets: dict
    recall: float
    visited: float
    trials: list


class Tuner:
    """One call of `Index.tune`."""

    def __init__(self, index, queries, k, recall, filters, threads):
        self.index, self.queries, self.k, self.recall, self.threads = index, queries, min(k, len(index)), recall, threads
        self.filters, self.trials = filters, []
        truth, _ = self._search({"exact": True})
        self.wanted = (~np.isnan(truth)).sum()  # fewer than k of a query where a filter leaves fewer
        if not self.wanted:
            raise ValueError("filter and exclude leave no vector of the index; expected some to search among")
        self.worst = np.fmin.reduce(truth, axis=1, keepdims=True)

    def _search(self, budgets):
        n, k = len(self.queries), self.k
        ids, scores, counts, visited = (np.empty(shape, dtype) for shape, dtype in
                                        (((n, k), np.int64), ((n, k), np.float32), (n, np.int64), (n, np.int64)))
        self.index._search(self.queries, k, budgets, self.filters, self.threads, ids, scores, counts, visited)
        return -scores if self.index.metric == "l2" else scores, visited.mean()

    def _try(self, budgets):
        scores, visited = self._search(budgets)
        # both are exact float32 scores of the same vectors: equal bits for equal neighbours
        reached = float((scores >= self.worst).sum() / self.wanted)
        self.trials.append((dict(budgets), reached, float(visited)))
        return reached

    def _least(self, budgets, name, low, high):
        """The smallest value of one budget that keeps the recall, by bisection on a logarithmic scale; `high` is known to."""
        while low < high:
            middle = min(max(int(math.sqrt(low * high)), low), high - 1)
            if self._try({**budgets, name: middle}) >= self.recall:
                high = middle
            else:
                low = middle + 1
        return high

    def tune(self):
        stats = self.index.stats
        lists = self.index._parameters["num_composite"]
        generous = {} if lists else {"retrieve": 8 * self.k + 256}
        budgets = dict(generous)
        if self._try(budgets) < self.recall:
            return self._found({"exact": True})
        if stats["cells"] > stats["segments"]:
            budgets["field_of_view"] = self._least(budgets, "field_of_view", 1, max(stats["cells"], 1))
        if lists:
            maximum = stats["count"] * self.index._parameters["num_simple"]
            budgets["visit"] = self._least(budgets, "visit", 1, maximum)
            budgets["retrieve"] = self._least(budgets, "retrieve", 1, stats["count"])
        else:
            budgets["retrieve"] = self._least(budgets, "retrieve", self.k, generous["retrieve"])
        return self._found(budgets)

    def _found(self, budgets):
        reached = self._try(budgets)
        return Tuning(budgets, reached, self.trials[-1][2], self.trials)
