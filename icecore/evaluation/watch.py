"""What attention did while a model ran: near keys and captured mass, averaged."""

import numpy as np


class Watch:
    """Counts what an `evaluation.methods.Method` tells of its calls.

    Calls that name no near keys or mass (a path without them) are left out.
    """

    def __init__(self):
        self._near_keys, self._captured_mass = [], []

    def __call__(self, layer, info):
        self._near_keys.append(float(np.mean(info.near_keys)))
        self._captured_mass.append(float(np.mean(info.captured_mass)))

    def means(self):
        """Mean over layers, heads and queries: a dictionary of near_keys and captured_mass, None where nothing was told."""
        columns = {"near_keys": self._near_keys, "captured_mass": self._captured_mass}
        return {name: float(np.mean(values)) if values else None for name, values in columns.items()}
