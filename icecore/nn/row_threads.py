"""The row-wise parts of a layer, shared between threads by chunks of rows."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock

import icecore

ROWS = 256  # per chunk: enough for fast products, few enough to stay in cache


@contextmanager
def row_threads(count):
    """Share work on rows between as many threads as icecore uses.

    BLAS's own threads wait for each other several times in every product, which takes long wherever others
    want the same cores, be they other programs or the threads of attention; chunks of rows never wait. BLAS
    is kept to one thread meanwhile, by threadpoolctl. Without that package the chunks run in turn on BLAS's
    own threads. A single chunk runs where it is, which saves the way to another thread.

    Parameters
    ----------
    count : int
        Number of rows.

    Yields
    ------
    callable
        ``over_rows(work)`` calls ``work(rows)`` for slices that cover 0..count, and raises what a call raised.
    """
    chunks = [slice(first, min(first + ROWS, count)) for first in range(0, count, ROWS)]
    one_blas_thread = _one_blas_thread()
    if one_blas_thread is None:
        yield lambda work: [work(rows) for rows in chunks]
        return
    with ThreadPoolExecutor(icecore.get_num_threads()) as pool:

        def over_rows(work):
            with one_blas_thread:
                list(map(work, chunks) if len(chunks) == 1 else pool.map(work, chunks))

        yield over_rows


class _OneBlasThread:
    """BLAS at one thread while any Python thread is within: the first that comes sets it, the last that goes restores it."""

    def __init__(self, controller):
        self._controller, self._lock = controller, Lock()
        self._within, self._limiter = 0, None

    def __enter__(self):
        with self._lock:
            if self._within == 0:
                self._limiter = self._controller.limit(limits=1)
            self._within += 1

    def __exit__(self, *_):
        with self._lock:
            self._within -= 1
            # Leaving a limit restores what it found, and gives up that threadpoolctl lets this thread alone set OpenBLAS.
            with self._limiter if self._within == 0 else self._controller.limit():
                pass


@cache
def _one_blas_thread():
    """What holds the loaded BLAS libraries to one thread, or None."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return _OneBlasThread(ThreadpoolController().select(user_api="blas"))
