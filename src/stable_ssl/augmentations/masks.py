"""Masks: the patches of an image that a method hides. They are a function of (seed, epoch, sample index), as views are.

A mask is a bool tensor over the patches of the view, row by row, in the order of a ViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .draw import uniform

_NUM_TRIES = 10


class Mask:
    """What a method hides of each image. A subclass is a frozen dataclass, and defines `names` and `make`.

    Attributes
    ----------
    names
        Of the tensors that `make` returns.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def make(self, number: int, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
        """Return the masks of a batch: bool tensors (batch, …, patches).

        Parameters
        ----------
        number
            Where views have theirs: masks come after the views.
        seed, epoch, indices
            The run's seed, the epoch, and the samples' places in their data set. The masks depend on nothing else.
        """
        raise NotImplementedError(f"{type(self).__name__} has no make.")


@dataclass(frozen=True)
class RandomMask(Mask):
    """Hide a fixed number of patches of each image (He et al., "Masked autoencoders are scalable vision learners",
    CVPR 2022, section 3).

    Parameters
    ----------
    grid
        Patches along height and width of the view.
    ratio
        The fraction of hidden patches, rounded to whole patches.

    Raises
    ------
    ValueError
        None or all of the patches would be hidden.

    >>> (is_hidden,) = RandomMask((4, 4), ratio=0.75).make(1, seed=0, epoch=0, indices=[0, 1])
    >>> is_hidden.sum(dim=1)
    tensor([12, 12])
    """

    grid: Sequence[int]
    ratio: float = 0.75
    names = ("hidden",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # from a file it comes as a list
        num_patches = self.grid[0] * self.grid[1]
        if not 0 < self.num_hidden < num_patches:
            raise ValueError(
                f"RandomMask: ratio {self.ratio} hides {self.num_hidden} of {num_patches} patches; it must hide at "
                "least one, and leave one."
            )

    @property
    def num_hidden(self) -> int:
        """The number of hidden patches per image."""
        return round(self.ratio * self.grid[0] * self.grid[1])

    def make(self, number: int, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
        """Return whether each patch is hidden, (batch, patches)."""
        noise = uniform(number, seed, epoch, indices, self.grid[0] * self.grid[1]).T
        is_hidden = np.zeros(noise.shape, bool)
        np.put_along_axis(is_hidden, noise.argsort(axis=1, kind="stable")[:, : self.num_hidden], True, axis=1)
        return [torch.from_numpy(is_hidden)]


@dataclass(frozen=True)
class BlockMasks(Mask):
    """Draw a context block and some target blocks per image; patches of a target are left out of the context.

    (Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture", CVPR 2023,
    section 3.) Each image has its own sizes of blocks, so that they do not depend on the rest of the batch.

    Blocks lie anywhere in the image, as the paper says. In the authors' code (ijepa/src/masks/multiblock.py), none
    reaches the last row or column of patches, because the largest place is never drawn. On a grid of 14 × 14, the last
    row has 1.8 % of the targets' patches here, as many as the first, and 9 % of the context's.

    Parameters
    ----------
    grid
        Patches along height and width of the view.
    num_targets
        Target blocks per image.
    target_scale, target_ratio
        Ranges of a target's area, as a fraction of the image's, and of its height / width.
    context_scale
        Range of the context's area before the targets are left out; it is a square.
    min_context
        Patches that the context must keep. Of ten drawn sets of blocks the first that keeps so many is taken; if none
        does, the one that keeps most.

    Raises
    ------
    ValueError
        A range is not one of fractions, or there is no target.

    >>> is_context, is_target = BlockMasks((14, 14)).make(1, seed=0, epoch=0, indices=[0, 1])
    >>> is_context.shape, is_target.shape
    (torch.Size([2, 196]), torch.Size([2, 4, 196]))
    """

    grid: Sequence[int]
    num_targets: int = 4
    target_scale: Sequence[float] = (0.15, 0.2)
    target_ratio: Sequence[float] = (0.75, 1.5)
    context_scale: Sequence[float] = (0.85, 1.0)
    min_context: int = 10
    names = ("context", "targets")

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        for name, most in (("target_scale", 1.0), ("context_scale", 1.0), ("target_ratio", float("inf"))):
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))
            if not 0 < low <= high <= most:
                raise ValueError(f"BlockMasks: {name} must be two numbers above 0, up to {most}, not {(low, high)}.")
        if self.num_targets < 1:
            raise ValueError(f"BlockMasks: num_targets must be at least 1, not {self.num_targets}.")

    def make(self, number: int, seed: int, epoch: int, indices: Sequence[int]) -> list[Tensor]:
        """Return whether a patch is in the context, (batch, patches), and in each target, (batch, targets, patches)."""
        num_blocks = self.num_targets + 1
        drawn = uniform(number, seed, epoch, indices, 4 * num_blocks * _NUM_TRIES)
        drawn = drawn.reshape(_NUM_TRIES, num_blocks, 4, len(indices))
        targets = self._blocks(drawn[:, 1:], self.target_scale, self.target_ratio)
        contexts = self._blocks(drawn[:, 0], self.context_scale, (1.0, 1.0)) & ~targets.any(axis=1)
        left = contexts.sum(axis=-1)
        best = np.where((left >= self.min_context).any(axis=0), (left >= self.min_context).argmax(0), left.argmax(0))
        places = np.arange(len(indices))
        return [torch.from_numpy(contexts[best, places]), torch.from_numpy(targets[best, :, places])]

    def _blocks(self, drawn: np.ndarray, scale: Sequence[float], ratio: Sequence[float]) -> np.ndarray:
        """Return blocks, (…, batch, patches), for uniform numbers (…, 4, batch): of area, ratio, top and left."""
        rows, columns = self.grid
        size, shape, top, left = np.moveaxis(drawn, -2, 0)
        area = rows * columns * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = ratio[0] + (ratio[1] - ratio[0]) * shape
        height = np.rint(np.sqrt(area * aspect)).clip(1, rows)
        width = np.rint(np.sqrt(area / aspect)).clip(1, columns)
        top, left = np.floor(top * (rows - height + 1)), np.floor(left * (columns - width + 1))
        y, x = np.divmod(np.arange(rows * columns), columns)
        top, left, height, width = (values[..., None] for values in (top, left, height, width))
        is_in: np.ndarray = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        return is_in


def patch_grid(size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return the numbers of patches along height and width of a view.

    Parameters
    ----------
    size
        Height and width of the view, or one number for a square.
    patch_size
        Height and width of a patch.

    Raises
    ------
    ValueError
        Patches of this size do not fill the view.
    """
    height, width = size if isinstance(size, Sequence) else (size, size)
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size: {patch_size} does not divide the view's size of {size} pixels.")
    return height // patch_size, width // patch_size
