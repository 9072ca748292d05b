"""Fast attention for long sequences on CPUs: pretrained transformers run unchanged, exactly or to an error that you choose."""

from importlib.util import find_spec

if find_spec("icecore._native") is None:
    raise ImportError(
        f"icecore is not built in {__path__[0]}: run pip install -e . in its source folder, or leave that folder to import "
        "an installed icecore"
    )

from icecore import selectors
from icecore._attend_indices import attend_indices
from icecore._attention import attention
from icecore._cache import KVCache
from icecore._calibrate import calibrate
from icecore._index import Index
from icecore._index_results import RangeResult, SearchResult
from icecore._index_tuning import Tuning
from icecore._indexer import indexer_top_k
from icecore._info import AttentionInfo
from icecore._merge import merge_states
from icecore._metric import query_metric
from icecore._plan import HeadPlan, LayerPlan, Plan
from icecore._runtime import get_num_threads, set_isa, set_num_threads, show_config, threads

__version__ = "0.1.0"

__all__ = [
    "AttentionInfo",
    "HeadPlan",
    "Index",
    "KVCache",
    "LayerPlan",
    "Plan",
    "RangeResult",
    "SearchResult",
    "Tuning",
    "attend_indices",
    "attention",
    "calibrate",
    "get_num_threads",
    "indexer_top_k",
    "merge_states",
    "query_metric",
    "selectors",
    "set_isa",
    "set_num_threads",
    "show_config",
    "threads",
]
