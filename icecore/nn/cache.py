"""The keys and values of the tokens seen so far, in buffers that grow by doubling."""

import numpy as np


class KeyValueCache:
    """Keys and values of every layer, growing without copying the past at each step.

    A forward pass writes each layer with `write`, then makes the rows count with `advance`; a pass that is
    interrupted in between leaves the cache as it was. Not safe to share between threads that write.

    Attributes
    ----------
    length : int
        Number of tokens held.
    """

    def __init__(self):
        self.length = 0
        self._buffers = {}  # layer -> (keys, values), each (key_heads, capacity, head_width) float32

    def write(self, layer, key, value):
        """Write a layer's new rows after the tokens held and return all of the layer's rows.

        Parameters
        ----------
        layer : int
        key, value : ndarray, (key_heads, n, head_width) float32
            Copied.

        Returns
        -------
        keys, values : ndarray, (key_heads, length + n, head_width) float32
            Views of the buffers; good until the next `write` to this layer.
        """
        end = self.length + key.shape[1]
        keys, values = self._buffers.get(layer, (key[:, :0], value[:, :0]))
        if end > keys.shape[1]:
            capacity = max(end, 2 * self.length)
            keys, values = (self._grown(buffer, capacity) for buffer in (keys, values))
            self._buffers[layer] = keys, values
        keys[:, self.length : end] = key
        values[:, self.length : end] = value
        return keys[:, :end], values[:, :end]

    def attend(self, attention, layer, query, key, value, **options):
        """Write a layer's new rows and attend to all of the layer's rows.

        Parameters
        ----------
        attention : callable
            ``attention(query, keys, values, *, layer, **options) -> out``, over all rows.
        layer : int
        query : ndarray, (query_heads, n, head_width) float32
        key, value : ndarray, (key_heads, n, head_width) float32
            Copied.
        **options
            Passed on.

        Returns
        -------
        ndarray, (query_heads, n, head_width) float32
        """
        keys, values = self.write(layer, key, value)
        return attention(query, keys, values, layer=layer, **options)

    def advance(self, count):
        """Count the last `count` rows written to every layer as held."""
        self.length += count

    def rows(self):
        """(layer, (keys, values)) of the rows held, each layer in turn; good until the next `write`."""
        for layer, pair in self._buffers.items():
            yield layer, tuple(buffer[:, : self.length] for buffer in pair)

    def fork(self):
        """A cache of the same tokens that goes its own way: a prompt of which several things are asked. Copies them."""
        new = KeyValueCache()
        new.length = self.length
        new._buffers = {layer: tuple(self._grown(buffer, buffer.shape[1]) for buffer in pair)
                        for layer, pair in self._buffers.items()}
        return new

    def truncate(self, length):
        """Hold the first `length` tokens only."""
        check_length(length, self.length)
        self.length = length

    def _grown(self, buffer, capacity):
        """A buffer of the given capacity with the same first `length` rows."""
        heads, _, head_width = buffer.shape
        grown = np.empty((heads, capacity, head_width), np.float32)
        grown[:, : self.length] = buffer[:, : self.length]
        return grown


def check_length(length, held):
    """ValueError unless a cache that holds `held` tokens can be cut to `length`."""
    if not 0 <= length <= held:
        raise ValueError(f"length must lie in 0..{held}, the tokens held, got {length}")
