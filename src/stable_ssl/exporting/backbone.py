"""What is exported: the backbone of a run, the images that it was trained on, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..exceptions import ConfigError
from ..modules.of_run import BackboneNode, backbone_of_run, find_backbone
from ..nodes import build
from ..weights.sources import Source


@dataclass(frozen=True)
class ImagesOfRun:
    """The images that a network was trained for.

    Attributes
    ----------
    channels
        Number of their channels.
    size
        Height and width, in pixels.
    mean, std
        How values from 0 to 1 are normalised, one number per channel. None: the run's configuration does not say it.
    resize
        Length of an image's shorter side, before the middle is cut out.
    interpolation
        How images are resized: "bilinear" or "bicubic".
    """

    channels: int
    size: tuple[int, int]
    mean: list[float] | None
    std: list[float] | None
    resize: int
    interpolation: str = "bilinear"

    @property
    def in_words(self) -> str:
        """What the network gets, in words."""
        shape = f"images: (batch, {self.channels}, {self.size[0]}, {self.size[1]}), float32"
        if self.mean is None:
            return f"{shape}, with the range of values that the run's evaluation has"
        return f"{shape}, values from 0 to 1, minus mean {self.mean}, divided by std {self.std}"


@dataclass(frozen=True)
class Backbone:
    """The backbone of a run.

    Attributes
    ----------
    network
        The network, on the CPU and in evaluation mode: images in, representations (batch, dim) out.
    found
        Its place in the run's configuration.
    images
        The images that it was trained for.
    """

    network: Any
    found: BackboneNode
    images: ImagesOfRun

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.found.run.folder

    @property
    def kind(self) -> str:
        """What the network is called in messages."""
        name = self.found.node.get("name")
        return f"{name}" if isinstance(name, str) else type(self.network).__name__


def read_backbone(source: str | Path, network: str | None = None) -> Backbone:
    """Return the backbone of a run; the arguments are those of `find_backbone`.

    Raises
    ------
    CheckpointError, ConfigError
        The source is not of a run, has no weights, or no file describes the network.
    """
    found = find_backbone(str(source), network)
    made = backbone_of_run(Source(str(source), prefix=network))[0].eval()
    images = _images_of(found, made)
    return Backbone(made, found, images)


def _images_of(found: BackboneNode, network: nn.Module) -> ImagesOfRun:
    """Return what a run's configuration says of its images: the view of an evaluation, else the network's own size."""
    first = next((part for part in network.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        raise ConfigError(f"export: module.{found.path} of the run has no convolution, so it is no network of images.")
    channels = first.in_channels
    sets = found.run.trainer.get("data") or {}
    described = [found.run.config.get("pretrain"), *(part for name, part in sets.items() if name != "train")]
    node = next((node for part in described for node in _nodes(part, "EvalView")), None)
    if node is not None:
        resize, crop, normalize = build(node, "eval_view").operations
        mean, std = ([*values] * (channels // len(values)) for values in (normalize.mean, normalize.std))
        return ImagesOfRun(channels, _pair(crop.size), mean, std, min(_pair(resize.size)), resize.interpolation)
    sizes = (found.node.get("image_size"), *(node.get("size") for node in _datasets(sets)), 224)
    size = _pair(next(value for value in sizes if value is not None))
    return ImagesOfRun(channels, size, None, None, min(size))


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width, which may be given as one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _datasets(sets: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in sets.values():
        if isinstance(part, Mapping) and isinstance(part.get("dataset"), Mapping):
            yield part["dataset"]


def _nodes(value: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes in a configuration whose target ends with this name."""
    if isinstance(value, Mapping):
        if str(value.get("_target_", "")).endswith(f".{name}"):
            yield value
        for part in value.values():
            yield from _nodes(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _nodes(part, name)
