"""What is exported: the backbone of a run, the images that it was trained on, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..augmentations import Resize
from ..compose import importable
from ..evaluation import sources
from ..exceptions import ConfigError
from ..modules.of_run import BackboneNode, backbone_of_run, find_backbone
from ..nodes import locate
from ..runtime.checkpoint import CheckpointStore
from ..weights.files import newest_weights, read_header
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
        Length of an image's shorter side, before the middle is cut out. Or the height and width that the whole image is
        resized to.
    interpolation
        How images are resized: "bilinear" or "bicubic".
    """

    channels: int
    size: tuple[int, int]
    mean: list[float] | None
    std: list[float] | None
    resize: int | tuple[int, int]
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
    progress
        The "epoch" and "global_step" of its weights, as far as they are known.
    """

    network: Any
    found: BackboneNode
    images: ImagesOfRun
    progress: Mapping[str, Any]

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
    progress = _progress_of(Path(source).expanduser())
    made = backbone_of_run(Source(str(source), prefix=network))[0].eval()
    with importable(*found.run.import_from, Path.cwd()):
        if _ends_with_scores(found):
            made = sources.without_last_layer(made)
        images = _images_of(found, made)
    return Backbone(made, found, images, progress)


def _progress_of(place: Path) -> Mapping[str, Any]:
    """Return what the file of weights or the checkpoint that `read_source` takes says of the progress of its run."""
    weights, step = (place, -1) if place.is_file() else newest_weights(place)
    file = place / "meta.json"
    meta = json.loads(file.read_text()) if file.is_file() else CheckpointStore(place / "checkpoints").newest_meta()
    progress: dict[str, Any] = meta.get("progress", {})
    if weights is None or (not place.is_file() and progress.get("global_step", -1) > step):
        return progress
    return read_header(weights) if weights.suffix == ".safetensors" else {}


def _ends_with_scores(found: BackboneNode) -> bool:
    """Return whether a network has a last layer that the run's evaluation takes off."""
    with suppress(ConfigError):  # no file describes the trainer
        is_classifier = sources.gives_scores(locate(found.run.trainer.get("_target_"), "trainer"))
        return is_classifier and found.path == "backbone" and not found.takes_classes
    return False


def _images_of(found: BackboneNode, network: nn.Module) -> ImagesOfRun:
    """Return what a run's configuration says of its images, as evaluations understand it; else the network's size."""
    view, known = sources.view_of_run(found.run.config)
    named = sources.size_of_images(found.run.trainer) or found.node.get("image_size") or found.node.get("img_size")
    size, mean, std = sources.seen_by(known, network, named)
    operations = sources.operations_of(view)
    whole = Resize(size[0] if size[0] == size[1] else size)
    first = next((operation for operation in operations if isinstance(operation, Resize)), whole)
    resize = first.size if isinstance(first.size, int) else (first.size[0], first.size[1])
    normalised = ([*mean], [*std]) if operations else (None, None)
    return ImagesOfRun(len(mean), size, normalised[0], normalised[1], resize, first.interpolation)
