"""The lock of a KVCache: all its sequences are one cache."""

from __future__ import annotations

import contextlib
import os
import threading


class CacheLock:
    """Other threads wait. Whoever would wait for ever is refused: who interrupted this thread, and who was forked while a
    thread held the lock that is not there."""

    def __init__(self):
        self._lock, self._worker, self._process = threading.RLock(), None, os.getpid()

    @contextlib.contextmanager
    def held(self):
        if self._process != os.getpid():
            if self._worker not in (None, threading.get_ident()):
                raise RuntimeError(
                    "another thread was using the cache when this process was forked: this copy of it is lost; fork while no "
                    "thread uses it, or make or load it in the child"
                )
            self._lock, self._process = threading.RLock(), os.getpid()
        with self._lock:
            if self._worker is not None:
                raise RuntimeError("the cache is at work in this thread; a signal handler cannot use it until that is done")
            try:
                self._worker = threading.get_ident()
                yield
            finally:
                self._worker = None
