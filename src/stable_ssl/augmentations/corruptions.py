"""Corruptions of images: noise, blur, weather and compression, of five severities (Hendrycks and Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019).

They are transforms for a torchvision pipeline or for a data set, not operations of a `View`. They take a PIL image, a
uint8 tensor (channels, height, width) or a uint8 array (height, width, channels), and return one of the same kind. What
is random comes from NumPy's default generator, so a loader makes it reproducible.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from torch import nn

from .images import as_array, like, look_over


class Corruption(nn.Module):
    """Change the levels of an image. A subclass defines `strengths` and `change`.

    Parameters
    ----------
    severity
        From 1 to 5; 0 leaves the image as it is.

    Raises
    ------
    ValueError
        The severity is another one, or the image is not of uint8.
    """

    strengths: ClassVar[tuple[Any, ...]]  # of the severities 1 to 5

    def __init__(self, severity: int = 1):
        super().__init__()
        if severity not in range(6):
            raise ValueError(f"{type(self).__name__}: severity must be a whole number from 0 to 5, not {severity!r}.")
        self.severity = severity

    def forward(self, image: Any) -> Any:
        """Return the image, corrupted."""
        if self.severity == 0:
            return image
        (levels,), _, _ = look_over([as_array(image)], [0])
        changed = np.array(self.change(levels, self.strengths[self.severity - 1]))  # what PIL gives can't be written to
        return like(image, changed.transpose(2, 0, 1))

    def change(self, levels: np.ndarray, strength: Any) -> np.ndarray:
        """Return uint8 levels (height, width, channels), corrupted with one of the `strengths`."""
        raise NotImplementedError(f"{type(self).__name__} has no change.")


class CustomGaussianNoise(Corruption):
    """Add normal noise; strengths are its standard deviations for values from 0 to 1."""

    strengths = (0.08, 0.12, 0.18, 0.26, 0.38)

    def change(self, levels: np.ndarray, strength: float) -> np.ndarray:
        """Return noisy levels."""
        return _as_levels(levels / 255 + np.random.normal(size=levels.shape, scale=strength))


class ShotNoise(Corruption):
    """Replace values by counts of photons, which have a Poisson distribution; strengths are the photons of white."""

    strengths = (60, 25, 12, 5, 3)

    def change(self, levels: np.ndarray, strength: int) -> np.ndarray:
        """Return noisy levels."""
        return _as_levels(np.random.poisson(levels / 255 * strength) / strength)


class SpeckleNoise(Corruption):
    """Add normal noise in proportion to each value; strengths are its standard deviations, as fractions of that."""

    strengths = (0.15, 0.2, 0.35, 0.45, 0.6)

    def change(self, levels: np.ndarray, strength: float) -> np.ndarray:
        """Return noisy levels."""
        values = levels / 255
        return _as_levels(values + values * np.random.normal(size=levels.shape, scale=strength))


class Contrast(Corruption):
    """Bring values nearer to the mean of their channel; strengths are what is left of the differences."""

    strengths = (0.4, 0.3, 0.2, 0.1, 0.05)

    def change(self, levels: np.ndarray, strength: float) -> np.ndarray:
        """Return levels of less contrast."""
        values = levels / 255
        means = values.mean(axis=(0, 1), keepdims=True)
        return _as_levels((values - means) * strength + means)


class ZoomBlur(Corruption):
    """Average the image and enlargements of its middle, as a camera does that zooms while it takes a picture.

    An image that has not 32 × 32 pixels is first resized to 256 × 256 pixels, of which the middle 224 × 224 are taken.
    Strengths are the factors of the enlargements.
    """

    strengths = tuple(
        np.arange(1, *ends) for ends in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    )

    def change(self, levels: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """Return blurred levels."""
        values = (_prepared(levels) / 255).astype(np.float32)
        return _as_levels((values + sum(clipped_zoom(values, factor) for factor in strength)) / (len(strength) + 1))


class Fog(Corruption):
    """Add random clouds; strengths are their brightness, and by how much finer clouds are weaker.

    An image that has not 32 × 32 pixels is first resized, as for `ZoomBlur`.
    """

    strengths = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))

    def change(self, levels: np.ndarray, strength: tuple[float, float]) -> np.ndarray:
        """Return foggy levels."""
        values = _prepared(levels) / 255
        height, width = values.shape[:2]
        brightness, decay = strength
        clouds = plasma_fractal(32 if height == 32 else 256, decay)[:height, :width, None]
        lightest = values.max()
        return _as_levels((values + brightness * clouds) * lightest / (lightest + brightness))


class JPEGCompression(Corruption):
    """Write the image as a JPEG file and read it; strengths are the qualities."""

    strengths = (25, 18, 15, 10, 7)

    def change(self, levels: np.ndarray, strength: int) -> np.ndarray:
        """Return levels after the compression."""
        from PIL import Image

        file = BytesIO()
        _as_picture(levels).save(file, "JPEG", quality=strength)
        with Image.open(file) as picture:
            return as_array(picture)


class Pixelate(Corruption):
    """Make the image small and large again. It has 32 × 32 pixels if it was 32 pixels wide, and 224 × 224 otherwise.

    Strengths are the factors of its size in between.

    Parameters
    ----------
    size
        Has no effect, as in early 2025.
    severity
        From 1 to 5; 0 leaves the image as it is.
    """

    strengths = (0.6, 0.5, 0.4, 0.3, 0.25)

    def __init__(self, size: int = 32, severity: int = 1):
        super().__init__(severity)

    def change(self, levels: np.ndarray, strength: float) -> np.ndarray:
        """Return levels of coarse pixels."""
        from PIL.Image import Resampling

        side = 32 if levels.shape[1] == 32 else 224
        small = _as_picture(levels).resize((int(side * strength),) * 2, Resampling.BOX)
        return as_array(small.resize((side, side), Resampling.BOX))


def clipped_zoom(img: np.ndarray, zoom_factor: float) -> np.ndarray:
    """Return the middle of a square image (side, side, channels), enlarged to the size of the image."""
    from scipy.ndimage import zoom

    side = len(img)
    kept = int(np.ceil(side / zoom_factor))
    first = (side - kept) // 2
    enlarged: np.ndarray = zoom(img[first : first + kept, first : first + kept], (zoom_factor, zoom_factor, 1), order=1)
    first = (len(enlarged) - side) // 2
    return enlarged[first : first + side, first : first + side]


def plasma_fractal(mapsize: int = 256, wibbledecay: float = 3) -> np.ndarray:
    """Return random heights from 0 to 1, (mapsize, mapsize), by the diamond-square algorithm. Borders are periodic.

    Parameters
    ----------
    mapsize
        A power of two, at least 2.
    wibbledecay
        What the randomness is divided by, each time that the distance between points is halved.
    """
    if mapsize < 2 or mapsize & (mapsize - 1):
        raise ValueError(f"plasma_fractal: mapsize must be a power of two, not {mapsize}.")
    heights = np.zeros((mapsize, mapsize))
    step, spread = mapsize, 100.0

    def moved(sums: np.ndarray) -> Any:
        return sums / 4 + spread * np.random.uniform(-spread, spread, sums.shape)

    while step >= 2:
        known, middle = slice(0, None, step), slice(step // 2, None, step)
        corners = heights[known, known]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[middle, middle] = moved(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[middle, middle]
        for place, axis in (((known, middle), 0), ((middle, known), 1)):
            beside = centres + np.roll(centres, 1, axis) + (corners + np.roll(corners, -1, 1 - axis))
            heights[place] = moved(beside)
        step, spread = step // 2, spread / wibbledecay
    heights -= heights.min()
    heights /= heights.max()
    return heights


def _as_levels(values: Any) -> np.ndarray:
    levels: np.ndarray = (values.clip(0, 1) * 255).astype(np.uint8)
    return levels


def _as_picture(levels: np.ndarray) -> Any:
    return like(None, levels.transpose(2, 0, 1))


def _prepared(levels: np.ndarray) -> np.ndarray:
    if levels.shape[:2] == (32, 32):
        return levels
    return as_array(_as_picture(levels).resize((256, 256)).crop((16, 16, 240, 240)))
