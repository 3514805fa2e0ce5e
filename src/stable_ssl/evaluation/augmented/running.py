"""Running a protocol that trains: its data, its configuration, and the figures of its run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from ...base import BaseTrainer
from ...data.collating import split
from ...data.views import as_read
from ...exceptions import ConfigError, DataError
from ...runtime.launchers import find_place
from ..protocol import Figure
from ..sets import LabelledSet
from ..subject import Subject
from .heads import HeadAccuracy
from .samples import EndlessOrder, sampled, without_last_tenth

if TYPE_CHECKING:
    from .protocols import Augmented, Plan


@dataclass(frozen=True)
class Options:
    """What a user may change of a protocol that trains; None: as the protocol says.

    Attributes
    ----------
    epochs
        Number of epochs. The schedule is shortened with it.
    batch_size
        Images per mini-batch and process.
    size
        Height and width of the views, in pixels; "native": those of the subject's own view. None: 224.
    precision
        "fp32", "bf16" or "fp16".
    workers
        Processes, or threads, that read the images.
    world_size
        Number of processes, one per device. None: as many as were started.
    """

    epochs: int | None = None
    batch_size: int | None = None
    size: int | str | None = None
    precision: str | None = None
    workers: int = 0
    world_size: int | None = None


@dataclass(frozen=True)
class Scale:
    """The numbers of a run: those of its protocol, unless options change them."""

    epochs: int
    batch_size: int
    accumulation_steps: int
    world_size: int
    size: int | tuple[int, int]
    precision: str

    @property
    def whole_batch(self) -> int:
        """Images per step."""
        return self.batch_size * self.accumulation_steps * self.world_size


class Running:
    """A protocol on one network, two data sets and one seed, as a run of this package.

    See `Augmented.measure` for the parameters.
    """

    def __init__(
        self, protocol: Augmented, subject: Subject, train: LabelledSet, test: LabelledSet, seed: int,
        device: torch.device, options: Options,
    ):  # fmt: skip
        self.train, self.sets = train, {"test": test}
        if protocol.labels is not None:
            self.train = sampled(train, protocol.labels, seed)
        if protocol.apart is not None:
            self.train, self.sets["choosing"] = without_last_tenth(self.train, protocol.apart)
        self.protocol, self.subject, self.seed, self.device, self.options = protocol, subject, seed, device, options
        self.scale = scale_of(protocol, subject, len(self.train), device, options)
        self.plan: Plan = protocol.plan(subject, int(train.labels.max()) + 1, self.scale.size, self.scale.precision)
        image, _ = split(as_read(self.train.dataset)[0])
        if (channels := len(protocol.test_view(subject, self.scale.size)(image))) != subject.channels:
            raise DataError(
                f"'{subject.name}' takes images of {subject.channels} channels, and the first one to train on has "
                f"{channels}."
            )
        if self.plan.attributes.get("mix") is not None and self.scale.batch_size % 2:
            raise ConfigError(f"--batch {self.scale.batch_size}: it must be even, since images are mixed in pairs.")

    def __call__(self, out: Path) -> list[Figure]:
        """Train in a folder, or go on there, and return the figures."""
        trainer = self.trainer(out)
        try:
            trainer()
        finally:
            for part in (self.subject.network, self.subject.backbone, self.subject.projector):
                if part is not None:
                    part.cpu()
        return self.figures(trainer.get_logs())

    def trainer(self, out: Path) -> BaseTrainer:
        """Return the trainer of a run in a folder."""
        scale, plan, world_size = self.scale, self.plan, self.options.world_size
        hardware = {
            "seed": self.seed,
            "device": str(self.device) if scale.world_size == 1 else self.device.type,
            "precision": plan.precision,
            **({} if world_size is None else {"world_size": world_size}),
        }
        logger = {
            "dump_path": out,
            "metric": {name: {"accuracy": HeadAccuracy(plan.heads)} for name in self.sets},
            "eval_every_epoch": 1 if "best epoch" in self.protocol.reports else 0,
            "log_every_step": 50,
            "checkpoint_keep": 1,
        }
        about = {
            "protocol": self.protocol.name,
            "subject": self.subject.digest,
            **{name: getattr(scale, name) for name in ("epochs", "size", "precision")},
        }
        return plan.trainer(self._data(), plan.modules, hardware, self._optim(), logger, about=about, **plan.attributes)

    def _data(self) -> dict[str, Any]:
        protocol, scale = self.protocol, self.scale
        # Without steps of fewer images at the end of an epoch, in which the rate would be too large.
        length = (protocol.iterations or len(self.train) // scale.whole_batch) * scale.whole_batch
        order = EndlessOrder(len(self.train), length, self.seed)
        loader = {
            "_target_": "stable_ssl.data.Loader",
            "batch_size": scale.batch_size,
            "num_workers": self.options.workers,
        }
        test_view = protocol.test_view(self.subject, scale.size)
        return {
            "train": {**loader, "dataset": as_read(self.train.dataset), "views": self.plan.view, "sampler": order},
            **{
                name: {**loader, "dataset": as_read(part.dataset), "views": test_view}
                for name, part in self.sets.items()
            },
        }

    def _optim(self) -> dict[str, Any]:
        protocol = self.protocol
        return {
            "optimizer": {**protocol.optimizer, "lr": protocol.rates[0]},
            "groups": self.plan.groups,
            "lr_batch_size": 256,
            "exclude_bias_norm": protocol.exclude_bias_norm,
            "scheduler": {
                "_target_": f"{__name__}.schedule",
                "epochs": protocol.epochs,
                "warmup_epochs": protocol.warmup_epochs,
                "falls": [*protocol.falls],
                "end_lr": protocol.end_lr,
                "has_both_ends": protocol.has_both_ends,
            },
            "epochs": self.scale.epochs,
            "accumulation_steps": self.scale.accumulation_steps,
        }

    def figures(self, records: Sequence[Mapping[str, Any]]) -> list[Figure]:
        """Return a figure per evaluation that is reported, from a run's logs; of each of the features if a part of the
        training images chooses.

        It is that of the best head; of the first of these if several are best.
        """
        rivals, judge = [self.plan.heads], "test"
        if self.protocol.apart is not None:
            rivals = [[*group] for _, group in groupby(self.plan.heads, lambda head: head.features)]
            judge = "choosing"
        by_step: dict[int, dict[str, Any]] = {}  # each set that is evaluated has a record of its own
        for record in records:
            by_step.setdefault(record["global_step"], {}).update(record)
        evaluations = [record for record in by_step.values() if f"test/accuracy_{self.plan.heads[0]}" in record]
        details = {
            "epochs": self.scale.epochs,
            "images per step": self.scale.whole_batch,
            "size": self.scale.size,
            "precision": self.scale.precision,
            "departures": [*self.plan.notes, *self._departures()],
        }
        found = []
        for report, heads in product(self.protocol.reports, rivals):
            looked_at = evaluations if report == "best epoch" else evaluations[-1:]
            head, record = max(product(heads, looked_at), key=lambda pair: pair[1][f"{judge}/accuracy_{pair[0]}"])
            chosen: dict[str, Any] = dict(head.setting) if len(heads) > 1 else {}
            if report == "best epoch":
                chosen["epoch"] = record["epoch"] + 1
            by_head = {str(other): record[f"{judge}/accuracy_{other}"] for other in heads} if len(heads) > 1 else {}
            name = self.protocol.name if len(self.protocol.reports) == 1 else f"{self.protocol.name}, {report}"
            accuracy = record[f"test/accuracy_{head}"]
            found.append(Figure(name, accuracy, head.features, chosen, {**details, "heads": by_head}))
        return found

    def _departures(self) -> Iterator[str]:
        """Yield what is no longer as the protocol says."""
        protocol, scale = self.protocol, self.scale
        whole = protocol.whole_batch or protocol.batch_size * scale.world_size
        for what, published, used in (
            ("epochs", protocol.epochs, scale.epochs),
            ("images per step", whole, scale.whole_batch),
            ("size", 224, scale.size),
            ("precision", protocol.precision, scale.precision),
        ):
            if used != published:
                yield f"{what}: {used} instead of {published}"


def scale_of(protocol: Augmented, subject: Subject, num_images: int, device: torch.device, options: Options) -> Scale:
    """Return the numbers of a run.

    Raises
    ------
    ConfigError
        The training images are fewer than those of one mini-batch.
    """
    place = find_place()
    world_size = options.world_size or (place.size if place else 1)
    published = (protocol.whole_batch or protocol.batch_size * world_size) // world_size
    batch_size = options.batch_size or min(protocol.batch_size, published)
    together = batch_size * world_size  # images of one mini-batch of all processes
    if num_images < together and protocol.iterations is None:
        raise ConfigError(
            f"--batch: {protocol.name} takes {batch_size} images per step and process, together {together}, and there "
            f"are {num_images} to train on. Give a smaller one."
        )
    whole = min(protocol.whole_batch or 0, num_images)
    return Scale(
        epochs=options.epochs or protocol.epochs,
        batch_size=batch_size,
        accumulation_steps=max(1, whole // together),
        world_size=world_size,
        size=size_of(subject, options.size),
        precision=options.precision or (protocol.precision if device.type == "cuda" else "fp32"),
    )


def size_of(subject: Subject, wish: int | str | None) -> int | tuple[int, int]:
    """Return the size of the views that `Options.size` asks for."""
    height, width = subject.size
    native = height if height == width else subject.size
    return native if wish == "native" else int(wish or 224)


def schedule(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    epochs: int,
    warmup_epochs: int = 0,
    falls: Sequence[int] = (),
    end_lr: float = 0.0,
    has_both_ends: bool = False,
) -> LRScheduler:
    """Return a schedule of so many epochs, stretched over the steps of a run.

    Parameters
    ----------
    total_steps
        Steps of the run.
    epochs
        Epochs that the other numbers are meant for.
    warmup_epochs
        Epochs in which the rate rises linearly from 0, before a cosine.
    falls
        Epochs after which the rate falls to a tenth. Empty: it falls along half a cosine.
    end_lr
        The largest rate of a group at the end of the cosine. The others are smaller as they are from the beginning.
    has_both_ends
        Whether the last step of the warm-up has the whole rate, and the last step of all has `end_lr`.
    """
    if falls:
        return MultiStepLR(optimizer, [round(total_steps * epoch / epochs) for epoch in falls], gamma=0.1)
    peak, largest = round(total_steps * warmup_epochs / epochs), max(group["lr"] for group in optimizer.param_groups)
    both = int(has_both_ends)
    rise, fall = max(peak - both, 1), max(total_steps - peak - both, 1)
    return LambdaLR(optimizer, partial(_factor, peak=peak, rise=rise, fall=fall, end=end_lr / largest))


def _factor(step: int, peak: int, rise: int, fall: int, end: float) -> float:
    if step < peak:
        return step / rise
    return end + (1 - end) * (1 + math.cos(math.pi * (step - peak) / fall)) / 2
