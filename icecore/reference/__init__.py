"""Oracles: float64 NumPy that reads like the formulas. Slow, exact, and what the C core is tested against."""

from icecore.reference.cells import Cells, build_cells
from icecore.reference.dense import attention, top_k_attention
from icecore.reference.near_far import near_far_attention

__all__ = ["Cells", "attention", "build_cells", "near_far_attention", "top_k_attention"]
