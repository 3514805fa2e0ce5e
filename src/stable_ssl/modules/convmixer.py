"""ConvMixer, a network of convolutions on patches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ConvMixer(nn.Module):
    """A network that embeds patches and mixes them by convolutions only (Trockman and Kolter, "Patches are all you
    need?", TMLR 2023, section 2).

    By default, it is the network of this name in stable-ssl of early 2025, which differs from the paper's: ReLU after
    batch normalisation, and max-pooling at the end.

    Parameters
    ----------
    in_channels
        Number of channels of the images.
    num_classes
        Width of the output. None: the output is the representation, (batch, dim).
    dim
        Number of channels inside the network.
    depth
        Number of blocks.
    kernel_size
        Height and width of the depth-wise convolutions, in patches.
    patch_size
        Height and width of a patch, in pixels.
    as_in_paper
        Have GELU before batch normalisation, and average pooling at the end, as in the paper.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import ConvMixer
    >>> ConvMixer(num_classes=10, patch_size=2, as_in_paper=True)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int | None = 10,
        dim: int = 64,
        depth: int = 6,
        kernel_size: int = 9,
        patch_size: int = 7,
        as_in_paper: bool = False,
    ):
        super().__init__()
        self.num_features = dim

        def layer(*args: Any, **kwargs: Any) -> nn.Sequential:
            convolution, norm = nn.Conv2d(*args, **kwargs), nn.BatchNorm2d(dim)
            return nn.Sequential(convolution, *((nn.GELU(), norm) if as_in_paper else (norm, nn.ReLU())))

        self.conv1 = layer(in_channels, dim, patch_size, stride=patch_size)
        blocks = [(layer(dim, dim, kernel_size, groups=dim, padding="same"), layer(dim, dim, 1)) for _ in range(depth)]
        self.blocks_a = nn.ModuleList(depthwise for depthwise, _ in blocks)
        self.blocks_b = nn.ModuleList(pointwise for _, pointwise in blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1) if as_in_paper else nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, num_classes) for images (batch, in_channels, height, width)."""
        maps = self.conv1(images)  # (batch, dim, height // patch_size, width // patch_size)
        for depthwise, pointwise in zip(self.blocks_a, self.blocks_b, strict=True):
            maps = pointwise(maps + depthwise(maps))
        outputs: Tensor = self.fc(self.pool(maps))  # (batch, num_classes or dim)
        return outputs
