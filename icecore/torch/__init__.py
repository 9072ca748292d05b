"""PyTorch: attention on CPU tensors, torch's own function with a tolerance, and that function replaced inside a `with`.

    import icecore.torch

    with torch.inference_mode(), icecore.torch.replace_sdpa(tolerance=0.04):
        model(**inputs)
"""

from .packed import varlen_attention
from .replaced import replace_sdpa
from .sdpa import scaled_dot_product_attention
from .tensors import as_array, attention

__all__ = ["as_array", "attention", "replace_sdpa", "scaled_dot_product_attention", "varlen_attention"]
