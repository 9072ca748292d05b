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
    row_threads._one_blas_thread.cache_clear()
    yield
    row_threads._one_blas_thread.cache_clear()


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


@pytest.mark.parametrize("first_out", [0, 1])
def test_blas_has_its_threads_back_when_calls_of_several_threads_have_overlapped(first_out):
    """The second comes while the first is within; either goes first, and both threads live on."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads():
        return {info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"}

    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    for library in controller.lib_controllers:
        library.set_num_threads(2)
    with controller.limit():  # this thread alone could set them otherwise
        pass
    before = blas_threads()
    if before != {2}:
        pytest.skip("threadpoolctl knows no BLAS with threads here")
    entered, leave, left, end = ([threading.Event(), threading.Event()] for _ in range(4))

    def work(number):
        def wait(rows):
            entered[number].set()
            leave[number].wait(60)

        with row_threads.row_threads(1) as over_rows:
            over_rows(wait)
        left[number].set()
        end[number].wait(60)

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread, event in zip(threads, entered, strict=True):
        thread.start()
        assert event.wait(60)
    for number in (first_out, 1 - first_out):
        assert blas_threads() == {1}
        leave[number].set()
        assert left[number].wait(60)
    try:
        assert blas_threads() == {2}
    finally:
        for event, thread in zip(end, threads, strict=True):
            event.set()
            thread.join()
