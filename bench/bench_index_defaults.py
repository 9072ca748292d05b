"""The index with default budgets where they are tried hardest: recall, counts, and time beside exact search.

    python bench/bench_index_defaults.py [filters removals norms adds] [--rounds 15]

filters: a random share of the vectors may be returned.
removals: a share is removed, at random or nearest to the queries, without `compact`.
norms: inner products of vectors whose norms vary, beside hnswlib (M 16, ef 100).
adds: the same vectors in one call of `add` or in many.

Data: `mixture` and `normed` of index_data.py; k is 10. The methods take turns, and a time is the least of all rounds, which
other work of the machine disturbs least.
"""

import argparse
import time
from functools import partial

import numpy as np
from index_baselines import METHODS, hnswlib_graph
from index_data import NORMS, mixture, normed
from measure import alternate, machine
from recorded import record

import icecore

K = 10


def built(keys, metric, parts=1):
    index = icecore.Index(keys.shape[1], metric=metric)
    for part in np.array_split(keys, parts):
        index.add(part)
    return index


def recall(found, exact):
    """Share of the exact neighbours that were found, and the least count of a query beside the exact one."""
    shared = sum(np.isin(a, b[b >= 0]).sum() for a, b in zip(exact.ids, found.ids, strict=True))
    return shared / exact.counts.sum(), (found.counts - exact.counts).min()


def table(*columns):
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


def row(*cells):
    print("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells) + " |", flush=True)


def searches(index, queries, **options):
    search = partial(index.search, queries, K, **options)
    return {"default": search, "exact": partial(search, exact=True)}


def beside_exact(index, queries, rounds, **options):
    """Recall, missing neighbours of the worst query, ms, ms of exact search, and their ratio, as cells of a row."""
    calls = searches(index, queries, **options)
    found, missing = recall(*(call() for call in calls.values()))
    seconds = alternate(calls, rounds)
    ratio = seconds["default"].min() / seconds["exact"].min()
    return f"{found:.3f}", f"{-missing}", *(1e3 * times.min() for times in seconds.values()), f"{ratio:.2f}"


def filters(rounds):
    table("vectors", "metric", "may be returned", "recall", "missing, worst query", "ms", "exact, ms", "ms / exact")
    for n in (20_000, 60_000):
        keys, queries = mixture(n)
        for metric in ("l2", "ip"):
            index = built(keys, metric)
            row(f"{n}", metric, "all", *beside_exact(index, queries, rounds))
            for share in (0.5, 0.1, 0.01, 0.001, 0.0001):
                ids = np.random.default_rng(1).choice(n, max(1, int(n * share)), replace=False)
                row(f"{n}", metric, f"{100 * share:g} %", *beside_exact(index, queries, rounds, filter=ids))


def nearest_first(keys, queries, metric):
    """All vectors, those that are near any query first."""
    scores = keys @ queries.T
    if metric == "l2":
        scores -= (keys * keys).sum(axis=1)[:, None] / 2
        scores -= (queries * queries).sum(axis=1) / 2
    return np.argsort(-scores.max(axis=1))


def removals(rounds):
    table("vectors", "metric", "removed", "recall", "missing, worst query", "ms", "exact, ms", "ms / exact")
    for n in (20_000, 60_000):
        keys, queries = mixture(n)
        for metric in ("l2", "ip"):
            orders = {"at random": np.random.default_rng(1).permutation(n), "nearest": nearest_first(keys, queries, metric)}
            for name, order in orders.items():
                index, gone = built(keys, metric), 0
                for share in (0.5, 0.9, 0.99, 0.999):
                    index.remove(order[gone : round(n * share)])
                    gone = round(n * share)
                    row(f"{n}", metric, f"{100 * share:g} %, {name}", *beside_exact(index, queries, rounds))


def norms(rounds):
    has_graph = METHODS["hnswlib"].importable()
    table("norms", "directions", "recall", "hnswlib's", "ms", "exact, ms", "hnswlib, ms", "ms / hnswlib")
    for clustered in (True, False):
        for name in NORMS:
            keys, queries = normed(name, clustered=clustered)
            index = built(keys, "ip")
            calls = searches(index, queries)
            exact, graph_recall = calls["exact"](), np.nan
            found, _ = recall(calls["default"](), exact)
            if has_graph:
                graph = hnswlib_graph(keys, "ip", icecore.get_num_threads())
                graph.limit(100)
                calls["hnswlib"] = partial(graph.search, queries, K)
                graph_recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, calls["hnswlib"](), strict=True)])
            ms = {call: 1e3 * times.min() for call, times in alternate(calls, rounds).items()}
            ms.setdefault("hnswlib", np.nan)
            ratio = ms["default"] / ms["hnswlib"]
            row(name, "clustered" if clustered else "iid", f"{found:.3f}", f"{graph_recall:.3f}", *ms.values(), f"{ratio:.2f}")


def adds(rounds):
    table("vectors", "metric", "calls of add", "segments", "adding, ms", "recall", "ms", "ms / one call's")
    for n in (20_000, 60_000):
        keys, queries = mixture(n)
        for metric in ("l2", "ip"):
            indexes, adding = {}, {}
            for parts in (1, 2, 7, 40, 200, 2000):
                start = time.perf_counter()
                indexes[parts] = built(keys, metric, parts)
                adding[parts] = 1e3 * (time.perf_counter() - start)
            calls = {parts: partial(index.search, queries, K) for parts, index in indexes.items()}
            seconds = alternate(calls, rounds)
            for parts, index in indexes.items():
                found = recall(index.search(queries, K), index.search(queries, K, exact=True))[0]
                row(f"{n}", metric, f"{parts}", f"{index.stats['segments']}", adding[parts], f"{found:.3f}",
                    1e3 * seconds[parts].min(), f"{seconds[parts].min() / seconds[1].min():.2f}")


TABLES = {"filters": filters, "removals": removals, "norms": norms, "adds": adds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if not set(given.tables) <= set(TABLES):
        parser.error(f"tables are {', '.join(TABLES)}; got {' '.join(given.tables)}")
    print(machine())
    for name in given.tables or TABLES:
        TABLES[name](given.rounds)


if __name__ == "__main__":
    record()
    main()
