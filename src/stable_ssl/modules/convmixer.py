"""ConvMixer."""

from __future__ import annotations

from torch import Tensor, nn


class ConvMixer(nn.Module):
    """Patches mixed by convolutions alone (Trockman and Kolter, "Patches are all you need?", TMLR 2023, section 2).

    Parameters
    ----------
    in_channels
        Channels of the images.
    num_classes
        Width of the output; None: the representation, (batch, dim).
    dim, depth
        Channels inside, and blocks.
    kernel_size, patch_size
        Of the depth-wise convolutions, and of the patches, in pixels.
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
        return self.fc(self.pool(self.blocks(self.stem(images))))


class _Block(nn.Module):
    """A depth-wise convolution with a shortcut, then a point-wise one."""

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim)
        )
        self.channel = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(x + self.spatial(x))
