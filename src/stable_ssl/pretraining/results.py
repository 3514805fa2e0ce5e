"""What a run of `pretrain` learned, where its weights are, and how to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..augmentations.recipes import IMAGENET_MEAN, IMAGENET_STD
from ..augmentations.views import View
from ..nodes import build
from ..runtime.folder import read_config
from ..weights.files import newest_weights
from ..weights.runs import path_of_backbone

KNN, PROBE, LOSS, RANK = "test/knn", "test/accuracy", "train/loss_ssl", "train/rankme"


def read_results(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the first and the last value of each metric in a run's `metrics.jsonl`, by name."""
    file, found = folder / "metrics.jsonl", dict[str, tuple[float, float]]()
    for record in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
        for name, value in record.items():
            if name.startswith((KNN, PROBE, LOSS, RANK)):
                found[name] = (found.get(name, (value,))[0], value)
    return found


def describe(folder: Path) -> str:
    """Return what a finished run learned, where its weights are, and the lines of Python that load them."""
    return "\n".join(
        [
            *_learned(read_results(folder)),
            f"Weights: {newest_weights(folder)[0] or folder / 'checkpoints'}",
            "In Python, for one image:",
            *(f"    {line}" for line in lines_to_load(folder)),
        ]
    )


def _learned(results: Mapping[str, tuple[float, float]]) -> list[str]:
    def sentence(prefix: str, text: str) -> list[str]:
        return [text.format(*pair) for name, pair in results.items() if name.startswith(prefix)]

    lines = [
        *sentence(
            KNN, "Nearest neighbours find the class of {1:.1%} of the test images. Before training it was {0:.1%}."
        ),
        *sentence(PROBE, "A linear classifier on the features, trained during the run, finds {1:.1%}."),
        *sentence(LOSS, "Loss: {0:.3f} at first, {1:.3f} at last."),
        *sentence(RANK, "RankMe, the number of directions that embeddings use: {0:.1f} at first, {1:.1f} at last."),
    ]
    if not any(name.startswith(KNN) for name in results):
        lines.append("Without labels, nothing tells how useful the features are: --labels measures that.")
    return lines


def lines_to_load(folder: Path) -> list[str]:
    """Return three lines of Python that compute the features of the first image of a run's data."""
    config = read_config(folder) or {}
    data = config["trainer"]["data"]["train"]["dataset"]
    usual = {"_target_": "stable_ssl.augmentations.EvalView", "mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD]}
    given = ", ".join(f"{k}={v!r}" for k, v in config["pretrain"]["view"].items() if usual.get(k) != v)
    options = "".join(f", {k}={data[k]!r}" for k in ("levels", "on_error") if data.get(k) not in (None, "raise"))
    return [
        "import stable_ssl",
        f"images = stable_ssl.data.Images({data['root']!r}, channels={data['channels']}{options}, "
        f"transform=stable_ssl.augmentations.EvalView({given}))",
        f"features = stable_ssl.load({str(folder)!r}){_place_of(config['trainer'])}(images[0][0][None])",
    ]


def backbone_of(modules: nn.ModuleDict, folder: Path) -> nn.Module:
    """Return the network, among the modules of a run, whose representations the run was evaluated by."""
    found: Any = modules
    for step in path_of_backbone((read_config(folder) or {})["trainer"]):
        found = found[step] if found is modules else getattr(found, step)
    return found  # type: ignore[no-any-return]


def view_of(folder: Path) -> View:
    """Return the view that a run was evaluated by. A grey or RGB PIL image gets the channels of the run's images."""
    config = read_config(folder) or {}
    view = _ViewOfRun(build(config["pretrain"]["view"], "eval_view").operations)
    view.mode = {1: "L", 3: "RGB"}.get(config["trainer"]["data"]["train"]["dataset"].get("channels"))
    return view


class _ViewOfRun(View):
    mode: str | None = None

    def __call__(self, image: Any) -> Tensor:
        """Return the view of one image."""
        if self.mode and getattr(image, "mode", None) in {"L", "RGB"} - {self.mode}:
            image = image.convert(self.mode)
        return super().__call__(image)


def _place_of(trainer: Mapping[str, Any]) -> str:
    name, *attributes = path_of_backbone(trainer)
    return "".join([f'["{name}"]', *(f".{attribute}" for attribute in attributes)])
