"""An index that is interrupted, reports progress, and is used from several threads."""

import threading

import numpy as np
import pytest
from helpers import VARIANTS, assert_same_result, clusters, index_bytes, index_contents, normal, run_python
from test_index_changes import variants

import icecore

# ---- progress ----


@variants
def test_progress(variant):
    index, reports = icecore.Index(6, **VARIANTS[variant]), []
    index.add(clusters(0, 9000, 6), progress=lambda done, count: reports.append((done, count)))
    done = [d for d, _ in reports]
    assert len(done) > 5
    assert done == sorted(done)
    assert 0 <= done[0] < done[-1] == 9000
    assert {count for _, count in reports} == {9000}


class StopHere(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


@variants
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StopHere])
@pytest.mark.parametrize("call", [1, 10])
def test_progress_that_raises_leaves_the_index_as_it_was(variant, error, call):
    vectors, queries = clusters(0, 8000, 6), clusters(0, 20, 6)
    index = icecore.Index(6, **VARIANTS[variant])
    index.add(vectors[:1500])
    index.add(vectors[1500:2000])
    other = index.copy()
    before, found, stats = index_contents(index), index.search(queries, 5), index.stats
    calls = []

    def progress(done, count):
        calls.append(done)
        if len(calls) == call:
            raise error("enough")

    with pytest.raises(error, match="enough"):
        index.add(vectors[2000:], progress=progress)
    assert len(calls) == call
    assert index_contents(index) == before
    assert_same_result(index.search(queries, 5), found)
    assert index.validate()
    assert {name: index.stats[name] for name in ("count", "open", "removed", "segments", "next_id")} == {
        name: stats[name] for name in ("count", "open", "removed", "segments", "next_id")
    }
    # and it goes on as if nothing had been
    for each in (index, other):
        each.add(vectors[2000:])
    assert_same_result(index.search(queries, 5), other.search(queries, 5))
    assert index.validate()


USES = {
    "add": lambda index: index.add(np.ones(6)),
    "remove": lambda index: index.remove(0),
    "compact": lambda index: index.compact(),
    "clear": lambda index: index.clear(),
    "reserve": lambda index: index.reserve(10**5),
    "search": lambda index: index.search(np.ones(6), 1),
    "tune": lambda index: index.tune(np.ones(6), 1),
    "get": lambda index: index[0],
    "in": lambda index: 0 in index,
    "len": len,
    "ids": lambda index: index.ids,
    "iter": list,
    "stats": lambda index: index.stats,
    "nbytes": lambda index: index.nbytes,
    "copy": lambda index: index.copy(),
    "pickle": index_bytes,
    "validate": lambda index: index.validate(),
    "repr": repr,
}


@pytest.mark.parametrize("use", USES)
def test_progress_must_not_use_the_index(use):
    vectors = clusters(0, 3000, 6)
    index = icecore.Index(6)
    index.add(vectors[:1500])
    before = index_contents(index)
    with pytest.raises(RuntimeError, match="progress"):
        index.add(vectors[1500:], progress=lambda done, count: USES[use](index))
    assert index_contents(index) == before
    assert index.validate()


def test_control_c_leaves_the_index_as_it_was():
    """A signal ends a long call, which changes nothing then."""
    code = """
import signal, time, numpy as np, icecore
vectors = np.random.default_rng(0).standard_normal((400_000, 16)).astype(np.float32)
index = icecore.Index(16)
index.add(vectors[:2000])
before = index.search(vectors[:10], 5)
signal.setitimer(signal.ITIMER_REAL, 0.05)
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
try:
    index.add(vectors[2000:], num_threads=1)
except KeyboardInterrupt:
    assert len(index) == 2000 and index.validate()
    after = index.search(vectors[:10], 5)
    assert (after.ids == before.ids).all() and (after.scores == before.scores).all()
    index.add(vectors[2000:4000])
    assert len(index) == 4000 and index.validate()
    print("stopped")
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped\n"


def test_a_signal_handler_that_changes_the_index_it_interrupted_is_refused():
    """It may read while the index is searched, as other threads may."""
    code = """
import signal, numpy as np, icecore
vectors = np.random.default_rng(0).standard_normal((200_000, 16)).astype(np.float32)
index = icecore.Index(16)
index.add(vectors)
found = []
def use(*_):
    found.append(len(index))
    for change in (lambda: index.add(vectors[:2]), lambda: index.remove(0), index.clear, index.compact):
        try:
            change()
        except RuntimeError as error:
            found.append("at work in this thread" in str(error))
signal.signal(signal.SIGALRM, use)
signal.setitimer(signal.ITIMER_REAL, 0.1)
while not found:
    index.search(vectors[:4000], 5, exact=True)
print(*found)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "200000 True True True True\n"


# ---- Threads ----


def in_threads(*functions):
    """Runs all at once and raises what one of them raised."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@variants
def test_searches_while_others_change(variant):
    """Vector v of id i starts with i, so that every answer can be checked by itself."""
    dim, stop = 6, threading.Event()
    index = icecore.Index(dim, **VARIANTS[variant])

    def vectors_of(ids):
        rows = normal(3, 10000, dim)[ids % 10000]
        rows[:, 0] = ids % 1000
        return rows

    kept = np.arange(2000)  # these stay
    index.add(vectors_of(kept), kept)

    def change():
        try:
            for turn in range(40):
                ids = 10000 + 300 * turn + np.arange(300)
                index.add(vectors_of(ids), ids)
                if turn >= 3:
                    index.remove(ids - 900)
                if turn % 15 == 14:
                    index.compact()
        finally:
            stop.set()

    def search():
        queries = normal(threading.get_ident(), 5, dim)
        while not stop.is_set():
            for exact in (False, True):
                result = index.search(queries, 7, exact=exact, num_threads=2)
                assert (result.counts == 7).all()
                rows = vectors_of(result.ids.ravel()).reshape(5, 7, dim).astype(np.float64)
                product = (rows * queries[:, None]).sum(axis=2)
                true = product if index.metric == "ip" else ((rows - queries[:, None]) ** 2).sum(axis=2)
                np.testing.assert_allclose(result.scores, true, rtol=1e-4, atol=1e-2)

    def read():
        while not stop.is_set():
            ids = kept[:: np.random.default_rng().integers(1, 50)]
            np.testing.assert_array_equal(index[ids], vectors_of(ids))
            assert np.isin(kept, index.ids).all()
            assert 17 in index
            assert len(index) >= 2000
            assert len(index.copy()) >= 2000
            assert index.validate()

    in_threads(change, search, search, read)
    assert index.validate()
    assert len(index) == 2000 + 3 * 300


def test_threads_that_add_together():
    """Every vector gets an id of its own."""
    index, given = icecore.Index(4), []
    vectors = normal(0, 4, 50, 4)

    def add(part):
        for vector in vectors[part]:
            given.append((int(index.add(vector)[0]), vector))
            given.extend(zip(index.add(vectors[part][:10]).tolist(), vectors[part], strict=False))

    in_threads(*[lambda part=part: [add(part) for _ in range(10)] for part in range(4)])
    assert len({id for id, _ in given}) == len(given) == len(index) == 4 * 10 * 50 * 11
    for id, vector in given[::50]:
        np.testing.assert_array_equal(index[id], vector)


@pytest.mark.parametrize(
    "call",
    ["reserve(20000)", "copy()", "stats", "ids", "compact()", "remove(0)", "search(vectors[0], 3)", "validate()"],
)
def test_no_call_waits_for_ever(call):
    """The interpreter's lock and the index's own: a call that waits for one does not hold the other."""
    code = f"""
import threading, numpy as np, icecore
vectors = np.random.default_rng(0).standard_normal((60_000, 16)).astype(np.float32)
index = icecore.Index(16)
index.add(vectors[:3000])
started = threading.Event()
def progress(done, count):
    started.set()
adding = threading.Thread(target=lambda: index.add(vectors[3000:], progress=progress))
adding.start()
started.wait()
index.{call}
adding.join()
print(index.validate())
"""
    done = run_python(code, timeout=15)
    assert done.stdout == "True\n", done.stderr
