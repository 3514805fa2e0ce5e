"""What is asked of an evaluation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError, nearest
from .features import LIMIT
from .sets import OF_FOLDERS, settings_in

DEFAULT = "held-out"


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how.

    Attributes
    ----------
    sources
        Runs, files of weights, `timm/NAME` or `torchvision/NAME`. A run's folder with `weights/initial.safetensors` is
        evaluated before and after training.
    protocols
        Names of protocols.
    data
        As for `open_data`, one or more. Empty: each run's own sets.
    features
        Names of features. Empty: those of the protocol.
    seeds
        With how many seeds a protocol is repeated. None: as the protocol says.
    size
        Height and width of the images, in pixels. "native": as the source's own evaluation sees them, whatever the
        protocol says. None: as the protocol says.
    overrides
        Changes of settings of a recipe in `data`, or of how its folders are read: levels, on_error and in_memory of
        `stable_ssl.data.Images`.
    labels
        As for `stable_ssl.data.Images`, of a folder in `data`.
    backbone, network, view, module
        As for `open_source`.
    device, precision, batch, workers, cache, limit
        As in `How`; the device is a name such as "auto" or "cuda". A protocol that trains takes precision and batch,
        the images per step and process, too. None: fp32 and 256, or as such a protocol says.
    epochs
        Of a protocol that trains. None: as it says.
    few_shot
        What a protocol that trains takes of the training images, drawn by each seed: so many of each class, or a share
        if it is a float. None: as it says.
    world_size
        Number of processes that compute features, or train. None: as many as the launcher started.
    out
        Where records go. None: to each run's folder; those of other sources are not written.
    """

    sources: Sequence[Any]
    protocols: Sequence[str] = (DEFAULT,)
    data: Sequence[Any] = ()
    features: Sequence[str] = ()
    seeds: int | None = None
    size: int | str | None = None
    overrides: Sequence[str] = ()
    labels: str | None = None
    backbone: str | None = None
    network: str | None = None
    view: Any = None
    module: Mapping[str, Any] | None = None
    device: str = "auto"
    precision: str | None = None
    batch: int | None = None
    epochs: int | None = None
    workers: int = 0
    cache: Path | None = None
    limit: float = LIMIT
    few_shot: float | int | None = None
    world_size: int | None = None
    out: Path | None = None

    def check(self) -> None:
        """Raise a ConfigError for what can't be meant."""
        if not self.sources:
            raise ConfigError("Which source? Give a run, a file of weights, timm/NAME or torchvision/NAME.")
        if self.backbone and self.network:
            raise ConfigError("--network: it is for runs, and --backbone for files of no run. Leave one out.")
        self._check_data()
        size = None if self.size == "native" else self.size
        numbers = {"seeds": self.seeds, "batch": self.batch, "epochs": self.epochs, "size": size}
        for option, value in numbers.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                or_native = ", and not native" if option == "size" else ""
                raise ConfigError(f"--{option}: {value!r} is not a whole number of at least 1{or_native}.")
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ConfigError(f"--workers: {self.workers!r} is not a whole number of at least 0.")
        few = self.few_shot
        if few is not None and not (few >= 1 if isinstance(few, int) else 0 < few <= 1):
            raise ConfigError(f"--few-shot: {few} is neither a number of at least 1 nor a share from 0 to 100%.")
        if not isinstance(self.limit, int | float) or not self.limit >= 0:  # nan neither
            raise ConfigError(f"--cache-limit: {self.limit!r} is not a number of at least 0.")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"--device: '{self.device}' is none of auto, cpu, cuda, cuda:N and mps.")

    def _check_data(self) -> None:
        """Raise a ConfigError for settings and labels that nothing in `data` takes."""
        places = [Path(what).expanduser() for what in self.data if isinstance(what, str | Path)]
        folders = [place for place in places if place.is_dir()]
        if self.overrides and all(place.exists() for place in places):  # there is no recipe
            if not folders:
                raise ConfigError(f"{self.overrides[0]} changes a recipe or folder of --data, and none is given.")
            for key in settings_in(self.overrides):
                if key not in OF_FOLDERS:
                    known = ", ".join(OF_FOLDERS)
                    raise ConfigError(f"{key}: a folder takes no such setting, but {known}.{nearest(key, OF_FOLDERS)}")
        if self.labels and not folders:
            raise ConfigError(f"--labels {self.labels}: they are for a folder in --data, and none is given.")


def command_of(argv: Sequence[str], has_training: bool = False) -> str:
    """Return the command line that makes the same records. The number of processes counts only if a protocol trains."""
    if has_training:
        return shlex.join(["stable-ssl", *argv])
    words, kept = iter(argv), []
    for word in words:
        if word == "--world-size":
            next(words, None)
        elif not word.startswith("--world-size="):
            kept.append(word)
    return shlex.join(["stable-ssl", *kept])
