"""transformers: icecore's attention under a name, a cache that decodes by near/far attention, and a report of what was done.

    import icecore.transformers

    icecore.transformers.register("icecore", tolerance=0.04)
    model.set_attn_implementation("icecore")
    model.generate(**inputs, cache=icecore.transformers.NearFarCache(model.config))
"""

from icecore.transformers.calls import report
from icecore.transformers.near_far_cache import NearFarCache
from icecore.transformers.registry import register

__all__ = ["NearFarCache", "register", "report"]
