"""Oracles: float64 NumPy that reads like the formulas. Slow, exact, and what the C core is tested against."""

from icecore.reference.block_sparse import block_sparse_attention
from icecore.reference.cells import Cells, Tree, build_tree
from icecore.reference.codes import dequantize, quantize, quantized
from icecore.reference.dense import attention
from icecore.reference.indexer import indexer_top_k
from icecore.reference.indices import attend_indices
from icecore.reference.magicpig import magicpig_attention
from icecore.reference.measure import THRESHOLDS, Curve, choose_level, head_error, passing_level, row_curve
from icecore.reference.minference import minference_attention
from icecore.reference.near_far import near_far_attention
from icecore.reference.offset import has_offset, relative_rows
from icecore.reference.pages import arkvale_attention, pages_attention
from icecore.reference.pdci import pdci_attention
from icecore.reference.retroinfer import retroinfer_attention
from icecore.reference.search import (
    Level,
    lift_keys,
    lift_query,
    pdci_candidates,
    pdci_candidates_by_radius,
    pdci_search,
    search_exact,
    tree_search,
)
from icecore.reference.sparq import sparq_attention
from icecore.reference.top_k import top_k_attention
from icecore.reference.vattention import vattention_attention
from icecore.reference.xattention import xattention_attention
from icecore.reference.zeta import zeta_attention

__all__ = [
    "THRESHOLDS",
    "Cells",
    "Curve",
    "Level",
    "Tree",
    "arkvale_attention",
    "attend_indices",
    "attention",
    "block_sparse_attention",
    "build_tree",
    "choose_level",
    "dequantize",
    "has_offset",
    "head_error",
    "indexer_top_k",
    "lift_keys",
    "lift_query",
    "magicpig_attention",
    "minference_attention",
    "near_far_attention",
    "pages_attention",
    "passing_level",
    "pdci_attention",
    "pdci_candidates",
    "pdci_candidates_by_radius",
    "pdci_search",
    "quantize",
    "quantized",
    "relative_rows",
    "retroinfer_attention",
    "row_curve",
    "search_exact",
    "sparq_attention",
    "top_k_attention",
    "tree_search",
    "vattention_attention",
    "xattention_attention",
    "zeta_attention",
]
