"""A nine-layer residual network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Resnet9(nn.Module):
    """Convolutions and a linear layer, quick to train on small images. Pairs of convolutions have a shortcut.

    Without `widths`, it is the network of this name in stable-ssl of early 2025: eleven convolutions with 30 million
    parameters. With `widths` it has eight convolutions, and as many parameters as the widths make.

    Parameters
    ----------
    in_channels
        Number of channels of the images.
    num_classes
        Width of the output. None: the output is the representation, (batch, last width); 1028 without `widths`.
    widths
        Number of channels after the stem and after each of the three stages.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import Resnet9
    >>> Resnet9(num_classes=10, widths=[8, 16, 32, 64])(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 3, num_classes: int | None = 10, widths: Sequence[int] | None = None):
        super().__init__()
        self.num_features = 1028 if widths is None else widths[-1]
        stages = _stages_of_2025(in_channels) if widths is None else {"features": _stages(in_channels, *widths)}
        self._names = tuple(stages)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(self.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, num_classes) for images (batch, in_channels, height, width).

        They have at least 8 × 8 pixels, or 16 × 16 without `widths`.
        """
        maps = images
        for name in self._names:
            maps = self.get_submodule(name)(maps)
        outputs: Tensor = self.fc(self.pool(maps))  # (batch, num_classes or last width)
        return outputs


def _stages(in_channels: int, stem: int, first: int, second: int, last: int) -> nn.Sequential:
    """Return the layers of a network with these widths; they divide height and width by 8."""
    return nn.Sequential(
        _convolution(in_channels, stem),
        _convolution(stem, first, pool=True),
        _Shortcut(_convolution(first, first), _convolution(first, first)),
        _convolution(first, second, pool=True),
        _Shortcut(_convolution(second, second), _convolution(second, second)),
        _convolution(second, last, pool=True),
    )


def _stages_of_2025(in_channels: int) -> dict[str, nn.Module]:
    """Return the layers of early 2025 by their names in files of weights; they divide height and width by 16."""

    def shortcut(width: int) -> nn.Module:
        return _Shortcut(_convolution(width, width, bias=True), _convolution(width, width, bias=True))

    return {
        "conv1": _convolution(in_channels, 64, bias=True),
        "conv2": _convolution(64, 128, pool=True, bias=True),
        "res1": shortcut(128),
        "conv3": _convolution(128, 256, pool=True, bias=True),
        "conv4": _convolution(256, 512, pool=True, bias=True),
        "res2": shortcut(512),
        "conv5": _convolution(512, 1028, pool=True, bias=True),
        "res3": shortcut(1028),
    }


class _Shortcut(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x)  # the shape of x
        return x + outputs


def _convolution(channels_in: int, channels_out: int, pool: bool = False, bias: bool = False) -> nn.Sequential:
    """Return a 3 × 3 convolution with batch normalisation and ReLU; `pool` halves height and width."""
    layers = [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
