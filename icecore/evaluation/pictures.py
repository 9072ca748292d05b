"""Pairs of views of a picture for which it is known what corresponds to what."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

#: Of scikit-image: photographs, each seen by the views of `AFFINE`, and a pair of a stereo camera.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
STEREO = "motorcycle"
PICTURES = (*PHOTOGRAPHS, STEREO)
#: The first view is a square of this share of a photograph's shorter side, from its top left corner.
SHARE = 0.8
#: View -> (scale, offset) down and across: point p of the view, in 0..1, lies at scale * p + offset of the first view.
AFFINE = {
    "shift": ((1.0, 0.13), (1.0, 0.19)),
    "flip": ((1.0, 0.0), (-1.0, 1.0)),
    "zoom": ((0.75, 0.11), (0.75, 0.13)),
}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pixels that DINOv2 and ViT were trained on


@dataclass(frozen=True)
class View:
    """A second view of a picture, and where the points of the first are in it.

    Attributes
    ----------
    pixels : ndarray, (side, side, 3) float32
        Normalized.
    places : ndarray, (rows, rows, 2) float64
        For the centre of each patch of the first view, down and across in patches of the second, as pixels are counted: 0.0 is
        the centre of the first patch. NaN where that is not known.
    """

    pixels: np.ndarray
    places: np.ndarray


def views(name, side, patch):
    """The views of a picture.

    Parameters
    ----------
    name : str
        One of `PICTURES`.
    side : int
        Of all views, in pixels; a multiple of `patch`.
    patch : int

    Returns
    -------
    first : ndarray, (side, side, 3) float32
        The first view, normalized.
    others : dict of str to View

    Raises
    ------
    ImportError
        If scikit-image is missing.
    ValueError
        If there is no such picture.
    """
    if name not in PICTURES:
        raise ValueError(f"picture must be one of {', '.join(PICTURES)}, got {name!r}")
    return _stereo(side, patch) if name == STEREO else _photograph(name, side, patch)


def _photograph(name, side, patch):
    picture = getattr(_data(), name)()[..., :3]
    length = SHARE * min(picture.shape[:2])
    grid = (np.arange(side) + 0.5) / side  # (side,): centres of pixels, 0..1
    centres = (np.arange(side // patch) + 0.5) * patch / side  # (rows,)
    others = {}
    for view, axes in AFFINE.items():
        down, across = (scale * grid + offset for scale, offset in axes)
        places = [(centres - offset) / scale for scale, offset in axes]  # the inverse: first view to second
        places = np.stack(np.meshgrid(*places, indexing="ij"), axis=2)  # (rows, rows, 2)
        others[view] = View(_sampled(picture, length * down, length * across), places * side / patch - 0.5)
    return _sampled(picture, length * grid, length * grid), others


def _stereo(side, patch):
    """The square in the middle of both pictures; a point of the left one lies `disparity` pixels further left in the right."""
    left, right, disparity = _data().stereo_motorcycle()
    length = left.shape[0]
    start = (left.shape[1] - length) // 2
    grid = (np.arange(side) + 0.5) * length / side  # (side,)
    centres = (np.arange(side // patch) + 0.5) * patch * length / side  # (rows,)
    at = centres.astype(int)
    shift = disparity[np.ix_(at, start + at)].astype(np.float64)  # (rows, rows)
    shift[~np.isfinite(shift)] = np.nan
    down, across = np.meshgrid(centres, centres, indexing="ij")  # (rows, rows) each
    places = np.stack([down, across - shift], axis=2) * side / (length * patch) - 0.5
    second = View(_sampled(right, grid, start + grid), places)
    return _sampled(left, grid, start + grid), {"stereo": second}


def _data():
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("the pictures are not installed: pip install scikit-image") from error
    return data


def _sampled(picture, down, across):
    """A picture of 8-bit colours at places in its pixels, normalized: (height, width, 3) -> (len(down), len(across), 3)."""
    coordinates = np.meshgrid(down - 0.5, across - 0.5, indexing="ij")
    channels = [map_coordinates(channel / np.float32(255), coordinates, np.float32, order=1, mode="nearest")
                for channel in np.moveaxis(picture, 2, 0).astype(np.float32)]
    return ((np.stack(channels, axis=2) - np.float32(MEAN)) / np.float32(DEVIATION)).astype(np.float32)
