"""What `pretrain` is asked for, checked before anything is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compose import recipe_names
from ..exceptions import ConfigError, nearest

# The best gain of kNN per minute of one core: docs/methods.md, table "per minute".
METHOD, BACKBONE = "simclr", "resnet9"
# Methods that hide patches need a transformer.
MASKED, VIT = ("ijepa", "mae"), "vit_digits"

_OPTIONS = {
    "data": "FOLDER",
    "root": "FOLDER",
    "method": "--method",
    "backbone": "--backbone",
    "size": "--size",
    "labels": "--labels",
    "optim.epochs": "--epochs",
    "logger.dump_path": "--out",
}


@dataclass(frozen=True)
class Request:
    """A checked request. The parameters are those of `stable_ssl.pretrain`; those that were not given are None."""

    folder: Path
    method: str
    backbone: str
    size: int | None
    epochs: int | None
    minutes: float | None
    labels: str | None
    out: Path | None
    overrides: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """Return what decides what is trained. The same arguments go on with the same run."""
        found = {
            "folder": str(self.folder),
            "method": self.method,
            "backbone": self.backbone,
            "size": self.size,
            "epochs": self.epochs,
            "minutes": self.minutes,
            "labels": self.labels,
            "overrides": list(self.overrides),
        }
        return {name: value for name, value in found.items() if value is not None}

    def place(self) -> Path:
        """Return the run's folder: the one that was given, or else one that follows from the arguments."""
        if self.out is not None:
            return self.out
        digest = hashlib.sha256(json.dumps(self.arguments(), sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w.-]+", "_", self.folder.name) or "images"
        return Path("runs", f"pretrain_{name}_{digest[:8]}")


def parse(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    method: str | None = None,
    backbone: str | None = None,
    size: Any = None,
    epochs: Any = None,
    minutes: Any = None,
    labels: str | Path | None = None,
    out: str | Path | None = None,
) -> Request:
    """Return a checked request. The parameters are those of `stable_ssl.pretrain`; numbers may be texts.

    Raises
    ------
    ConfigError
        Has a sentence for everything that is wrong.
    """
    problems: list[str] = []
    overrides = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    place, method = Path(os.path.abspath(Path(folder).expanduser())), method or METHOD
    if not os.path.isdir(place):
        what = "is a file; give the folder of the images" if os.path.exists(place) else "is not there"
        problems.append(f"'{folder}' {what}.")
    elif not str(place).isprintable() or "${" in str(place):
        problems.append(f"{str(place)!r}: the path has characters that config.yaml can't hold. Rename the folder.")
    if epochs is not None and minutes is not None:
        problems.append("--epochs and --minutes: both say how long to train; give one of them.")
    backbone = backbone or (VIT if method in MASKED else BACKBONE)
    problems += [*_networks(method, backbone), *_overrides(overrides, minutes is not None)]
    request = Request(
        place,
        method,
        backbone,
        _number("--size", size, int, 8, 4096, problems),
        _number("--epochs", epochs, int, 1, math.inf, problems),
        _number("--minutes", minutes, float, 0, math.inf, problems),
        _labels(labels, place, problems),
        Path(out).expanduser() if out is not None else None,
        overrides,
    )
    if problems:
        raise ConfigError([f"pretrain: {problem}" for problem in problems])
    return request


def _networks(method: str, backbone: str) -> list[str]:
    methods = [name for name in recipe_names("method") if name != "supervised"]
    backbones = [name for name in recipe_names("backbone") if name != "timm"]
    if method == "supervised":
        return [
            "--method supervised learns from labels: `stable-ssl train supervised data=images labels=folder root=…`."
        ]
    if method not in methods:
        return [f"--method: there is no method '{method}'.{nearest(method, methods)} There are: {', '.join(methods)}."]
    if backbone not in backbones and not backbone.startswith("timm/"):
        known = f"There are: {', '.join(backbones)}, and timm/NAME for networks of timm."
        return [f"--backbone: there is no backbone '{backbone}'.{nearest(backbone, backbones)} {known}"]
    if method in MASKED and not backbone.startswith(("vit_", "timm/")):
        vits = ", ".join(name for name in backbones if name.startswith("vit_"))
        return [f"--backbone: {method} hides patches, so it needs a transformer ({vits}), not '{backbone}'."]
    return []


def _overrides(overrides: Iterable[str], has_minutes: bool) -> list[str]:
    """Return what is wrong with the overrides: those that have an option of their own, and those that are none."""
    found = []
    for text in overrides:
        key = text.split("=")[0].lstrip("+~").removeprefix("trainer.")
        if "=" not in text and not text.startswith("~"):
            found.append(f"'{text}': this is neither an option nor key=value.")
        elif key in _OPTIONS:
            found.append(f"'{text}': pretrain has an option for that: {_OPTIONS[key]}.")
        elif text == "views=affine":
            found.append(f"'{text}' keeps the size of each image, as suits digits; take views=writing.")
        elif key == "optim.max_steps" and has_minutes:
            found.append(f"'{text}': --minutes decides how many steps there are; leave one of them out.")
        elif key == "hardware.world_size":
            found.append(
                f"'{text}': pretrain begins in one process. Once its run is there, `stable-ssl resume RUN {text} "
                "data.train.batch_size=…` goes on in several."
            )
    return found


def _number(option: str, value: Any, kind: type, low: float, high: float, problems: list[str]) -> Any:
    """Return a number that was given, maybe as a text; None if there is none, or it is wrong."""
    if value is None:
        return None
    try:
        number = kind(value)
        if number == float(value) and low <= number <= high and math.isfinite(number) and number > 0:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    what = "an integer" if kind is int else "a number"
    limits = f"from {low} to {high}" if high < math.inf else "above 0" if low == 0 else f"from {low}"
    problems.append(f"{option}: {value!r} is not {what} {limits}.")
    return None


def _labels(labels: str | Path | None, folder: Path, problems: list[str]) -> str | None:
    if labels is None or str(labels) in ("none", "folder"):
        return None if labels is None else str(labels)
    from ..data.labels import find_labels

    try:
        return os.path.abspath(find_labels(labels, folder))
    except ConfigError as error:
        problems.append(f"--{error}")
        return None
