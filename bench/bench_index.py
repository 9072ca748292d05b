"""The index against faiss, hnswlib and usearch: building and asking all queries, and asking alone, at equal recall.

    python -m pytest bench/bench_index.py                    (small cases, pytest-benchmark's table)
    python bench/bench_index.py [--set smollm2 dinov2 images clustered] [--k 10 64] [--recall 0.9 0.95 0.99] [--json FILE]
    python bench/bench_index.py --dynamic                    (inserts and deletes one at a time)
    python bench/bench_index.py --file                       (saving, loading and mapping a gigabyte)
    python bench/bench_index.py --sublinear [--figure FILE]  (keys visited per query against n)

Every method is tuned on a sample of the queries, twice: for the least build + search of all queries, and for the least search.
Tuning is not in the times; the recall shown is that of other queries. The methods take turns; what the tuning found several
times slower than the best runs once. Data sets: index_data.py; tuning: index_baselines.py.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from index_baselines import METHODS, Method, Searcher, Truth, timed, tune
from index_data import SETS, clustered, dinov2, images, intrinsic, smollm2
from measure import alternate, machine
from recorded import record

import icecore

SAMPLE = 1000  # queries to tune on, and as many others to measure recall on
LENGTHS = [2**power for power in range(12, 19)]


def icecore_index(keys, metric, threads, **options):
    """icecore's index; its budgets are a dict, and it finds them itself."""
    index, budgets = icecore.Index(keys.shape[1], metric=metric, **options), {}
    with icecore.threads(threads):
        index.add(keys)

    def search(queries, k):
        return index.search(queries, k, num_threads=threads, **budgets).ids

    def limit(chosen):
        budgets.clear()
        budgets.update(chosen)

    def fit(queries, k, recall):
        with icecore.threads(threads):
            tuning = index.tune(queries, k, recall=recall)
        return tuning.budgets if tuning.recall >= recall else None

    return Searcher(search, limit, fit=fit)


def promotions(n):
    """Shares of the keys to promote: n**-0.5, the default, and others."""
    return [None, *(min(factor * n**-0.5, 0.5) for factor in (2, 0.5, 4))]


def _grid(keys, metric):
    return [*({"num_levels": 2, "promotion": share} for share in promotions(len(keys))), {"num_levels": 1}]


EVERY = METHODS | {"icecore": Method(icecore_index, _grid, "icecore")}


class Run:
    """Building an index and asking it all queries, as one call that notes the seconds of both."""

    def __init__(self, method, choice, keys, queries, metric, k, threads):
        self.build = partial(method.build, keys, metric, threads, **choice.options)
        self.choice, self.queries, self.k, self.seconds, self.ids, self.searcher = choice, queries, k, [], None, None

    def __call__(self):
        start = time.perf_counter()
        self.prepare()
        built = time.perf_counter()
        self.search()
        self.seconds.append((built - start, time.perf_counter() - built))
        self.searcher = None

    def prepare(self):
        self.searcher = self.build()
        self.searcher.limit(self.choice.budget)

    def search(self):
        self.ids = self.searcher.search(self.queries, self.k)


def sampled(count, seed):
    """Rows of the queries to sample."""
    return np.random.default_rng(seed).choice(count, min(SAMPLE, count), replace=False)


def rounds_for(seconds):
    """How many rounds of so long."""
    return 7 if seconds < 5 else 3 if seconds < 30 else 1


def turns(runs, what):
    """{name: seconds of each round}, of "total" or "search"; what is over four times slower than the best runs once."""
    cost = {name: getattr(run.choice, what) for name, run in runs.items()}
    often = [name for name in runs if cost[name] < 4 * min(cost.values()) or name == "icecore"]
    if what == "search":
        for run in runs.values():
            run.prepare()
    calls = {name: run if what == "total" else run.search for name, run in runs.items()}
    seconds = alternate({name: calls[name] for name in often}, rounds_for(sum(cost[name] for name in often)))
    for name in runs:
        if name not in often:
            start = time.perf_counter()
            calls[name]()
            seconds[name] = np.array([time.perf_counter() - start])
    if what == "total":  # without the time to free the index
        seconds = {name: np.sum(runs[name].seconds[-len(times) :], axis=1) for name, times in seconds.items()}
    return seconds


def compare(case, keys, queries, metric, targets, threads, tuning_seconds):
    """Rows of one data set, one for each target and method; those that do not reach a recall are left out."""
    maximum = max(k for k, _ in targets)
    tuning, judge = (queries[sampled(len(queries), seed)] for seed in (1, 2))
    rows_judged = sampled(len(queries), 2)
    tuning, judge = Truth(keys, tuning, metric, maximum), Truth(keys, judge, metric, maximum)
    tuned, rows, longest = {}, [], np.inf
    for name, method in EVERY.items():
        if not method.importable():
            print(f"{name}: not installed")
            continue
        begin = time.perf_counter()
        tuned[name], complete = tune(method, keys, queries, metric, threads, targets, tuning, tuning_seconds, longest)
        if name == "faiss flat":
            longest = 4 * max(best["search"].search for best in tuned[name].values()) * len(tuning.queries) / len(queries)
        print(f"{name}: tuned in {time.perf_counter() - begin:.0f} s{'' if complete else ', grid not exhausted'}", flush=True)
    for k, recall in targets:
        found = {name: best[k, recall] for name, best in tuned.items() if (k, recall) in best}
        group = {name: {"set": case, "k": k, "target": recall, "method": name} for name in found}
        for what in ("total", "search"):
            runs = {name: Run(EVERY[name], best[what], keys, queries, metric, k, threads) for name, best in found.items()}
            seconds = turns(runs, what)
            for name, run in runs.items():
                facts = {"recall": judge.recall(run.ids[rows_judged])}
                facts |= {"options": run.choice.options, "budget": run.choice.budget}
                if what == "total":
                    facts["build"], facts["search"] = np.median(run.seconds[-len(seconds[name]) :], axis=0).tolist()
                facts |= {"seconds": float(np.median(seconds[name])), "rounds": len(seconds[name])}
                if "icecore" in runs:
                    same = min(len(seconds[name]), len(seconds["icecore"]))
                    facts["ratio"] = float(np.median(seconds[name][:same] / seconds["icecore"][:same]))
                group[name][what] = facts
        show(group, case, len(keys), len(queries), k, recall)
        rows += group.values()
    return rows


def said(facts):
    """Options and budget in few words."""
    settings = dict(facts["options"])
    settings |= facts["budget"] if isinstance(facts["budget"], dict) else {"budget": facts["budget"]}
    settings = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in settings.items()}
    return " ".join(f"{name}={value}" for name, value in settings.items())


def show(group, case, keys, queries, k, recall):
    """The table of one data set and target."""
    print(f"\n{case}: {keys} keys, {queries} queries, k={k}, recall at least {recall}\n")
    print("| method | build s | search s | total s | recall | × icecore | with | search alone s | recall | × icecore | with |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, row in group.items():
        total, alone = row["total"], row["search"]
        ratios = [f"{facts['ratio']:.2f}" if "ratio" in facts else "" for facts in (total, alone)]
        print(f"| {name} | {total['build']:.3f} | {total['search']:.3f} | {total['seconds']:.3f} | {total['recall']:.3f} "
              f"| {ratios[0]} | {said(total)} | {alone['seconds']:.3f} | {alone['recall']:.3f} | {ratios[1]} | {said(alone)} |",
              flush=True)


def summary(rows):
    """The best baseline by icecore, for each data set and target."""
    print("\n| set | k | recall | best build + search | by icecore's | best search alone | by icecore's |")
    print("|---|---|---|---|---|---|---|")
    for case, k, recall in dict.fromkeys((row["set"], row["k"], row["target"]) for row in rows):
        group = [row for row in rows if (row["set"], row["k"], row["target"]) == (case, k, recall)]
        best = [min((row for row in group if row["method"] != "icecore" and row[what]["recall"] > recall - 0.03),
                    key=lambda row: row[what]["seconds"], default=None)  # a search that failed is not a fast one
                for what in ("total", "search")]
        cells = [f"{row['method']} | {row[what].get('ratio', np.nan):.2f}" if row else "none |"
                 for row, what in zip(best, ("total", "search"), strict=True)]
        print(f"| {case} | {k} | {recall} | {' | '.join(cells)} |")


def growing(keys):
    """Empty indices, one thread each: name, call to insert row i, call to delete it, bytes now, call to compact or None."""
    index = icecore.Index(keys.shape[1], metric="l2")
    yield "icecore", lambda i: index.add(keys[i : i + 1]), lambda i: index.remove([i]), lambda: index.nbytes, index.compact
    if METHODS["hnswlib"].importable():
        import hnswlib

        graph = hnswlib.Index("l2", keys.shape[1])
        graph.init_index(len(keys), M=8, ef_construction=40)
        insert = partial(graph.add_items, num_threads=1)
        yield "hnswlib", lambda i: insert(keys[i : i + 1], [i]), graph.mark_deleted, graph.index_file_size, None
    if METHODS["usearch"].importable():
        from usearch.index import Index

        other = Index(ndim=keys.shape[1], metric="l2sq", dtype="f32", connectivity=8, expansion_add=40)
        yield ("usearch", lambda i: other.add(i, keys[i], threads=1), lambda i: other.remove(i, threads=1),
               lambda: other.memory_usage, None)


def each(call, arguments):
    """Microseconds of every call."""
    taken = np.empty(len(arguments))
    for at, argument in enumerate(arguments):
        start = time.perf_counter_ns()
        call(argument)
        taken[at] = (time.perf_counter_ns() - start) / 1e3
    return taken


def dynamic(n=100_000, dim=64):
    """Rows: microseconds of single inserts and deletes with one thread, and memory by the size of the raw vectors."""
    keys, rows = clustered(n, dim)[0], []
    removed = np.random.default_rng(0).choice(n, n // 10, replace=False).tolist()
    print(f"\n{n} vectors of {dim} float32, one at a time, one thread; then a tenth of them deleted, one at a time")
    print("(hnswlib and usearch with small graphs, M=8 and construction 40; hnswlib only marks what is deleted)\n")
    print("| | insert us | median | p99 | largest | delete us | bytes / raw | after deleting | compacted |")
    print("|---|---|---|---|---|---|---|---|---|")
    with icecore.threads(1):
        for name, insert, delete, size, compact in growing(keys):
            inserts, full = each(insert, range(n)), size()
            deletes, less = each(delete, removed), size()
            row = {"insert": inserts.mean(), "median": np.median(inserts), "p99": np.quantile(inserts, 0.99)}
            row |= {"largest": inserts.max(), "delete": deletes.mean()}
            row |= {"bytes": full / keys.nbytes, "deleted": less / keys.nbytes}
            if compact:
                compact()
                row["compacted"] = size() / keys.nbytes
            rows.append({"method": name} | {what: float(value) for what, value in row.items()})
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |" * (9 - len(row)), flush=True)
        rows[0]["largest bytes"] = largest_size(keys)
    print(f"\nicecore, from {2 * n // 5} vectors on, merges under way: at most {rows[0]['largest bytes']:.2f} bytes / raw")
    return rows


def largest_size(keys):
    """The most bytes by the size of the raw vectors so far, while the last three fifths are added."""
    index, largest = icecore.Index(keys.shape[1], metric="l2"), 0.0
    for first in range(0, len(keys), 100):
        index.add(keys[first : first + 100])
        if first >= 2 * len(keys) // 5:
            largest = max(largest, index.nbytes / keys[: first + 100].nbytes)
    return largest


def on_disk(n=2_800_000, dim=64):
    """Milliseconds of what one does with a file of an index."""
    keys = np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)
    index = icecore.Index(dim)
    index.add(keys)
    row = {}

    def once(what, call, *arguments):
        start = time.perf_counter()
        result = call(*arguments)
        row[what] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index")
        once("save", index.save, path)
        once("load", icecore.Index.load, path)
        index = once("view", icecore.Index.view, path)
        once("first search", index.search, keys[:1], 10)
        once("first look-up", index.__contains__, 0)
        print(f"\na file of {path.stat().st_size / 1e9:.2f} GB, {n} vectors of {dim} float32; ms\n")
    print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
    print("| " + " | ".join(f"{1e3 * seconds:.1f}" for seconds in row.values()) + " |")
    return {what: float(1e3 * seconds) for what, seconds in row.items()}


def sublinear(lengths=LENGTHS, k=10, recall=0.9, threads=None):
    """Rows: keys visited per query at a recall, of the promotion that visits fewest, for keys of equal intrinsic dimension."""
    rows, threads = [], threads or icecore.get_num_threads()
    print(f"\nintrinsic dimension 8 in 64, k={k}, recall at least {recall}\n")
    print("| n | visited | share | us per query | recall | promotion |\n|---|---|---|---|---|---|")
    for n in lengths:
        keys, queries, metric = intrinsic(n)
        truth, found = Truth(keys, queries, metric, k), []
        for share in promotions(n):
            with icecore.threads(threads):
                index = icecore.Index(keys.shape[1], metric=metric, promotion=share)
                index.add(keys)
                tuning = index.tune(queries, k, recall=recall)
                if tuning.recall >= recall:
                    result, seconds = timed(index.search, queries, k, **tuning.budgets)
                    found.append({"n": n, "visited": float(tuning.visited), "share": float(tuning.visited / n),
                                  "us": seconds / len(queries) * 1e6, "recall": truth.recall(result.ids),
                                  "promotion": share or n**-0.5})
        if found:
            rows.append(min(found, key=lambda row: row["visited"]))
            print("| " + " | ".join(f"{value:.4g}" for value in rows[-1].values()) + " |", flush=True)
    exponent, _ = fitted(rows)
    print(f"\nvisited ~ n**{exponent:.3f}")
    return rows


def fitted(rows):
    """Exponent and factor of visited against n."""
    exponent, factor = np.polyfit(*(np.log([row[name] for row in rows]) for name in ("n", "visited")), 1)
    return float(exponent), float(np.exp(factor))


def figure(rows, path):
    """Visited against n, both logarithmic, with the fit and a scan of everything."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n, (exponent, factor) = np.array([row["n"] for row in rows]), fitted(rows)
    picture, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    axes.loglog(n, n, color="0.6", label="all keys")
    axes.loglog(n, factor * n**exponent, "--", color="C0", label=f"fit: $n^{{{exponent:.2f}}}$")
    axes.loglog(n, [row["visited"] for row in rows], "o", color="C0", label="icecore, recall 0.9")
    axes.set(xlabel="keys", ylabel="keys visited per query", title="intrinsic dimension 8, k = 10")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=150)


def small(name):
    """A few thousand keys of a data set, or skip."""
    if name in ("dinov2", "images"):
        pytest.importorskip("skimage")
    if name == "dinov2":
        pytest.importorskip("onnx")
    calls = {"smollm2": lambda: smollm2(15, 0), "dinov2": partial(dinov2, 6, 0, side=518), "images": partial(images, 4096),
             "clustered": partial(clustered, 4096, clusters=50)}
    try:
        keys, queries, metric = calls[name]()
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error))
    return keys[:4096], queries[:4096], metric


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("name", SETS)
def test_build_and_search(benchmark, name, method):
    benchmark.group = f"index {name}, k=10, recall 0.9"
    if not EVERY[method].importable():
        pytest.skip(f"{method} is not installed")
    keys, queries, metric = small(name)
    threads = icecore.get_num_threads()
    truth = Truth(keys, queries[sampled(len(queries), 1)[:300]], metric, 10)
    tried = EVERY[method].grid(keys, metric)[:2]
    best, _ = tune(EVERY[method], keys, queries, metric, threads, [(10, 0.9)], truth, options=tried)
    if not best and method != "icecore":
        pytest.skip(f"{method} does not reach the recall")
    choice = best[10, 0.9]["total"]
    run = Run(EVERY[method], choice, keys, queries, metric, 10, threads)
    run()
    recall = Truth(keys, queries, metric, 10).recall(run.ids)
    assert recall > 0.85
    benchmark.extra_info.update(machine(), recall=recall, options=str(choice.options), budget=str(choice.budget))
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


def test_insert(benchmark):
    benchmark.group = "2000 inserts, one at a time"
    keys = clustered(2000, 64, clusters=20)[0]

    def insert():
        index = icecore.Index(64, metric="l2")
        for row in range(len(keys)):
            index.add(keys[row : row + 1])
        return index

    benchmark.extra_info.update(machine())
    index = benchmark.pedantic(insert, rounds=3, warmup_rounds=1)
    assert len(index) == len(keys)
    index.remove([7])
    assert 7 not in index.search(keys[7:8], 10, exact=True).ids


def test_visited_keys(benchmark):
    benchmark.group = "visited keys"
    rows = benchmark.pedantic(lambda: sublinear([1024, 4096]), rounds=1)
    assert all(row["visited"] < row["n"] and row["recall"] > 0.85 for row in rows)
    benchmark.extra_info.update(machine(), exponent=fitted(rows)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", choices=SETS)
    parser.add_argument("--k", nargs="+", type=int, default=[10, 64])
    parser.add_argument("--recall", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--keys", type=int, help="take only so many keys and queries of each set")
    parser.add_argument("--threads", type=int, default=icecore.get_num_threads())
    parser.add_argument("--tuning-seconds", type=float, default=300, help="for each method and set (default: %(default)s)")
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--file", action="store_true")
    parser.add_argument("--sublinear", action="store_true")
    parser.add_argument("--figure", metavar="FILE", help="of --sublinear")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    results, wanted = {"machine": machine() | {"threads": given.threads}}, given.set
    print(results["machine"])
    if given.dynamic:
        results["dynamic"] = dynamic(given.keys or 100_000)
    if given.file:
        results["file"] = on_disk(given.keys or 2_800_000)
    if given.sublinear or given.figure:
        results["sublinear"] = sublinear([n for n in LENGTHS if n <= (given.keys or n)], threads=given.threads)
        if given.figure:
            figure(results["sublinear"], given.figure)
    if wanted is None:
        wanted = [] if len(results) > 1 else SETS
    targets = [(k, recall) for k in given.k for recall in given.recall]
    rows = []
    for case, load in chain.from_iterable(SETS[name].items() for name in wanted):
        keys, queries, metric = load()
        keys, queries = keys[: given.keys], queries[: given.keys]
        rows += compare(case, keys, queries, metric, targets, given.threads, given.tuning_seconds)
    if rows:
        summary(rows)
        results["search"] = rows
    if given.json:
        with open(given.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    record()
    main()
