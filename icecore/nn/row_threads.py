"""The row-wise parts of a layer, shared between threads by chunks of rows."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

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
    blas = _blas()
    if blas is None:
        yield lambda work: [work(rows) for rows in chunks]
        return
    with ThreadPoolExecutor(icecore.get_num_threads()) as pool:

        def over_rows(work):
            with blas.limit(limits=1, user_api="blas"):
                list(map(work, chunks) if len(chunks) == 1 else pool.map(work, chunks))

        yield over_rows


@cache
def _blas():
    """What sets the threads of the loaded BLAS libraries, or None."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
