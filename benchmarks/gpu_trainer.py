"""The trainings that `benchmarks/gpu.py` times: recipes on random images, whose trainer notes when each part ends."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Mapping

import numpy as np
import torch
from augmentation_gpu import mark, milliseconds

from stable_ssl.compose import compose
from stable_ssl.instantiate import instanciate_config
from stable_ssl.trainers import JointEmbeddingTrainer

WARM_UP = 5  # steps that do not count: kernels are chosen, modules compiled, graphs recorded


class RandomImages(torch.utils.data.Dataset):
    """Random uint8 images (size, size, 3), and labels of ten classes."""

    constant = True

    def __init__(self, number: int, size: int):
        self.images = np.random.default_rng(0).integers(256, size=(number, size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], index % 10


class Clocked(JointEmbeddingTrainer):
    """Notes when each part of each step ends; the peak of the memory is that of the steps after the warm-up."""

    def compute_loss(self):
        if self.batch_idx == 0 and not hasattr(self, "marks"):
            self.marks = {"begun": [], "forward": [], "backward": [], "optimizer": []}
        self.note("begun")
        losses = super().compute_loss()
        self.note("forward")
        return losses

    def before_optimizer_step(self):
        self.note("backward")

    def after_fit_step(self):
        super().after_fit_step()
        self.note("optimizer")
        if self.global_step == WARM_UP and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def note(self, name: str) -> None:
        self.marks[name].append(mark(self.device.type))

    def parts(self) -> dict[str, float]:
        """Return the median milliseconds of each part and of a step, and what the first steps took beyond that."""
        moments = self.marks
        pairs = list(itertools.pairwise(moments))
        found = {
            end: statistics.median(map(milliseconds, moments[start][WARM_UP:], moments[end][WARM_UP:]))
            for start, end in pairs
        }
        ends = moments["optimizer"]
        found["step"] = statistics.median(milliseconds(*pair) for pair in itertools.pairwise(ends[WARM_UP - 1 :]))
        found["first"] = milliseconds(moments["begun"][0], ends[WARM_UP - 1]) - WARM_UP * found["step"]
        return found

    def peak(self) -> float | None:
        """Return the largest memory that tensors took, in GiB."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


def trained(
    device: str, recipe: str, overrides: list[str], images: Mapping | None, epochs: int, compiles: bool | str = False
) -> Clocked:
    """Return a trainer of a recipe that has trained without evaluations.

    `images` has the arguments of `RandomImages`; None: the recipe's own data set.
    """
    config = compose(recipe, [*overrides, f"optim.epochs={epochs}"])
    node = config["trainer"]
    node["_target_"], train = "gpu_trainer.Clocked", node["data"]["train"]
    if images is not None:
        train["dataset"] = {"_target_": "gpu_trainer.RandomImages", **images}
    node["data"] = {"train": train}
    node["hardware"] |= {"device": device, "seed": 0, "compile": compiles}
    with tempfile.TemporaryDirectory() as folder:
        node["logger"] = {"dump_path": folder, "level": 40, "log_every_step": 50}
        trainer = instanciate_config(config)
        trainer()
    return trainer
