"""ConvMixer, a network of convolutions on patches."""

from __future__ import annotations

from torch import Tensor, nn


class ConvMixer(nn.Module):
    """A network that embeds patches and mixes them by convolutions only (Trockman and Kolter, "Patches are all you
    need?", TMLR 2023, section 2).

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

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import ConvMixer
    >>> ConvMixer(num_classes=10)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int | None = 10,
        dim: int = 64,
        depth: int = 6,
        kernel_size: int = 5,
        patch_size: int = 2,
    ):
        super().__init__()
        self.num_features = dim
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, dim, patch_size, stride=patch_size), nn.GELU(), nn.BatchNorm2d(dim)
        )
        self.blocks = nn.Sequential(*(_Block(dim, kernel_size) for _ in range(depth)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, num_classes) for images (batch, in_channels, height, width)."""
        maps = self.blocks(self.stem(images))  # (batch, dim, height // patch_size, width // patch_size)
        outputs: Tensor = self.fc(self.pool(maps))  # (batch, num_classes or dim)
        return outputs


class _Block(nn.Module):
    """A depth-wise convolution with a shortcut, then a point-wise convolution. It keeps the shape."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim)
        )
        self.channel = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.channel(x + self.spatial(x))
        return outputs
