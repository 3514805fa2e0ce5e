"""Protocols that train on augmented images: what they are made of, and how one becomes a run of this package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...augmentations import EvalView, HorizontalFlip, Normalize, RandomResizedCrop, View
from ...base import BaseTrainer
from ...exceptions import ConfigError
from ..networks import Features, blocks_of
from ..protocol import Figure, Protocol
from ..sets import LabelledSet
from ..subject import Subject
from .finetuning import FineTuningTrainer, TimmView, layer_groups, set_drop_path, timm
from .heads import Head, Heads
from .linear import Frozen, LinearProbeTrainer
from .running import Options, Running

Size = int | tuple[int, int]


class Plan(NamedTuple):
    """The parts of a run that differ between kinds of protocols.

    `modules` and `attributes` are those of the trainer, `heads` give its scores in this order, `groups` are
    `optim.groups`, `view` makes the training images, `notes` say what of the protocol the network does not allow, and
    `precision` is that of the trainer.
    """

    trainer: type[BaseTrainer]
    modules: dict[str, Any]
    attributes: dict[str, Any]
    heads: list[Head]
    groups: dict[str, Any]
    view: Callable
    notes: list[str]
    precision: str


@dataclass(frozen=True, kw_only=True)
class Augmented(Protocol):
    """A protocol that trains on augmented images.

    Attributes
    ----------
    rates
        Learning rates for 256 images per step; they are multiplied by images per step / 256. If there are several, each
        has a head of its own on each of the features.
    optimizer
        The node of the optimizer, without its rate.
    epochs
        Number of epochs.
    batch_size
        Images per mini-batch and process, at most.
    whole_batch
        Images per step over all processes and mini-batches; of fewer images as many as there are. None: one mini-batch
        per process, so that there are more if there are more processes.
    iterations
        Steps per epoch. None: an epoch is all images once.
    warmup_epochs
        Epochs in which the rate rises linearly from 0, in each step.
    falls
        Epochs after which the rate falls to a tenth. Empty: it falls along half a cosine, in each step.
    end_lr
        The rate at the end of the cosine.
    has_both_ends
        Whether the last step of the warm-up has the whole rate, and the last step of all has `end_lr`, as `np.linspace`
        makes it. If false, both are reached a step later, as in PyTorch's `CosineAnnealingLR`.
    exclude_bias_norm
        No weight decay, and no LARS scaling, of biases and normalisations.
    interpolation
        How images are resized: "bilinear" or "bicubic". Training images are random crops of 8 to 100 % of the area and
        are flipped half of the time; for evaluation the shorter side becomes 256 pixels, and the middle 224 × 224 are
        cut out.
    precision
        What is computed in on CUDA devices: "fp32", "bf16" or "fp16". In fp32 elsewhere.
    labels
        The training images that are used, drawn by the seed: a share of each class if it is a float, else so many of
        each class. None: all.
    apart
        Seed of a permutation of the training images. The tenth at its end chooses among the heads on each of the
        features, and is not trained on; each of the features has a figure. None: the reported split chooses.
    reports
        Which figures there are: of the "last epoch", of the "best epoch".
    """

    rates: Sequence[float]
    optimizer: Mapping[str, Any]
    epochs: int
    batch_size: int
    whole_batch: int | None = None
    iterations: int | None = None
    warmup_epochs: int = 0
    falls: Sequence[int] = ()
    end_lr: float = 0.0
    has_both_ends: bool = False
    exclude_bias_norm: bool = False
    interpolation: str = "bilinear"
    precision: str = "fp32"
    labels: float | int | None = None
    apart: int | None = None
    reports: Sequence[str] = ("last epoch",)

    def measure(
        self, subject: Subject, train: LabelledSet, test: LabelledSet, seed: int, out: Path, device: torch.device,
        **options: Any,
    ) -> list[Figure]:  # fmt: skip
        """Train in the folder `out`, and return the figures. If a run is there, it goes on, or is finished already.

        Parameters
        ----------
        subject
            What is evaluated. It is left as it is.
        train, test
            The images to train and to test on.
        seed
            Seed of everything random.
        out
            The run's folder.
        device
            Where it computes.
        **options
            Fields of `Options`.

        Raises
        ------
        ConfigError
            The network lacks the features, the images are too few, or the folder holds a run of another protocol,
            network or option.
        """
        return Running(self, subject, train, test, seed, device, Options(**options))(out)

    def plan(self, subject: Subject, num_classes: int, size: Size, precision: str) -> Plan:
        """Return what is trained, and how.

        Parameters
        ----------
        subject
            What is evaluated.
        num_classes
            Number of classes.
        size
            Height and width of the views.
        precision
            What is computed in.
        """
        raise NotImplementedError

    def test_view(self, subject: Subject, size: Size) -> View:
        """Return the view of the test images."""
        return EvalView(size, mean=subject.mean, std=subject.std, interpolation=self.interpolation)

    def train_view(self, subject: Subject, size: Size) -> View:
        """Return the view of the training images: a random crop, flipped half of the time."""
        crop = RandomResizedCrop(size, interpolation=self.interpolation)
        return View([crop, HorizontalFlip(), Normalize(subject.mean, subject.std)])


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Augmented):
    """A protocol that trains linear classifiers on a frozen network.

    Attributes
    ----------
    decays
        Weight decays. Each has a head of its own with each of the rates. None stands for that of the optimizer.
    norm
        Arguments of the batch normalisation before the classifiers, which has no weight decay. None: there is none.
    std
        Standard deviation of the first weights; biases begin at 0. None: both begin as those of `nn.Linear`.
    """

    decays: Sequence[float | None] = (None,)
    norm: Mapping[str, Any] | None = None
    std: float | None = None

    def plan(self, subject: Subject, num_classes: int, size: Size, precision: str) -> Plan:
        """Return what is trained, and how."""
        frozen = Frozen(Features(subject, self.features), precision)
        dims = {name: values.shape[1] for name, values in frozen.features(blank(subject, size)).items()}
        settings = [*product(self.rates, self.decays)]
        heads = [Head(name, *setting) for name in dims for setting in settings]
        node = {
            "_target_": f"{Heads.__module__}.Heads", "dims": dims, "num_classes": num_classes,
            "num_heads": len(settings), "norm": self.norm, "std": self.std,
        }  # fmt: skip
        groups: dict[str, Any] = {}
        if len(settings) > 1:
            groups = {f"heads.linears.*.{number}.*": head.setting for number, head in enumerate(heads[: len(settings)])}
        if self.norm is not None and self.norm.get("affine", True):
            groups["heads.norms.*"] = {"weight_decay": 0.0}
        view = self.train_view(subject, size)
        return Plan(LinearProbeTrainer, {"heads": node}, {"frozen": frozen}, heads, groups, view, [], "fp32")


@dataclass(frozen=True, kw_only=True)
class FineTuning(Augmented):
    """A protocol that trains a network's backbone and a linear classifier on its output.

    Attributes
    ----------
    layer_decay
        Factor of the rate from a block to the one before it, in vision transformers. None: all have the same rate.
    drop_path
        How often the last block is left out, in vision transformers of timm; earlier ones less often, the first never.
    augment
        Options of timm's `create_transform`, which makes the training images. None: they are cropped and flipped.
    mix
        Options of timm's `Mixup`. None: images are not mixed.
    std
        Standard deviation of the classifier's first weights; its biases begin at 0. None: as those of `nn.Linear`.
    """

    layer_decay: float | None = None
    drop_path: float = 0.0
    augment: Mapping[str, Any] | None = None
    mix: Mapping[str, Any] | None = None
    std: float | None = None

    def plan(self, subject: Subject, num_classes: int, size: Size, precision: str) -> Plan:
        """Return what is trained, and how: a copy of the subject's backbone."""
        view = self._view(subject, size)
        backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
        with torch.no_grad():
            dim = backbone(blank(subject, size)).flatten(1).shape[1]
        blocks, notes = blocks_of(backbone), []
        groups = layer_groups(backbone, blocks, self.layer_decay) if self.layer_decay and blocks else {}
        if self.layer_decay and not blocks:
            notes.append("no layer decay: the network is no vision transformer that is known")
        if self.drop_path and not set_drop_path(blocks, self.drop_path):
            notes.append("no drop path: the network is no vision transformer of timm")
        head = {"_target_": f"{Heads.__module__}.linear_head", "dim": dim, "num_classes": num_classes, "std": self.std}
        modules = {"backbone": backbone, "head": head}
        mix = None if self.mix is None else timm().data.Mixup(num_classes=num_classes, **self.mix)
        heads = [Head("representation", self.rates[0])]
        return Plan(FineTuningTrainer, modules, {"mix": mix}, heads, groups, view, notes, precision)

    def _view(self, subject: Subject, size: Size) -> Callable:
        if self.augment is None:
            return self.train_view(subject, size)
        if subject.channels != 3:
            raise ConfigError(
                f"--protocol: {self.name} changes colours, and '{subject.name}' takes images of {subject.channels} "
                "channels instead of 3. Choose another protocol."
            )
        named = {"mean": tuple(subject.mean), "std": tuple(subject.std), "interpolation": self.interpolation}
        return TimmView(input_size=size, **named, **self.augment)


def blank(subject: Subject, size: Size) -> torch.Tensor:
    """Return a black view, (1, channels, height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, subject.channels, height, width)
