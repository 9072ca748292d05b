"""Threads, instruction sets, interrupts and forks: settings act where they should and nowhere else."""

import contextvars
import ctypes
import ctypes.util
import io
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, inputs, near_far, run_python

import icecore
from icecore import _native
from icecore.selectors import PDCI

needs_openmp = pytest.mark.skipif(not _native.has_openmp(), reason="built without OpenMP")


# ---- Threads ----


@pytest.fixture
def process_threads():
    """Restores the process's thread count."""
    yield
    icecore.set_num_threads(None)


@needs_openmp
def test_set_num_threads(process_threads):
    usual = icecore.get_num_threads()
    assert usual >= 1
    icecore.set_num_threads(7)
    assert icecore.get_num_threads() == 7
    icecore.set_num_threads(np.int64(3))
    assert icecore.get_num_threads() == 3
    icecore.set_num_threads(None)
    assert icecore.get_num_threads() == usual


@needs_openmp
def test_threads_is_undone_at_the_end_of_the_block(process_threads):
    icecore.set_num_threads(5)
    with icecore.threads(2):
        assert icecore.get_num_threads() == 2
        with pytest.raises(KeyError), icecore.threads(3):
            assert icecore.get_num_threads() == 3
            raise KeyError
        assert icecore.get_num_threads() == 2
    assert icecore.get_num_threads() == 5


@needs_openmp
def test_threads_is_local_to_its_thread_and_task(process_threads):
    icecore.set_num_threads(5)
    seen = []
    with icecore.threads(2):
        other = threading.Thread(target=lambda: seen.append(icecore.get_num_threads()))
        other.start()
        other.join()
        contextvars.Context().run(lambda: seen.append(icecore.get_num_threads()))
        contextvars.copy_context().run(lambda: seen.append(icecore.get_num_threads()))
    assert seen == [5, 5, 2]


@pytest.mark.parametrize("setter", [icecore.set_num_threads, lambda n: icecore.threads(n).__enter__()])
@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n must be from 1 to 4096, got 0"),
        (-2, ValueError, "got -2"),
        (4097, ValueError, "got 4097"),
        (1.5, TypeError, "n must be an integer, got float"),
        ("2", TypeError, "got str"),
    ],
)
def test_bad_thread_counts(setter, n, error, message):
    before = icecore.get_num_threads()
    with pytest.raises(error, match=message):
        setter(n)
    assert icecore.get_num_threads() == before


@needs_openmp
def test_openmp_environment_is_respected():
    code = "import icecore; print(icecore.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS="1").stdout == "1\n"


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_is_respected():
    code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import icecore
print(icecore.get_num_threads())
"""
    assert run_python(code).stdout == "1\n"


@needs_openmp
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_a_call_starts_as_many_threads_as_it_was_told():
    code = """
import os
import numpy as np
import icecore
x = np.ones((500, 8), np.float32)
def started():
    return len(os.listdir("/proc/self/task")) - before
before = len(os.listdir("/proc/self/task"))
with icecore.threads(1):
    icecore.attention(x, x, x)
alone = started()
icecore.attention(x, x, x, num_threads=3)
print(alone, started())
"""
    assert run_python(code, OMP_DYNAMIC="false").stdout == "0 2\n"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 9000), (300, 300)])
def test_same_bits_for_any_number_of_threads(isa, queries, keys, dtype):
    arrays = inputs((4, queries, 40), (2, keys, 40), 24, dtype)
    one, *others = (
        icecore.attention(*arrays, causal=True, return_lse=True, num_threads=threads)
        for threads in (1, 2, 3, 2)
    )
    for other in others:
        assert_same_bits(other[0], one[0])
        assert_same_bits(other[1], one[1])


def test_calls_from_several_threads_at_once():
    problems = [inputs((2, 100, 16), (1, 400, 16), 16, seed=seed) for seed in range(24)]

    def solve(arrays):
        published = {"selector": PDCI(20, 100)}
        return icecore.attention(*arrays, num_threads=2), icecore.attention(
            *arrays, **published, num_threads=2
        )

    expected = [solve(arrays) for arrays in problems]
    with ThreadPoolExecutor(6) as pool:
        for actual, wanted in zip(pool.map(solve, problems), expected, strict=True):
            for a, w in zip(actual, wanted, strict=True):
                assert_same_bits(a, w)


# ---- Instruction sets ----


def test_set_isa(isa):
    assert _native.isa() == isa
    out = io.StringIO()
    icecore.show_config(out)
    assert f"isa active:  {isa}\n" in out.getvalue()


def test_set_isa_to_none_is_the_best_one(isa):
    icecore.set_isa(None)
    assert _native.isa() == _native.usable_isas()[-1]


@pytest.mark.parametrize("name", ["nonsense", "", "SCALAR"])
def test_unusable_isa(isa, name):
    with pytest.raises(ValueError, match=f"{name!r} is not usable here; usable: scalar"):
        icecore.set_isa(name)
    assert _native.isa() == isa


PRINT_ISA = "from icecore import _native; print(_native.isa())"


@pytest.mark.parametrize("name", _native.usable_isas())
def test_isa_from_the_environment(name):
    assert run_python(PRINT_ISA, ICECORE_ISA=name).stdout == f"{name}\n"


def test_an_empty_isa_in_the_environment_is_none():
    assert run_python(PRINT_ISA, ICECORE_ISA="").stdout == f"{_native.usable_isas()[-1]}\n"


def test_a_bad_isa_in_the_environment_is_reported_on_use():
    code = """
import numpy as np
import icecore
icecore.show_config()
x = np.ones((2, 4), np.float32)
for options in ({}, {"selector": icecore.selectors.PDCI(1)}):
    try:
        icecore.attention(x, x, x, **options)
    except RuntimeError as error:
        print("error:", error)
icecore.set_isa("scalar")
print(icecore.attention(x, x, x)[0, 0])
"""
    done = run_python(code, ICECORE_ISA="pentium")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 2
    assert all("ICECORE_ISA is 'pentium'" in line and "usable: scalar" in line for line in errors)
    assert "isa active:  none (ICECORE_ISA is 'pentium', which is not usable here)" in lines
    assert lines[-1] == "1.0"


def test_show_config(capsys):
    icecore.show_config()
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["icecore"] == icecore.__version__
    assert shown["numpy"] == np.__version__
    assert shown["isa built"].split(", ")[0] == "scalar"
    assert set(shown["isa usable"].split(", ")) <= set(shown["isa built"].split(", "))
    assert shown["openmp"] in ("True", "False")
    assert shown["threads"] == str(icecore.get_num_threads())


# ---- Interrupts and forks ----

INTERRUPTED = """
import os, signal, threading
import numpy as np
import icecore
from icecore import _cost_model, _native
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests were started in the background
out = np.full((60000, 64), np.nan, np.float32)
x = np.random.default_rng(0).standard_normal((60000, 64), np.float32)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", bool(np.isnan(out).any()))
# the library still works
print(icecore.attention(x[:1], x[:1], x[:1])[0, 0] == x[0, 0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_call(threads):
    """Many seconds of work: that the interrupt came inside shows in rows that were never computed."""
    done = run_python(INTERRUPTED.format(call=f"icecore.attention(x, x, x, out=out, num_threads={threads})"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted True\nTrue\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("options", ["k=8000", "selector=PDCI(8000)", "selector=PDCI(8000, 60000)"])
def test_ctrl_c_ends_a_long_call_of_few_keys(options):
    call = f"with _cost_model.use(_cost_model.NearFarAlways()): icecore.attention(x, x, x, out=out, causal=True, {options})"
    call = call.replace("PDCI", "icecore.selectors.PDCI")
    done = run_python(INTERRUPTED.format(call=call))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted True\nTrue\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_without_a_handler_ends_the_process():
    """The exception leaves the script, as for any Python code."""
    call = "icecore.attention(x, x, x, out=out)"
    code = INTERRUPTED.format(call=call).replace("except KeyboardInterrupt", "except ZeroDivisionError")
    done = run_python(code)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "KeyboardInterrupt" in done.stderr


MANY_SHORT_LOOPS = """
import signal, threading, os
import numpy as np
import icecore
signal.signal(signal.SIGINT, signal.default_int_handler)
tokens = np.random.default_rng(0).standard_normal((2, 60000, 64)).astype(np.float32)
cache = icecore.KVCache(2, 64, k=64, window=256)
cache.append(tokens, tokens)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    cache.attend(tokens)
except KeyboardInterrupt:
    print(cache.stats["sealed"] < 30000, cache.validate())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_a_call_of_many_short_loops():
    """Each block of a chunk is attended in loops of its own: a call that ended late has sealed most of them."""
    done = run_python(MANY_SHORT_LOOPS)
    assert done.stdout == "True True\n", done.stderr


ONE_LONG_TASK = """
import signal, threading, time, os
import numpy as np
import icecore
signal.signal(signal.SIGINT, signal.default_int_handler)
rows = np.random.default_rng(0).standard_normal((400000, 32)).astype(np.float32)
index = icecore.Index(32, num_levels=1)
index.add(rows)
found = np.full((480, 5), -7), np.full((480, 5), np.nan, np.float32)  # one task
stopped = False
for delay in np.linspace(0.01, 0.3, 8):
    found[0][...] = -7
    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        index.search(rows[:480], 5, exact=True, num_threads=1, out=found)
        time.sleep(2)  # it was done before, or too nearly so to be asked again
    except KeyboardInterrupt:
        stopped |= bool((found[0] == -7).all())
print(stopped)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_ends_a_long_task():
    """One thread searches for all queries together: it stops before the first one is answered."""
    done = run_python(ONE_LONG_TASK)
    assert done.stdout == "True\n", done.stderr


LONG_APPEND = """
import signal, threading, os
import numpy as np
import icecore
signal.signal(signal.SIGINT, signal.default_int_handler)
tokens = np.broadcast_to(np.ones((1, 64), np.float16), (8, 400000, 64))
caches, interrupted = [icecore.KVCache(8, 64), icecore.KVCache(8, 64)], False
caches[0].append(tokens[:, :100], tokens[:, :100])
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        caches[1] = icecore.KVCache(8, 64)
        caches[1].append(tokens, tokens)
except KeyboardInterrupt:
    print(len(caches[1]) in (0, 400000), caches[1].validate())
caches[1].truncate(0)
for cache in caches:
    cache.append(tokens[:, :9], tokens[:, :9])
print(len(caches[1]), bool((caches[1].attend(tokens[:, :9]) == 1).all()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_in_an_append_leaves_all_tokens_or_none():
    done = run_python(LONG_APPEND)
    assert done.stdout == "True True\n9 True\n", done.stderr


FORKED = """
import ctypes, ctypes.util, os, signal, sys
import numpy as np
{before}
{use}
child = os.fork()
if not child:
    signal.alarm(60)  # a child that hangs fails
    import icecore
    query = np.random.default_rng(0).standard_normal((4, 256, 16)).astype(np.float32)
    expected = icecore.attention(query, query, query, causal=True, num_threads=1)
    same = all(np.array_equal(icecore.attention(query, query, query, causal=True, num_threads=n), expected) for n in (2, 3))
    cache, index = icecore.KVCache(4, 16), icecore.Index(16)
    cache.append(query, query)
    cache.attend(query)
    index.add(np.resize(query, (3000, 16)), num_threads=2)
    index.search(query[0], 3, num_threads=2)
    os._exit(0 if same else 1)
print(os.waitpid(child, 0)[1])
"""
USE_OPENMP = """
runtime = ctypes.CDLL(ctypes.util.find_library("gomp") or "libgomp.so.1")
body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda context: None)
runtime.GOMP_parallel(body, None, 2, 0)
"""
USE_TORCH = "import torch; torch.set_num_threads(2); torch.exp(torch.randn(3000000))"


def has_gomp():
    try:
        return hasattr(ctypes.CDLL(ctypes.util.find_library("gomp") or "libgomp.so.1"), "GOMP_parallel")
    except OSError:
        return False


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork") or not has_gomp(), reason="needs fork and GNU's OpenMP")
@pytest.mark.parametrize("before", ["import icecore", ""], ids=["imported before", "imported in the child"])
def test_a_fork_after_others_used_openmp_computes(before):
    """Who shares OpenMP's runtime with icecore has used its threads, which the child lacks."""
    done = run_python(FORKED.format(before=before, use=USE_OPENMP))
    assert done.stdout == "0\n", done.stderr


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["import icecore", ""], ids=["imported before", "imported in the child"])
def test_a_fork_after_torch_used_threads_computes(before):
    pytest.importorskip("torch")
    done = run_python(FORKED.format(before=before, use=USE_TORCH))
    assert done.stdout == "0\n", done.stderr


FORKED_AT_WORK = """
import os, signal, threading
import numpy as np
import icecore
rows = np.random.default_rng(0).standard_normal((1, 20000, 64)).astype(np.float32)
cache, index, at_work = icecore.KVCache(1, 64, k=8), icecore.Index(64), threading.Event()
index.add(rows[0])
def work():
    at_work.set()
    while True:
        {call}
threading.Thread(target=work, daemon=True).start()
at_work.wait()
outcomes = []
for _ in range(4):
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)  # a child that hangs fails
        try:
            {use}
            os.write(sender, b"used")
        except RuntimeError as error:
            os.write(sender, b"refused" if "forked" in str(error) else b"failed")
        os._exit(0)
    os.close(sender)
    outcomes.append(os.read(receiver, 99).decode())
    os.waitpid(child, 0)
print(*outcomes, flush=True)  # before _exit, which writes nothing
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("call", "use", "outcomes"),
    [
        ("cache.append(rows, rows); cache.attend(rows[:, :1]); cache.truncate(0)", "len(cache)", {"used", "refused"}),
        ("index.search(rows[0], 5)", "index.add(rows[0, :3]); index.search(rows[0, :9], 5)", {"used"}),
        ("index.add(rows[0]); index.clear()", "index.add(rows[0, :3])", {"used", "refused"}),
    ],
    ids=["a cache in use", "an index that is searched", "an index that changes"],
)
def test_a_fork_while_another_thread_is_at_work_never_hangs(call, use, outcomes):
    """What is being changed is lost for the child, which is told so; what is only read can be used."""
    done = run_python(FORKED_AT_WORK.format(call=call, use=use))
    found = done.stdout.split()
    assert len(found) == 4, done.stderr
    assert set(found) <= outcomes


def attend_and_send(connection, arrays):
    connection.send(icecore.attention(*arrays, num_threads=2))
    connection.send(near_far(*arrays, k=20, threads=2).out)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use():
    """The child has the parent's memory but none of its threads."""
    arrays = inputs((2, 300, 16), (1, 300, 16), 16)
    context = multiprocessing.get_context("fork")
    expected = icecore.attention(*arrays, num_threads=2), near_far(*arrays, k=20, threads=2).out
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=attend_and_send, args=(sender, arrays))
    child.start()
    try:
        for wanted in expected:
            assert receiver.poll(60), "the forked child hangs"
            assert_same_bits(receiver.recv(), wanted)
        child.join(60)
        assert child.exitcode == 0
    finally:
        if child.is_alive():
            child.kill()
    assert_same_bits(icecore.attention(*arrays, num_threads=2), expected[0])  # the parent goes on
