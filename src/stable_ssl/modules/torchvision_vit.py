"""torchvision's vision transformer, for images of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ..weights.resampling import resample_positions
from .foreign_vit import as_vit


class AnySizeVisionTransformer(VisionTransformer):
    """torchvision's VisionTransformer that also takes images of other sizes than it was made for.

    Its patches must divide their height and width. The position embeddings are resampled, as in timm.

    Attributes
    ----------
    grid
        The rows and columns of patches that the position embeddings are for.
    """

    grid: tuple[int, int]

    @classmethod
    def of(cls, network: Any, size: tuple[int, int] | None, is_pretrained: bool) -> None:
        """Make a vision transformer of torchvision one of this class. Its parameters stay the same objects.

        Parameters
        ----------
        size
            Height and width of the images. Position embeddings of another size are made anew, or resampled if they are
            pre-trained. None: the size that the network was made for.
        """
        network.__class__ = cls
        made = (network.image_size // network.patch_size,) * 2
        network.grid = made
        if size is None or (grid := (size[0] // network.patch_size, size[1] // network.patch_size)) == made:
            return
        table = network.encoder.pos_embedding.detach()
        patches = torch.empty(1, grid[0] * grid[1], table.shape[2]).normal_(std=0.02)  # as in torchvision
        patches = resample_positions(table[:, 1:], made, grid) if is_pretrained else patches
        network.encoder.pos_embedding = nn.Parameter(torch.cat([table[:, :1], patches], dim=1))
        network.grid, network.seq_length = grid, 1 + grid[0] * grid[1]
        if grid[0] == grid[1]:
            network.image_size = grid[0] * network.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the head, (batch, classes), or the representations if it was removed."""
        if x.shape[2:] == (self.image_size, self.image_size) and self.grid == (self.image_size // self.patch_size,) * 2:
            outputs: Tensor = super().forward(x)
            return outputs
        adapted = as_vit(self)
        outputs = self.heads(adapted.pool(adapted.forward_tokens(x)))
        return outputs
