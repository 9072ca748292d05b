"""The index against faiss, hnswlib and usearch: building and asking all queries, and asking alone, at equal recall.

    python -m pytest bench/bench_index.py                    (small cases, pytest-benchmark's table)
    python bench/bench_index.py [--set smollm2 dinov2 images embeddings logits clustered] [--k 10] [--recall 0.9 0.95 0.99]
    python bench/bench_index.py --dynamic                    (inserts and deletes one at a time)
    python bench/bench_index.py --file                       (saving, loading and mapping a gigabyte)
    python bench/bench_index.py --sublinear [--figure FILE]  (keys visited per query against n)

Every method is tuned on a sample of the queries, for each recall twice: for the least build + search of all queries, and for
the least search (index_tuning.py; baselines: index_baselines.py; data sets: index_data.py). Then icecore and what is near the
best of the others take turns: they build, and ask up to 5000 queries with the two budgets between whose recalls the wanted
one lies. Times are interpolated at that recall. What tuning found to take over twice the time of the best of the others is not
measured again.
"""

import argparse
import sys
import time
from functools import partial
from itertools import chain

import numpy as np
import pytest
from index_baselines import METHODS, Method, Searcher, pairs, steps
from index_changes import dynamic, on_disk
from index_data import SETS, clustered, dinov2, embeddings, images, intrinsic, logits, smollm2
from index_tuning import GOALS, Truth, Tuner, at_recall, cpu_clock, timed
from measure import REST, machine
from recorded import record

import icecore

ASKED, SAMPLE = 5000, 500  # queries to time searches with, and to tune and measure recall on
NEAR = 2  # times the best of the others: what is measured in turns
LENGTHS = [2**power for power in range(12, 19)]


def icecore_index(keys, metric, threads, **options):
    """icecore's index; its budgets are a dict."""
    index, budgets = icecore.Index(keys.shape[1], metric=metric, **options), {}
    with icecore.threads(threads):
        index.add(keys)

    def search(queries, k):
        return index.search(queries, k, num_threads=threads, **budgets).ids

    def limit(budget):
        budgets["field_of_view"], budgets["retrieve"] = budget

    return Searcher(search, limit, lambda k: pairs(steps(1, index.stats["cells"], 1.5), (k, 2 * k, 4 * k, 8 * k)))


def promotions(n):
    """Shares of the keys to promote: n**-0.5, the default, and others."""
    return [None, *(min(factor * n**-0.5, 0.5) for factor in (2, 0.5, 4))]


def _grid(keys, metric):
    return {"promotion": promotions(len(keys)), "num_levels": (2, 1)}


EVERY = {"icecore": Method(icecore_index, _grid, "icecore"), **METHODS}


class Run:
    """One method in turns: builds, asks with the budgets on both sides of a recall, and notes the seconds of each."""

    def __init__(self, method, choice, keys, queries, metric, threads, clock=time.perf_counter):
        self.build = partial(method.build, keys, metric, threads, **choice.options)
        self.choice, self.queries, self.clock, self.searcher = choice, queries, clock, None
        self.builds, self.searches, self.found = [], [], {}

    def turn(self, k, rebuild=True):
        if rebuild or self.searcher is None:
            self.searcher = None
            self.searcher = self._timed(self.builds, self.build)
        seconds = []
        for budget in self.choice.budgets:
            self.searcher.limit(budget)
            self.found[budget] = self._timed(seconds, self.searcher.search, self.queries, k)
        self.searches.append(seconds)

    def _timed(self, seconds, call, *arguments):
        time.sleep(REST)
        start = self.clock()
        result = call(*arguments)
        seconds.append(self.clock() - start)
        return result

    def searched(self, truth, recall):
        """Seconds of each search at a recall; the sample is what the queries begin with."""
        recalls = [truth.recall(ids[: len(truth.queries)]) for ids in self.found.values()]
        return np.array([at_recall(recall, recalls, seconds) for seconds in self.searches])


def rounds_for(seconds):
    """How many rounds of so long."""
    if seconds < 1:
        return 7
    return 3 if seconds < 5 else 1


def near(tuned, goal):
    """Names of the methods to be measured in turns."""
    cost = {name: getattr(best[goal], goal) for name, best in tuned.items()}
    limit = NEAR * min((seconds for name, seconds in cost.items() if name != "icecore"), default=np.inf)
    return [name for name in cost if name == "icecore" or cost[name] <= limit]


def measured(tuned, goal, case, k, recall):
    """{name: facts} for one target: seconds of build and of the search of all queries, and the goal's by icecore's."""
    keys, queries, metric, threads, truth, clock = case
    asked = queries[:ASKED]
    runs = {name: Run(EVERY[name], tuned[name][goal], keys, asked, metric, threads, clock) for name in near(tuned, goal)}
    share = len(asked) / len(queries)
    once = sum(run.choice.build + share * run.choice.search * len(run.choice.budgets) for run in runs.values())
    for turn in range(rounds_for(once)):
        for run in runs.values():
            run.turn(k, rebuild=goal == "total" or turn == 0)
    facts = {}
    for name, best in tuned.items():
        choice = best[goal]
        build, search = np.array([choice.build]), np.array([choice.search])
        if name in runs:
            build, search = runs[name].builds, runs[name].searched(truth, recall) / share
        facts[name] = {"choice": choice, "build": np.median(build), "search": np.median(search), "measured": name in runs}
        facts[name]["turns"] = (build if goal == "total" else 0) + search
    if "icecore" in facts:
        ours = facts["icecore"]["turns"]
        for name, of in facts.items():
            of["ratio"] = np.median(of["turns"] / ours) if name in runs else of["turns"][0] / np.median(ours)
    return facts


def compare(case, keys, queries, metric, targets, threads, tuning_seconds, clock):
    """((case, k, recall), {goal: {name: facts}}) of one data set; methods that do not reach a recall are left out."""
    queries = queries[np.random.default_rng(1).permutation(len(queries))]
    truth = Truth(keys, queries[:SAMPLE], metric, max(k for k, _ in targets))
    tuned, longest = {}, np.inf
    for name in sorted(EVERY, key=lambda name: name != "faiss flat"):
        method = EVERY[name]
        if metric not in method.metrics or not method.importable():
            continue
        begin = clock()
        tuner = Tuner(method, keys, metric, threads, targets, truth, len(queries), longest, clock)
        complete = tuner.tune(tuning_seconds)
        tuned[name] = tuner.best
        if name == "faiss flat":
            longest = max(best["search"].search for best in tuner.best.values()) / tuner.scale
        say(f"{case}, {name}: tuned in {clock() - begin:.0f} s{'' if complete else ', not all options tried'}")
    for k, recall in targets:
        reached = {name: best[k, recall] for name, best in tuned.items() if (k, recall) in best}
        data = keys, queries, metric, threads, truth, clock
        goals = {goal: measured(reached, goal, data, k, recall) for goal in GOALS}
        for goal, facts in goals.items():
            by_icecore = ", ".join(f"{name} {of.get('ratio', np.nan):.2f}" for name, of in facts.items())
            say(f"{case}, k={k}, recall {recall}, {goal}: {by_icecore}")
        yield (case, k, recall), goals


def say(text):
    """Progress; the tables stand alone in the output."""
    print(text, file=sys.stderr, flush=True)


def said(choice):
    """Options and budgets in few words."""
    settings = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in choice.options.items()}
    budgets = [str(budget) for budget in choice.budgets if budget is not None]
    return ", ".join([*(f"{name}={value}" for name, value in settings.items()), *([" to ".join(budgets)] if budgets else [])])


def heading(*columns):
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


def summary(results, queries):
    """icecore and the best of the others, for each data set and target."""
    heading("set", "k", "recall", "icecore ms (build + search)", "best of the others, ms", "×",
            "search alone: icecore, queries per s", "best of the others", "×")
    for (case, k, recall), goals in results.items():
        cells = []
        for goal, facts in goals.items():
            others = {name: of for name, of in facts.items() if name != "icecore"}
            best = min(others, key=lambda name: np.median(others[name]["turns"]), default=None)
            if best is None or "icecore" not in facts:
                cells += ["none"] * 3
                continue
            mine, of = facts["icecore"], others[best]
            if goal == "total":
                cells.append(f"{1e3 * np.median(mine['turns']):.0f} ({1e3 * mine['build']:.0f} + {1e3 * mine['search']:.0f})")
                cells.append(f"{1e3 * np.median(of['turns']):.0f} {best}")
            else:
                cells += [f"{queries[case] / mine['search']:.0f}", f"{queries[case] / of['search']:.0f} {best}"]
            cells.append(f"{of['ratio']:.2f}")
        print(f"| {case} | {k} | {recall} | " + " | ".join(cells) + " |")


def ratios(results):
    """Every method's time by icecore's, build + search / search alone; "~": from tuning."""
    names = [name for name in METHODS if any(name in facts for goals in results.values() for facts in goals.values())]
    heading("set", "k", "recall", *names)

    def cell(facts):
        return f"{'' if facts['measured'] else '~'}{facts['ratio']:.3g}" if "ratio" in facts else "?"

    for (case, k, recall), goals in results.items():
        cells = [" / ".join(cell(goals[goal][name]) for goal in GOALS) if name in goals["total"] else "–" for name in names]
        print(f"| {case} | {k} | {recall} | " + " | ".join(cells) + " |")


def details(results, queries):
    """What every method was tuned to."""
    print()
    for (case, k, recall), goals in results.items():
        for goal, facts in goals.items():
            for name, of in facts.items():
                what = "build + search" if goal == "total" else "search"
                speed = f"built in {of['build']:.3f} s, {queries[case] / of['search']:.0f} queries per s"
                print(f"{case}, k={k}, recall {recall}, {what}: {name}, {speed}; {said(of['choice'])}")


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
             "embeddings": embeddings, "logits": partial(logits, 512), "clustered": partial(clustered, 4096, clusters=50)}
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
    if metric not in EVERY[method].metrics:
        pytest.skip(f"{method} has no metric {metric!r}")
    truth = Truth(keys, queries[:300], metric, 10)
    tuner = Tuner(EVERY[method], keys, metric, icecore.get_num_threads(), [(10, 0.9)], truth, len(queries))
    tuner.tune(seconds=0)  # the default alone
    if not tuner.best and method != "icecore":
        pytest.skip(f"{method} does not reach the recall")
    choice = tuner.best[10, 0.9]["total"]
    run = Run(EVERY[method], choice, keys, queries, metric, icecore.get_num_threads())
    benchmark.pedantic(run.turn, args=(10,), rounds=3, warmup_rounds=1)
    recall = truth.recall(run.found[choice.budgets[-1]][:300])
    assert recall > 0.85
    benchmark.extra_info.update(machine(), recall=recall, options=str(choice.options), budgets=str(choice.budgets))


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
    parser.add_argument("--k", nargs="+", type=int, default=[10])
    parser.add_argument("--recall", nargs="+", type=float, default=[0.9, 0.95, 0.99])
    parser.add_argument("--keys", type=int, help="take only so many keys and queries of each set")
    parser.add_argument("--threads", type=int, default=icecore.get_num_threads())
    parser.add_argument("--tuning-seconds", type=float, default=12, help="for each method and case (default: %(default)s)")
    parser.add_argument("--cpu-time", action="store_true", help="by threads, where other work disturbs the clock")
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--file", action="store_true")
    parser.add_argument("--sublinear", action="store_true")
    parser.add_argument("--figure", metavar="FILE", help="of --sublinear")
    given = parser.parse_args()
    say(f"{machine() | {'threads': given.threads}}")
    if given.dynamic:
        dynamic(given.keys or 100_000)
    if given.file:
        on_disk(given.keys or 2_800_000)
    if given.sublinear or given.figure:
        rows = sublinear([n for n in LENGTHS if n <= (given.keys or n)], threads=given.threads)
        if given.figure:
            figure(rows, given.figure)
    others = given.dynamic or given.file or given.sublinear or given.figure
    wanted = given.set or ([] if others else SETS)
    targets = [(k, recall) for k in given.k for recall in given.recall]
    clock = cpu_clock(given.threads) if given.cpu_time else time.perf_counter
    results, asked = {}, {}
    try:
        for case, load in chain.from_iterable(SETS[name].items() for name in wanted):
            keys, queries, metric = load()
            if given.keys:
                keys, queries = keys[: given.keys], queries[: given.keys]
                case = f"{case}, {len(keys)} of the keys"
            asked[case] = len(queries)
            for target, goals in compare(case, keys, queries, metric, targets, given.threads, given.tuning_seconds, clock):
                results[target] = goals
    finally:  # also of a run that is interrupted
        if results:
            summary(results, asked)
            ratios(results)
            details(results, asked)


if __name__ == "__main__":
    record()
    main()
