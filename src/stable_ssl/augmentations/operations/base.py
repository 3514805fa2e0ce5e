"""What every operation on an image has: the contract, and the checks of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...exceptions import nearest
from ..draw import Drawn, any_key, draw
from ..images import as_array, like, look_over

Size = int | Sequence[int]
Range = Sequence[float]

WHITE = 255.0
MOST_IN_CACHE = 1 << 20  # values of a batch that may stay in a cache until they are used
PIL_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers for ways to interpolate


class Operation:
    """One step of a view.

    Called on its own it is a transform. It takes a PIL image, a uint8 tensor (channels, height, width) or a uint8 array
    (height, width, channels), returns one of the same kind, and draws from the default torch generator.

    A new operation is a subclass in a file of its own: a frozen dataclass of plain values, which raises a ValueError
    for a value that is not allowed. It defines `on_cpu` and `on_device`, and whatever else differs from this class. All
    ranges are (low, high) and drawn from uniformly unless said otherwise; lists do for tuples.

    Attributes
    ----------
    num_draws
        How many uniform numbers per image `draw` takes.
    resizes
        Whether the results have another size than the images.
    takes_floats
        Whether the operation may follow one that makes float32 values, such as `Normalize`.
    """

    num_draws: ClassVar[int] = 0
    resizes: ClassVar[bool] = False
    takes_floats: ClassVar[bool] = False

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers of channels that an image may have; none for any number."""
        return ()

    @property
    def least_size(self) -> tuple[int, int]:
        """The smallest height and width that an image may have."""
        return 1, 1

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of every result; None if they depend on the image."""
        return None

    def output_size(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Return height and width of the result, for whole numbers or arrays of them."""
        return height, width

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Turn uniform numbers into the parameters of each image.

        Parameters
        ----------
        numbers
            (num_draws, batch), from 0 up to but not including 1.
        sizes
            (batch, 2): height and width of each image.

        Returns
        -------
        Arrays (batch, …) by name.
        """
        return {}

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Apply the operation to a batch on the CPU.

        Compiled loops are imported inside this method, because importing numba takes seconds.

        Parameters
        ----------
        drawn
            What `draw` returned for these images.
        pixels
            uint8 (batch, channels, height, width); float32 after an operation that makes floats. They may be changed
            in place.
        """
        raise NotImplementedError(f"{type(self).__name__} has no on_cpu.")

    def rows(self, drawn: Drawn) -> np.ndarray:
        """Return the numbers that `on_device` needs of each image, (numbers, batch): all that was drawn, in order."""
        return np.concatenate([np.atleast_2d(values.T) for values in drawn.values()]) if drawn else np.empty((0, 0))

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Apply the operation to a batch with torch, without waiting for the device.

        Parameters
        ----------
        rows
            What `rows` returned, as float32 on the device.
        pixels
            float32 (batch, channels, height, width): whole levels from 0 to 255 until an operation makes floats.
            They must not be changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} has no on_device.")

    def check_place(self, after: ToFloats | None) -> None:
        """Raise a ValueError if the operation can't stand where it does in a view.

        Parameters
        ----------
        after
            The operation before it that makes float32 values; None if there is none.
        """
        if after is not None and not self.takes_floats:
            raise ValueError(
                f"{type(self).__name__} can't follow {type(after).__name__}, which makes float32 values: it needs "
                "levels from 0 to 255. Put it before."
            )

    def check_channels(self, channels: int) -> None:
        """Raise a ValueError if images can't have so many channels."""
        if self.channels and channels not in self.channels:
            hint = ""
            if channels == 1 and 3 in self.channels:
                hint = (
                    " channels=3 of the data set makes RGB of grey images. For channels=1, give the views a mean and a "
                    "std of one number, and no operation on colours: mean=[0.5] std=[0.25] in a recipe."
                )
            raise ValueError(
                f"{self} needs images of {' or '.join(map(str, self.channels))} channels, not of {channels}.{hint}"
            )

    def __call__(self, image: Any) -> Any:
        """Return the image, changed."""
        array, (seed, epoch, indices) = as_array(image), any_key()
        images, sizes, channels = look_over([array], indices)
        self.check_place(None)
        self.check_channels(channels)
        (drawn,) = draw([self], 0, seed, epoch, indices, sizes)
        planes = self.on_cpu(drawn, images[0][None].transpose(0, 3, 1, 2).copy())[0]
        return torch.from_numpy(planes) if isinstance(self, ToFloats) else like(image, planes)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen, but its values are still being checked

    def _require(self, is_right: bool, name: str, expected: str) -> None:
        if not is_right:
            raise ValueError(f"{type(self).__name__}: {name} must be {expected}, not {getattr(self, name)!r}.")

    def _check_interpolation(self, choices: Sequence[str]) -> None:
        """Take one of these names, or the constant of torchvision or PIL for it: `InterpolationMode.BICUBIC`, 3."""
        value = vars(self)["interpolation"]
        name = getattr(value, "value", value)
        name = PIL_FILTERS.get(name, name) if isinstance(name, int) else name
        if name not in choices:
            raise ValueError(
                f"{type(self).__name__}: interpolation must be {' or '.join(map(repr, choices))}, not {value!r}."
                f"{nearest(name, choices)}"
            )
        self._set("interpolation", name)

    def _check_range(self, name: str, low: float, high: float) -> None:
        """Take (a, b) with low ≤ a ≤ b ≤ high."""
        limit = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
        expected = f"two numbers {limit}, the smaller one first"
        value = getattr(self, name)
        self._require(are_numbers(value) and len(value) == 2, name, expected)
        self._require(low <= value[0] <= value[1] <= high, name, expected)
        self._set(name, tuple(map(float, value)))


class Sometimes(Operation):
    """An operation that is applied to an image with probability `p`; the first number that is drawn decides."""

    num_draws = 1
    p: float

    def __post_init__(self) -> None:
        self._require(is_number(self.p) and 0 <= self.p <= 1, "p", "between 0 and 1")

    def draw(self, numbers: np.ndarray, sizes: np.ndarray) -> Drawn:
        """Return whether the operation is applied to each image: `is_applied`, (batch,)."""
        return {"is_applied": numbers[0] < self.p}


class ToFloats(Operation):
    """Turn levels from 0 to 255 into float32 values from 0 to 1: the end of every view that makes no floats itself."""

    def write(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Write the values of uint8 pixels (batch, channels, height, width) to `out`, float32 of the same shape."""
        self._write(pixels, out, (0.0,), (1.0,))

    def on_cpu(self, drawn: Drawn, pixels: np.ndarray) -> np.ndarray:
        """Return the values in new memory."""
        out = np.empty(pixels.shape, np.float32)
        self.write(pixels, out)
        return out

    def on_device(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Return the values."""
        return pixels / WHITE

    def _write(self, pixels: np.ndarray, out: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> None:
        from ..kernels.colours import normalize

        per_channel = (np.broadcast_to(np.array(values, np.float32), pixels.shape[1]).copy() for values in (mean, std))
        # `out` may be a part of a batch: its base is the whole of it.
        num_values = out.size if out.base is None else out.base.size
        normalize(pixels, *per_channel, num_values > MOST_IN_CACHE, out)


def per_image(row: Tensor) -> Tensor:
    """Return (batch,) as (batch, 1, 1, 1)."""
    return row[:, None, None, None]


def choose(row: Tensor, changed: Tensor, pixels: Tensor) -> Tensor:
    """Return the changed pixels of each image whose number in the row is above 0, and the others as they are."""
    return torch.where(per_image(row) > 0, changed, pixels)


def as_size(operation: Operation, size: Size) -> tuple[int, int]:
    """Return (height, width); one number stands for a square.

    Raises
    ------
    ValueError
        It is neither; names the operation.
    """
    sides = size if isinstance(size, Sequence) else (size, size)
    operation._require(len(sides) == 2 and all(map(is_count, sides)), "size", "one or two counts of pixels")
    return sides[0], sides[1]


def is_number(value: Any) -> bool:
    """Say whether the value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(value: Any) -> bool:
    """Say whether the value is a sequence of finite numbers."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(is_number, value))


def is_count(value: Any) -> bool:
    """Say whether the value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
