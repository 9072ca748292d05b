"""Where the system gives no more memory or threads: a MemoryError or fewer threads, and nothing has changed."""

import sys

import pytest
from helpers import run_python

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of the address space")

#: `within(megabytes, call)`: what the call returns with so much more address space than is in use, or the MemoryError.
LIMITED = """
import mmap, resource  # numpy imports mmap when it first maps
import numpy as np
import icecore
HARD = resource.getrlimit(resource.RLIMIT_AS)[1]
def within(megabytes, call):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes * 2**20), HARD))
    try:
        return call()
    except MemoryError as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))
MEGABYTES = [0, 0.5, 1, 2, 3, 5, 8, 13, 21, 34, 4000]
random = np.random.default_rng(0)
rows = random.standard_normal((2, 40000, 32)).astype(np.float32)
def same(a, b):
    return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(a, b, strict=True))
"""

INDEX = """
index = icecore.Index(32)
index.add(rows[0, :3000])
queries, file = rows[1, :50], {path!r}
index.save(file)
def contents():
    ids = index.ids
    return ids, index[ids], *index.search(queries, 5, exact=True)
refused = 0
for name in ("add", "replace", "search", "copy", "validate", "load", "compact", "remove", "save"):
    for megabytes in MEGABYTES:
        tried, before = index.copy(), contents()
        call = dict(
            add=lambda: tried.add(rows[0, 3000:20000], num_threads=1),
            replace=lambda: tried.add(rows[1, :2500], np.arange(500, 3000), replace=True, num_threads=1),
            search=lambda: tried.search(rows[1, :2000], 100, num_threads=1),
            copy=lambda: tried.copy(), validate=lambda: tried.validate(), load=lambda: icecore.Index.load(file),
            compact=lambda: tried.compact(num_threads=1), remove=lambda: tried.remove(np.arange(2000), num_threads=1),
            save=lambda: tried.save(file),
        )[name]
        given = within(megabytes, call)
        if isinstance(given, MemoryError):
            refused += 1
            assert megabytes < 4000, name
            index, kept = tried, index
            assert same(contents(), before), (name, megabytes)
            index = kept
            call()
        assert tried.validate()
    assert len(icecore.Index.load(file)) == 3000
print(refused)
"""

CACHE = """
file = {path!r}
def made():
    cache = icecore.KVCache(2, 32, k=16)
    cache.append(rows[:, :5000], rows[:, :5000])
    cache.attend(rows[:, 4999:5000], num_threads=1)
    return cache
base = made()
base.save(file)
expected = made().attend(rows[:, :1], num_threads=1)
refused = 0
for name in ("append", "attend", "attend many", "truncate", "load", "view", "fork", "save"):
    for megabytes in MEGABYTES:
        cache = base.fork()
        if name == "attend many":
            cache.append(rows[:, 5000:9000], rows[:, 5000:9000])
        length = len(cache)
        call = dict([
            ("append", lambda: cache.append(rows[:, 5000:], rows[:, 5000:])),
            ("attend", lambda: cache.attend(rows[:, 4998:5000], num_threads=1)),
            ("attend many", lambda: cache.attend(rows[:, 5000:9000], num_threads=1)),
            ("truncate", lambda: cache.truncate(2100, num_threads=1)),
            ("load", lambda: icecore.KVCache.load(file)), ("view", lambda: icecore.KVCache.view(file)),
            ("fork", lambda: cache.fork()), ("save", lambda: cache.save(file)),
        ])[name]
        if isinstance(within(megabytes, call), MemoryError):
            refused += 1
            assert megabytes < 4000, name
            assert len(cache) == length, name
            if name == "attend many":  # a part of it may be sealed
                cache.truncate(5000)
                cache.append(rows[:, 5000:9000], rows[:, 5000:9000])
            else:
                assert same([cache.attend(rows[:, :1], num_threads=1)], [expected]), name
            call()
        assert cache.validate()
    assert len(icecore.KVCache.load(file)) == 5000
print(refused)
"""

ATTENTION = """
query = rows[:, :9000]
expected = icecore.attention(query, query, query, causal=True, k=32, num_threads=1)
refused = 0
for options in ({{}}, {{"k": 32}}, {{"tolerance": 0.3}}):
    q = rows[:, :20000] if options else rows[:, :3000]
    for megabytes in MEGABYTES[::2]:
        given = within(megabytes, lambda: icecore.attention(q, q, q, causal=True, num_threads=1, **options))
        refused += isinstance(given, MemoryError)
        assert megabytes < 4000 or not isinstance(given, MemoryError)
again = icecore.attention(query, query, query, causal=True, k=32, num_threads=1)
assert same([again], [expected])
print(refused)
"""


@pytest.mark.parametrize("code", [INDEX, CACHE, ATTENTION], ids=["index", "cache", "attention"])
def test_where_memory_ends_calls_say_so_and_change_nothing(tmp_path, code):
    # memory is asked of the system, not found in what was given back
    memory = {"MALLOC_MMAP_THRESHOLD_": "32768", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    done = run_python(LIMITED + code.format(path=str(tmp_path / "file")), timeout=600, **memory)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
