"""A bar of progress with the time left."""

import sys
from contextlib import contextmanager


@contextmanager
def progress(total):
    """A function to call at each step: moves a bar on stderr if tqdm is installed, else does nothing.

    Parameters
    ----------
    total : float
        Of all steps together.

    Yields
    ------
    callable
        ``tick(message, amount=1)``.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        tqdm = None
    if tqdm is None:
        yield lambda message, amount=1: None
        return
    layout = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with tqdm(total=total, file=sys.stderr, leave=False, disable=None, bar_format=layout) as bar:

        def tick(message, amount=1):
            bar.set_description(message, refresh=False)
            bar.update(amount)

        yield tick
