"""What is evaluated: a network, how it gets images, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..augmentations.views import View
from ..exceptions import ConfigError


@dataclass(frozen=True)
class Subject:
    """A network that is evaluated, on the CPU and in evaluation mode.

    Attributes
    ----------
    name
        What tables call it: the source as it was given, such as "runs/photos" or "timm/vit_small_patch14_dinov2".
    network
        Images (batch, channels, height, width) in, representations (batch, dim) out.
    view
        Makes of an image what the network gets. None: its images come as it gets them.
    size
        Height and width of the view, in pixels.
    mean, std
        How the view normalises values from 0 to 1, one number per channel.
    backbone
        The part of the network that is exported, and whose blocks give other features; often the network itself.
    projector
        Representations in, embeddings (batch, dim) out. None: there is none.
    digest
        A checksum of all values of the network, and of which of a run's networks it is.
    run
        The run's folder. None: it is of no run.
    facts
        What is known of it, for results: method, global step, which encoder.
    is_view_known
        Whether its size, mean and standard deviation are known, and not only usual ones.
    loaders
        The loaders of a trainer in memory, by name. None: it is no such trainer.
    """

    name: str
    network: nn.Module
    view: View | None
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    backbone: nn.Module
    projector: nn.Module | None = None
    digest: str = ""
    run: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_view_known: bool = True
    loaders: Mapping[str, Any] | None = None

    def check_view(self) -> None:
        """Raise a ConfigError if nothing says how images are prepared."""
        if not self.is_view_known:
            raise ConfigError(
                f"'{self.name}': nothing says how its images are prepared: no file and no declared view. In Python, "
                "view=EvalView(size, mean=..., std=...) says it, and evaluate(trainer, ...) takes what the trainer has."
            )

    def without_networks(self) -> Subject:
        """Return what is said of the subject, which needs no memory."""
        return replace(self, network=nn.Identity(), backbone=nn.Identity(), projector=None)

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return len(self.mean)
