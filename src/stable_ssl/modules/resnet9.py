"""A nine-layer residual network for small images."""

from __future__ import annotations

from torch import Tensor, nn


class Resnet9(nn.Module):
    """Eight convolutions and a linear layer, quick to train on small images. Two pairs of convolutions have a shortcut.

    Parameters
    ----------
    num_classes
        Width of the output. None: the output is the representation, (batch, 1028).
    in_channels
        Number of channels of the images.
    widths
        Number of channels after the stem and after each of the three stages. The last one is the width of the
        representation.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import Resnet9
    >>> Resnet9(num_classes=10)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int | None = 10,
        in_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 1028),
    ):
        super().__init__()
        stem, first, second, last = widths
        self.num_features = last
        self.features = nn.Sequential(
            _convolution(in_channels, stem),
            _convolution(stem, first, pool=True),
            _Shortcut(_convolution(first, first), _convolution(first, first)),
            _convolution(first, second, pool=True),
            _Shortcut(_convolution(second, second), _convolution(second, second)),
            _convolution(second, last, pool=True),
        )
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, num_classes) for images (batch, in_channels, height, width) of at least 8 × 8 pixels."""
        maps = self.features(images)  # (batch, last width, height // 8, width // 8)
        outputs: Tensor = self.fc(self.pool(maps))  # (batch, num_classes or last width)
        return outputs


class _Shortcut(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x)  # the shape of x
        return x + outputs


def _convolution(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """Return a 3 × 3 convolution with batch normalisation and ReLU; `pool` halves height and width."""
    layers = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
