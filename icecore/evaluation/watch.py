"""What attention did while a model ran: near keys, captured mass and paths, averaged."""

import numpy as np

#: What `Watch.means` says.
COLUMNS = ("near_keys", "captured_mass", "sparse_calls")


class Watch:
    """Counts what a method's calls tell.

    Parameters
    ----------
    method : Method

    Attributes
    ----------
    method : Method
        The same, watched.
    """

    def __init__(self, method):
        self.method = method.watched(self)
        self._near_keys, self._captured_mass, self._sparse = [], [], []

    def __call__(self, layer, info):
        self._near_keys.append(float(np.mean(info.near_keys)))
        self._captured_mass.append(float(np.mean(info.captured_mass)))
        self._sparse.append(info.path == "near_far")

    def means(self):
        """Means over layers, heads and queries.

        Returns
        -------
        dict
            ``near_keys`` and ``captured_mass`` of a query, and ``sparse_calls``, the share of calls that were not computed
            exactly, as those are for which that is faster. A window's mass is None: it does not look at all keys.
        """
        columns = (self._near_keys, self._captured_mass, self._sparse)
        means = {name: float(np.mean(values)) for name, values in zip(COLUMNS, columns, strict=True)}
        return means | ({"captured_mass": None} if self.method.name == "window" else {})
