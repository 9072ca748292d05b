"""A decoder's cache whose layers attend by near/far attention."""

import icecore

from .cache import KeyValueCache


class NearFarCache:
    """An `icecore.KVCache` for every layer, to be used wherever a `KeyValueCache` is.

    The first pass, the prompt's, goes to the model's `attention`, which sees all of it; later ones attend from the cache.
    Layers with a sliding window keep all tokens as they are and attend exactly. A pass that is interrupted leaves the cache
    as it was.

    Parameters
    ----------
    plan : icecore.Plan, optional
        Of the model's layers; the first pass then goes by it too if the model's `attention` is ``plan.attention``.
    **options
        Of `icecore.KVCache`: ``tolerance`` or ``k``, ``window``, ``dtype`` and others.

    Attributes
    ----------
    length : int
        Number of tokens held.
    """

    def __init__(self, *, plan=None, **options):
        self.length, self._plan = 0, plan
        self._options = options
        self._layers = {}  # layer -> icecore.KVCache
        self._sliding = KeyValueCache()

    def attend(self, attention, layer, query, key, value, **options):
        """Add a layer's new rows and attend to all it holds; arguments and result as of `KeyValueCache.attend`."""
        if options.get("window") is not None:
            return self._sliding.attend(attention, layer, query, key, value, **options)
        if layer not in self._layers:
            heads, _, width = key.shape
            options_of_layer = self._options if self._plan is None else self._options | {"plan": self._plan[layer]}
            self._layers[layer] = icecore.KVCache(heads, width, value_dim=value.shape[-1], **options_of_layer)
        cache = self._layers[layer]
        if len(cache) > self.length:  # of a pass that was interrupted
            cache.truncate(self.length)
        cache.append(key, value)
        return cache.attend(query) if self.length else attention(query, key, value, layer=layer, **options)

    def advance(self, count):
        """Count the last `count` rows added to every layer as held."""
        self.length += count
        self._sliding.advance(count)
