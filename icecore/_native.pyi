# The compiled core (pyx/_native.pyx). Private: use the functions of `icecore`.
import numpy as np
from numpy.typing import NDArray

FLOAT32: int
FLOAT16: int
BFLOAT16: int

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
    near_keys: int,
    visit: int,
    far_field: bool,
    block: int,
    cell_size: int,
    seed: int,
    near_count: NDArray[np.int32] | None,
    captured_mass: NDArray[np.float32] | None,
    threads: int,
) -> None: ...
def build_segment(
    keys: NDArray[np.float32], values: NDArray[np.float32], cell_size: int, seed: int
) -> dict[str, bytes]: ...
