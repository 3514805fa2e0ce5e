"""What can be done to an image, described: plain values, checked, that `draw` and `cpu` look up.

All ranges are (low, high) and drawn from uniformly unless said otherwise; lists do for tuples. `p` is the probability
that an operation is applied to an image at all. A value that is not allowed raises a `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Size = int | Sequence[int]
Range = Sequence[float]


class Operation:
    """One step of a view.

    Called on its own it is a transform: of a PIL image, uint8 tensor (channels, height, width) or uint8 array (height,
    width, channels) into another of its kind, drawing from the default torch generator.
    """

    def __call__(self, image: Any) -> Any:
        """Return the image, changed."""
        from .views import transform  # views are made of operations

        return transform(self, image)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen, but not before it is checked

    def _require(self, is_right: bool, name: str, expected: str) -> None:
        if not is_right:
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, not {getattr(self, name)!r}.")

    def _check_probability(self) -> None:
        p = getattr(self, "p")  # noqa: B009  (not every operation has one)
        self._require(_is_number(p) and 0 <= p <= 1, "p", "between 0 and 1")

    def _check_range(self, name: str, low: float, high: float) -> None:
        """Take (a, b) with low ≤ a ≤ b ≤ high."""
        limit = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        expected = f"two numbers {limit}, the smaller one first"
        value = getattr(self, name)
        self._require(_are_numbers(value) and len(value) == 2, name, expected)
        self._require(low <= value[0] <= value[1] <= high, name, expected)
        self._set(name, tuple(map(float, value)))

    def _check_size(self) -> None:
        """Take (height, width); a number for a square."""
        size = self.size if isinstance(self.size, Sequence) else (self.size, self.size)  # type: ignore[attr-defined]
        self._require(len(size) == 2 and all(map(_is_count, size)), "size", "one or two counts of pixels")
        self._set("size", tuple(size))


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """Cut out a box and resize it (bilinear, antialiased).

    Of ten drawn boxes the first that fits is taken; if none does, the largest one in the middle whose aspect ratio is
    allowed (Szegedy et al., "Going deeper with convolutions", CVPR 2015).

    Parameters
    ----------
    size
        Of the result: (height, width), or one number for a square.
    scale
        Area of the box, as a fraction of the image's.
    ratio
        Width / height of the box; its logarithm is drawn uniformly.
    """

    size: Size
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        self._check_size()
        self._check_range("scale", 0, 1)
        self._check_range("ratio", 1e-3, 1e3)


@dataclass(frozen=True)
class Resize(Operation):
    """Resize the whole image (bilinear, antialiased): the shorter side to `size`, or to (height, width)."""

    size: Size

    def __post_init__(self) -> None:
        if _is_count(self.size):
            return
        self._check_size()


@dataclass(frozen=True)
class CenterCrop(Operation):
    """Cut out the middle, of `size` pixels: (height, width), or one number for a square."""

    size: Size

    def __post_init__(self) -> None:
        self._check_size()


@dataclass(frozen=True)
class HorizontalFlip(Operation):
    """Swap left and right."""

    p: float = 0.5

    def __post_init__(self) -> None:
        self._check_probability()


@dataclass(frozen=True)
class VerticalFlip(Operation):
    """Swap top and bottom."""

    p: float = 0.5

    def __post_init__(self) -> None:
        self._check_probability()


@dataclass(frozen=True)
class Affine(Operation):
    """Rotate, shift, scale and shear about the centre; what comes from outside is black.

    Parameters
    ----------
    degrees
        Range of the rotation; a number d stands for (-d, d).
    translate
        Largest shift along x and y, as fractions of width and height.
    scale
        Range of the factor.
    shear
        Range of the angle along x in degrees; a number s stands for (-s, s), four numbers for ranges along x and y.
    interpolation
        "nearest" or "bilinear".
    """

    degrees: float | Range = 0.0
    translate: Range = (0.0, 0.0)
    scale: Range = (1.0, 1.0)
    shear: float | Range = 0.0
    p: float = 1.0
    interpolation: str = "nearest"

    def __post_init__(self) -> None:
        if _is_number(self.degrees):
            self._set("degrees", (-abs(self.degrees), abs(self.degrees)))  # type: ignore[arg-type]
        if _is_number(self.shear):
            self._set("shear", (-abs(self.shear), abs(self.shear)))  # type: ignore[arg-type]
        self._require(_are_numbers(self.shear) and len(self.shear) in (2, 4), "shear", "1, 2 or 4 angles")  # type: ignore
        self._set("shear", (*map(float, self.shear), 0.0, 0.0)[:4])  # type: ignore[arg-type]
        self._check_range("degrees", -360, 360)
        is_right = (
            _are_numbers(self.translate) and len(self.translate) == 2 and all(0 <= t <= 1 for t in self.translate)
        )
        self._require(is_right, "translate", "two fractions from 0 to 1")
        self._set("translate", tuple(map(float, self.translate)))
        self._check_range("scale", 1e-3, 1e3)
        self._check_probability()
        self._require(self.interpolation in ("nearest", "bilinear"), "interpolation", "'nearest' or 'bilinear'")


@dataclass(frozen=True)
class ColorJitter(Operation):
    """Change brightness, contrast, saturation and hue, in an order drawn for each image.

    Parameters
    ----------
    brightness, contrast, saturation
        Range of the factor; a number b stands for (max(0, 1 - b), 1 + b).
    hue
        Range of the difference, in turns, within (-0.5, 0.5); a number h stands for (-h, h).

    Images of one channel have neither saturation nor hue: these changes are left out.
    """

    brightness: float | Range = 0.0
    contrast: float | Range = 0.0
    saturation: float | Range = 0.0
    hue: float | Range = 0.0
    p: float = 0.8

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if _is_number(value) and value >= 0:
                self._set(name, (max(0.0, 1 - value), 1 + value))
            self._check_range(name, 0, math.inf)
        if _is_number(self.hue):
            self._set("hue", (-self.hue, self.hue))  # type: ignore[operator]
        self._check_range("hue", -0.5, 0.5)
        self._check_probability()


@dataclass(frozen=True)
class Grayscale(Operation):
    """Give all channels the luma of ITU-R BT.601."""

    p: float = 0.1

    def __post_init__(self) -> None:
        self._check_probability()


@dataclass(frozen=True)
class GaussianBlur(Operation):
    """Blur with a Gaussian.

    Parameters
    ----------
    kernel_size
        Taps along each axis, odd. Sides of the image must be longer than half of that.
    sigma
        Range of the standard deviation, in pixels.
    """

    kernel_size: int = 23
    sigma: Range = (0.1, 2.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        self._require(_is_count(self.kernel_size) and self.kernel_size % 2 == 1, "kernel_size", "an odd count of taps")
        self._check_range("sigma", 1e-3, math.inf)
        self._check_probability()


@dataclass(frozen=True)
class Solarize(Operation):
    """Invert the values from `threshold` on, a level from 0 to 255."""

    threshold: float = 128
    p: float = 0.2

    def __post_init__(self) -> None:
        self._require(_is_number(self.threshold) and 0 <= self.threshold <= 255, "threshold", "a level from 0 to 255")
        self._check_probability()


@dataclass(frozen=True)
class Erasing(Operation):
    """Fill a box with one value (Zhong et al., "Random erasing data augmentation", AAAI 2020).

    Parameters
    ----------
    scale
        Area of the box, as a fraction of the image's.
    ratio
        Height / width of the box; its logarithm is drawn uniformly.
    value
        Of all channels, or one for each: before `Normalize` a level from 0 to 255, after it in the units of the output.

    Of ten drawn boxes the first that is smaller than the image is taken; if none is, nothing is erased.
    """

    p: float = 0.5
    scale: Range = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if _is_number(self.value):
            self._set("value", (self.value,))
        self._check_range("scale", 0, 1)
        self._check_range("ratio", 1e-3, 1e3)
        self._require(_are_numbers(self.value) and len(self.value) > 0, "value", "a number, or one for each channel")  # type: ignore
        self._set("value", tuple(map(float, self.value)))  # type: ignore[arg-type]
        self._check_probability()


@dataclass(frozen=True)
class Normalize(Operation):
    """Make (value / 255 - mean) / std of each value: float32. One of each for all channels, or one for each channel."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if _is_number(getattr(self, name)):
                self._set(name, (getattr(self, name),))
            self._require(_are_numbers(getattr(self, name)), name, "a number, or one for each channel")
            self._set(name, tuple(map(float, getattr(self, name))))
        self._require(len(self.mean) > 0, "mean", "a number, or one for each channel")
        self._require(all(value > 0 for value in self.std), "std", "above 0")
        self._require(len(self.std) == len(self.mean), "std", f"{len(self.mean)} numbers, as many as mean has")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_number, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
