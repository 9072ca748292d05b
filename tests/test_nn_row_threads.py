"""Chunks of rows cover every row once, in threads where BLAS can be held to one each, else in turn."""

import sys
import threading

import numpy as np
import pytest

import icecore
from icecore.nn import row_threads


@pytest.fixture(params=["with threadpoolctl", "without threadpoolctl"])
def threadpoolctl(request, monkeypatch):
    """Both cases: the package is there, or not."""
    if request.param == "without threadpoolctl":
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    else:
        pytest.importorskip("threadpoolctl")
    row_threads._blas.cache_clear()
    yield
    row_threads._blas.cache_clear()


@pytest.mark.parametrize("count", [1, 255, 256, 257, 2000])
def test_every_row_is_worked_on_once(threadpoolctl, count):
    visits = np.zeros(count, int)

    def work(rows):
        assert 0 < rows.stop - rows.start <= row_threads.ROWS
        visits[rows] += 1

    with row_threads.row_threads(count) as over_rows:
        over_rows(work)
        over_rows(work)
    assert (visits == 2).all()


def test_errors_of_the_work_come_through(threadpoolctl):
    def work(rows):
        if rows.start > 0:
            raise ZeroDivisionError

    with row_threads.row_threads(1000) as over_rows, pytest.raises(ZeroDivisionError):
        over_rows(work)


def test_threads_follow_icecore():
    """Four chunks that wait for each other finish only where four threads run them."""
    pytest.importorskip("threadpoolctl")
    barrier = threading.Barrier(4, timeout=60)
    with icecore.threads(4), row_threads.row_threads(4 * row_threads.ROWS) as over_rows:
        over_rows(lambda rows: barrier.wait())


@pytest.mark.parametrize("count", [1, 1000])
def test_blas_is_held_to_one_thread_only_meanwhile(count):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads():
        return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}

    seen = []
    with threadpoolctl.threadpool_limits(2, user_api="blas"), row_threads.row_threads(count) as over_rows:
        before = blas_threads()
        if not before:
            pytest.skip("threadpoolctl knows no BLAS here")
        over_rows(lambda rows: seen.append(blas_threads()))
        assert blas_threads() == before
    assert all(threads == {1} for threads in seen)
