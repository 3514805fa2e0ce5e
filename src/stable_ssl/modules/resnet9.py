"""A nine-layer residual network for small images."""

from __future__ import annotations

from torch import Tensor, nn


class Resnet9(nn.Module):
    """Eight convolutions, two of the pairs with a shortcut, and a linear layer; quick to train at 16 px and up.

    Parameters
    ----------
    num_classes
        Width of the output; None: the representation, (batch, 1028).
    in_channels
        Channels of the images.
    widths
        Channels after the stem and each of the three stages; the last is the width of the representation.
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
        """Return (batch, num_classes) for images (batch, in_channels, height, width), of at least 8 × 8 pixels."""
        return self.fc(self.pool(self.features(images)))


class _Shortcut(nn.Sequential):
    """x + f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _convolution(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
