"""The keys and values of the tokens seen so far, in buffers that grow by doubling."""

import operator

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

        Raises
        ------
        ValueError
            Where the tokens held are of another model: of no such layer, or of other heads or widths.
        """
        end = self.length + key.shape[1]
        keys, values = self._buffers.get(layer, (key[:, :0], value[:, :0]))
        if self.length and layer not in self._buffers:
            raise ValueError(f"layer {layer} holds 0 of {self.length} tokens: the cache is of another model")
        for held, new, name in ((keys, key, "keys"), (values, value, "values")):
            if held.shape[::2] != new.shape[::2] and self.length:
                raise ValueError(f"layer {layer} holds {name} of (heads, width) {held.shape[::2]}, got {new.shape[::2]}: the "
                                 "cache is of another model")
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
        self.length = check_length(length, self.length)

    def _grown(self, buffer, capacity):
        """A buffer of the given capacity with the same first `length` rows."""
        heads, _, head_width = buffer.shape
        grown = np.empty((heads, capacity, head_width), np.float32)
        grown[:, : self.length] = buffer[:, : self.length]
        return grown


def check_length(length, held):
    """`length` as an int to which a cache that holds `held` tokens can be cut, or an error."""
    try:
        number = operator.index(length)
    except TypeError:
        raise TypeError(f"length must be an integer, got {type(length).__name__}") from None
    if not 0 <= number <= held:
        raise ValueError(f"length must lie in 0..{held}, the tokens held, got {number}")
    return number
