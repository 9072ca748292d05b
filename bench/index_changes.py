"""What bench_index.py measures beside searching: inserts and deletes one at a time, and files."""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from index_baselines import METHODS
from index_data import clustered

import icecore


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
