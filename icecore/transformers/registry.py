"""Names under which transformers finds icecore's attention."""

import functools
import re

import numpy as np
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import icecore
from icecore.transformers.attention import Settings, attend
from icecore.transformers.masks import compact_mask


def register(name="icecore", *, tolerance=None, k=None, window=None, sinks=None, min_keys=4096, num_threads=None):
    """Make icecore's attention known to transformers under a name: the attention function and the masks for it.

    Parameters
    ----------
    name : str
        For ``model.set_attn_implementation(name)`` and ``from_pretrained(..., attn_implementation=name)``. Several names with
        different settings may be registered; registering one again replaces its settings.
    tolerance, k, window, sinks, num_threads
        As in `icecore.attention`. Neither tolerance nor k: exact.
    min_keys : int
        Calls of fewer keys are exact.

    Returns
    -------
    str
        `name`.

    Raises
    ------
    TypeError, ValueError
        Arguments that `icecore.attention` would refuse; a name that transformers gives a meaning of its own.

    Notes
    -----
    Soft caps, logits of sinks, position biases and indices of an indexer are computed. Whatever icecore does not compute is
    computed by transformers' own functions, and a warning says so once: gradients, dropout, other devices, float64 and widths
    above 576, by its sdpa function, or by the model's eager function where there is a soft cap or a sink, which sdpa lacks. A
    keyword of an attention module that is not known is an error. `report` counts.

    Masks of padding, sliding windows, chunks, packed sequences, prefixes and blocks are kept as the first and the last key of
    each query; only those with holes, and those that users give in four dimensions, are arrays of queries x keys.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ValueError(f"name must be a word, got {name!r}")
    taken = name in ALL_ATTENTION_FUNCTIONS and getattr(ALL_ATTENTION_FUNCTIONS[name], "func", None) is not attend
    if taken or name == "eager" or "flash" in name or "flex" in name:
        raise ValueError(f"name is {name!r}, which means something else in transformers; expected a new one")
    if tolerance is None and k is None and (window is not None or sinks is not None):
        raise ValueError(f"window={window}, sinks={sinks} need tolerance or k; windows of a model are in its masks")
    if isinstance(min_keys, bool) or not isinstance(min_keys, int) or min_keys < 0:
        raise ValueError(f"min_keys must be an integer of at least 0, got {min_keys!r}")
    near_far = {} if tolerance is None and k is None else {"tolerance": tolerance, "k": k, "window": window, "sinks": sinks}
    one = np.zeros((1, 1), np.float32)
    icecore.attention(one, one, one, causal=True, num_threads=num_threads, **near_far)
    settings = Settings(near_far, min_keys, num_threads)
    transformers.AttentionInterface.register(name, functools.partial(attend, settings=settings))
    transformers.AttentionMaskInterface.register(name, compact_mask)
    return name


