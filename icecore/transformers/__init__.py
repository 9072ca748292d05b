"""transformers: icecore's attention under a name, a cache that decodes by near/far attention, and a report of what was done.

    import icecore.transformers

    icecore.transformers.register("icecore", tolerance=0.04)
    model.set_attn_implementation("icecore")
    model.generate(**inputs, cache=icecore.transformers.NearFarCache(model.config))
"""

import transformers

from icecore.transformers.release import check_release

check_release(transformers.__version__)  # before what an older release lacks

from icecore.transformers.calls import report  # noqa: E402
from icecore.transformers.near_far_cache import NearFarCache  # noqa: E402
from icecore.transformers.registry import register  # noqa: E402

__all__ = ["NearFarCache", "register", "report"]
