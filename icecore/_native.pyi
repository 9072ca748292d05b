# The compiled core (pyx/_native.pyx). Private: use the functions of `icecore`.
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FLOAT32: int
FLOAT16: int
BFLOAT16: int
INT8: int

def built_isas() -> list[str]: ...
def usable_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str | None) -> None: ...
def has_openmp() -> bool: ...
def default_threads() -> int: ...
def selftest(isa: str) -> tuple[int, str]: ...
def attend_exact(
    dtype: int,
    query: NDArray,
    key: NDArray,
    value: NDArray,
    out: NDArray,
    lse: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    window: int,
    sinks: int,
    keep: NDArray[np.uint8] | None,
    bias: NDArray[np.float32] | None,
    threads: int,
) -> None: ...
def attend_near_far(
    dtype: int,
    query: NDArray,
    key: NDArray,
    value: NDArray,
    out: NDArray,
    lse: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    sinks: int,
    keep: NDArray[np.uint8] | None,
    bias: NDArray[np.float32] | None,
    near_keys: int,
    visit: int,
    far_field: bool,
    tolerance: float,
    head_tolerance: NDArray[np.float32] | None,
    head_threshold: NDArray[np.float32] | None,
    moments: NDArray[np.float32] | None,
    rounding: bool,
    block: int,
    cell_size: int,
    head_cell_size: NDArray[np.int64] | None,
    seed: int,
    near_count: NDArray[np.int32] | None,
    captured_mass: NDArray[np.float32] | None,
    missed_bound: NDArray[np.float32] | None,
    summaries: NDArray[np.int32] | None,
    seconds: NDArray[np.float64] | None,
    error: NDArray[np.float32] | None,
    standard_error: NDArray[np.float32] | None,
    error_rows: NDArray[np.int32] | None,
    threads: int,
    near_price: float = 0,
    node_price: float = 0,
) -> None: ...
def attend_pages(
    dtype: int,
    query: NDArray,
    key: NDArray,
    value: NDArray,
    out: NDArray,
    lse: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    near_keys: int,
    near_count: NDArray[np.int32] | None,
    threads: int,
) -> None: ...
def attend_indices(
    dtype: int,
    query: NDArray,
    key: NDArray,
    value: NDArray,
    out: NDArray,
    lse: NDArray[np.float32] | None,
    scale: float,
    causal: bool,
    indices: NDArray[np.int32] | NDArray[np.int64],
    threads: int,
) -> int | None: ...
def build_segment(
    keys: NDArray[np.float32], values: NDArray[np.float32], storage: int, moments: NDArray[np.float32] | None, cell_size: int,
    seed: int,
) -> dict[str, bytes]: ...

class Cache:
    @staticmethod
    def create(
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
        moments: NDArray[np.float32] | None,
    ) -> Cache: ...
    @staticmethod
    def map(
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
        moments: NDArray[np.float32] | None,
        count: int,
        arrays: list[tuple[str, str, NDArray[np.uint8]]],
        own: bool,
    ) -> tuple[list[Cache] | None, str | None]: ...
    @staticmethod
    def write(
        caches: list[Cache], function: Callable[[list[tuple[str, str, int]] | None, memoryview | None], object]
    ) -> None: ...
    def append(self, dtype: int, keys: NDArray, values: NDArray, queries: NDArray | None) -> None: ...
    def attend(
        self,
        dtype: int,
        query: NDArray,
        out: NDArray,
        lse: NDArray[np.float32] | None,
        scale: float,
        near_count: NDArray[np.int32] | None,
        captured_mass: NDArray[np.float32] | None,
        missed_bound: NDArray[np.float32] | None,
        summaries: NDArray[np.int32] | None,
        error: NDArray[np.float32] | None,
        standard_error: NDArray[np.float32] | None,
        error_rows: NDArray[np.int32] | None,
        head_tolerance: NDArray[np.float32] | None,
        head_threshold: NDArray[np.float32] | None,
        threads: int,
    ) -> None: ...
    def truncate(self, length: int, threads: int) -> None: ...
    def evictable(self, before: int) -> int: ...
    def evict(self, before: int) -> int: ...
    def fork(self) -> Cache: ...
    def state(self) -> dict[str, int]: ...
    def validate(self) -> str | None: ...

class Index:
    @staticmethod
    def create(
        dim: int, metric: int, composites: int, simples: int, levels: int, promotion: float, dtype: int, seed: int
    ) -> Index: ...
    @staticmethod
    def map(
        dim: int,
        metric: int,
        composites: int,
        simples: int,
        levels: int,
        promotion: float,
        dtype: int,
        seed: int,
        arrays: list[tuple[str, str, NDArray[np.uint8]]],
    ) -> tuple[Index | None, str | None]: ...
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
        k: int,
        visit: int,
        retrieve: int,
        field_of_view: int,
        extend: bool,
        exact: bool,
        allowed: NDArray[np.int64] | None,
        excluded: NDArray[np.int64] | None,
        threads: int,
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
