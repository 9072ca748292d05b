# The compiled core (pyx/). Private: use the functions of `icecore`.
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FLOAT32: int
FLOAT16: int
BFLOAT16: int
INT8: int
INT4: int

def built_isas() -> list[str]: ...
def usable_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str | None) -> None: ...
def has_openmp() -> bool: ...
def default_threads() -> int: ...
def selftest(isa: str) -> tuple[int, str]: ...

class Problem:
    def __init__(
        self,
        *,
        dtype: int,
        query: NDArray,
        key: NDArray | None = None,
        value: NDArray | None = None,
        out: NDArray,
        lse: NDArray[np.float32] | None = None,
        scale: float,
        softcap: float = 0,
        sink_logits: NDArray[np.float32] | None = None,
        alibi_slopes: NDArray[np.float32] | None = None,
        causal: bool = False,
        window_left: int = -1,
        window_right: int = -1,
        sinks: int = 0,
        ranges: NDArray[np.int64] | None = None,
        keep: NDArray[np.uint8] | None = None,
        bias: NDArray[np.float32] | None = None,
        threads: int = 0,
    ) -> None: ...

class NearFar:
    def __init__(
        self,
        *,
        near_keys: int = 1,
        tolerance: float = 0,
        head_tolerance: NDArray[np.float32] | None = None,
        head_threshold: NDArray[np.float32] | None = None,
        near_price: float = 0,
        node_price: float = 0,
        moments: NDArray[np.float32] | None = None,
        rounding: bool = False,
        block: int = 1,
        cell_size: int = 1,
        head_cell_size: NDArray[np.int64] | None = None,
        seed: int = 0,
    ) -> None: ...

class Report:
    def __init__(
        self,
        *,
        near_count: NDArray[np.int32] | None = None,
        captured_mass: NDArray[np.float32] | None = None,
        missed_bound: NDArray[np.float32] | None = None,
        summaries: NDArray[np.int32] | None = None,
        error: NDArray[np.float32] | None = None,
        standard_error: NDArray[np.float32] | None = None,
        error_rows: NDArray[np.int32] | None = None,
        seconds: NDArray[np.float64] | None = None,
    ) -> None: ...

def attend_exact(problem: Problem) -> None: ...
def multiplies_bfloat16(dim: int, value_dim: int) -> bool: ...
def multiplies_in_thirds(dim: int, value_dim: int, rows: int) -> bool: ...
def attend_rounded(problem: Problem, options: NearFar, report: Report) -> None: ...
def attend_near_far(problem: Problem, options: NearFar, report: Report) -> None: ...
def near_far_count(
    options: NearFar, query_heads: int, key_heads: int, queries: int, keys: int, causal: bool, sinks: int
) -> bytes: ...
def attend_top_k(problem: Problem, near_keys: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_minference(problem: Problem, vertical: int, slash: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_block_sparse(problem: Problem, near_keys: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_pages(problem: Problem, near_keys: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_xattention(problem: Problem, stride: int, threshold: float, near_count: NDArray[np.int32] | None) -> None: ...
def attend_zeta(problem: Problem, near_keys: int, seed: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_vattention(
    problem: Problem, near_keys: int, sinks: int, window: int, epsilon: float, delta: float, seed: int,
    near_count: NDArray[np.int32] | None,
) -> None: ...
def attend_arkvale(problem: Problem, near_keys: int, page: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_retroinfer(
    problem: Problem, retrieval: float, estimation: float, segment: int, sinks: int, local: int, seed: int,
    near_count: NDArray[np.int32] | None,
) -> None: ...
def attend_pdci(problem: Problem, near_keys: int, visit: int, seed: int, near_count: NDArray[np.int32] | None) -> None: ...
def attend_sparq(
    problem: Problem, near_keys: int, components: int, local: int, near_count: NDArray[np.int32] | None
) -> None: ...
def attend_magicpig(
    problem: Problem, bits: int, tables: int, sinks: int, local: int, seed: int, near_count: NDArray[np.int32] | None
) -> None: ...
def indexer_top_k(
    dtype: int, query: NDArray, key: NDArray, weights: NDArray[np.float32], causal: bool, indices: NDArray[np.int32],
    threads: int,
) -> None: ...
def attend_indices(problem: Problem, indices: NDArray[np.int32] | NDArray[np.int64], block: int) -> int | None: ...
def build_segment(
    keys: NDArray[np.float32], values: NDArray[np.float32], storage: int, moments: NDArray[np.float32] | None, cell_size: int,
    seed: int,
) -> dict[str, bytes]: ...

class CacheOptions:
    def __init__(
        self,
        *,
        heads: int,
        dim: int,
        value_dim: int,
        dtype: int,
        near_keys: int,
        tolerance: float,
        block: int,
        sinks: int,
        cell_size: int,
        seed: int,
        moments: NDArray[np.float32] | None = None,
    ) -> None: ...

class Cache:
    @staticmethod
    def create(options: CacheOptions) -> Cache: ...
    @staticmethod
    def map(
        options: CacheOptions, count: int, arrays: list[tuple[str, str, NDArray[np.uint8]]], own: bool
    ) -> tuple[list[Cache] | None, str | None]: ...
    @staticmethod
    def write(
        caches: list[Cache], function: Callable[[list[tuple[str, str, int]] | None, memoryview | None], object]
    ) -> None: ...
    def append(self, dtype: int, keys: NDArray, values: NDArray, queries: NDArray | None) -> None: ...
    @staticmethod
    def attend(
        caches: list[Cache], rows: NDArray[np.int64] | None, problem: Problem, options: NearFar, report: Report
    ) -> None: ...
    def truncate(self, length: int, threads: int) -> None: ...
    def evict(self, before: int) -> int: ...
    def fork(self) -> Cache: ...
    def state(self) -> dict[str, int]: ...
    def read(self, keys: NDArray[np.float32] | None, values: NDArray[np.float32] | None) -> None: ...
    def validate(self) -> str | None: ...

class IndexOptions:
    def __init__(
        self, *, dim: int, metric: int, composites: int, simples: int, levels: int, promotion: float, dtype: int, seed: int
    ) -> None: ...

class Search:
    def __init__(
        self,
        *,
        k: int,
        visit: int = 0,
        retrieve: int = 0,
        field_of_view: int = 0,
        extend: bool = False,
        exact: bool = False,
        allowed: NDArray[np.int64] | None = None,
        excluded: NDArray[np.int64] | None = None,
        threads: int = 0,
    ) -> None: ...

class Index:
    @staticmethod
    def create(options: IndexOptions) -> Index: ...
    @staticmethod
    def map(options: IndexOptions, arrays: list[tuple[str, str, NDArray[np.uint8]]]) -> tuple[Index | None, str | None]: ...
    def copy(self) -> Index: ...
    def reserve(self, count: int) -> None: ...
    def add(
        self,
        vectors: NDArray[np.float32],
        ids: NDArray[np.int64] | None,
        replace: bool,
        progress: Callable[[float], object] | None,
        threads: int,
    ) -> int: ...
    def remove(self, ids: NDArray[np.int64], absent_too: bool, threads: int) -> int: ...
    def compact(self, threads: int) -> None: ...
    def clear(self) -> None: ...
    def search(
        self,
        queries: NDArray[np.float32],
        search: Search,
        ids: NDArray[np.int64],
        scores: NDArray[np.float32],
        counts: NDArray[np.int64],
        visited: NDArray[np.int64] | None,
    ) -> None: ...
    def get(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None: ...
    def contains(self, ids: NDArray[np.int64], present: NDArray[np.uint8]) -> None: ...
    def state(self) -> dict[str, int]: ...
    def ids(self, ids: NDArray[np.int64]) -> int: ...
    def validate(self) -> str | None: ...
    def write(self, function: Callable[[list[tuple[str, str, int]] | None, memoryview | None], object]) -> None: ...
