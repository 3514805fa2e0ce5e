"""The stage of a rehearsal: what a check knows, and trainers that leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import nn

from ..arguments import arguments_by_name
from ..base import BaseTrainer
from ..instantiate import instanciate_config
from ..nodes import build
from .cards import Card
from .report import Report

CPU, META = torch.device("cpu"), torch.device("meta")
NEVER = 10**9  # steps


@dataclass
class Stage:
    """What the parts of a check share. Each part reads what those before it have found, and adds to it.

    Attributes
    ----------
    config
        The configuration of the run, `{"trainer": {...}, ...}`. It is not changed. A script may have put live objects
        into it.
    make
        Makes the run's trainer, anew at each call, before its set-up.
    folder
        A temporary folder, which is gone after the check.
    report
        Gets what is found.
    card
        The card that the run is meant for. None: none was named.
    world_size
        Number of processes, one per card.
    all_data
        Whether all samples are read, instead of some.
    slurm
        The parameters of the Slurm job, by submitit's names. None: the run is no Slurm job.
    built
        What was built of the configuration, by its key: "module.backbone", "data.train.dataset", "loss", and so on. A
        part that could not be built is missing, and the report says why.
    trainer
        A trainer on the CPU that has taken a step and was evaluated. None: it could not.
    batch
        The first batch of `data.train` as the run gets it, on the CPU: sample indices and the batch itself. None: there
        is none.
    lacks_room
        Whether this machine has too little memory or disk for a step with values. Then modules on `meta` are built
        there, without values.
    odd
        Samples of `data.train` that a loss may fail with, if it fails with any.
    """

    config: Mapping[str, Any]
    make: Callable[[], Any]
    folder: Path
    report: Report
    card: Card | None = None
    world_size: int = 1
    all_data: bool = False
    slurm: Mapping[str, Any] | None = None
    built: dict[str, Any] = field(default_factory=dict)
    trainer: Any = None
    batch: tuple[Any, Any] | None = None
    lacks_room: bool = False
    odd: list[int] = field(default_factory=list)

    def throw_away(self, name: str, device: torch.device = CPU) -> Any:
        """Return a trainer of the run's configuration that is not set up yet, and leaves no trace.

        It has one process and computes in fp32 on the given device. Its folder is in the temporary one, nothing is sent
        to trackers, and nothing is logged or saved by itself.

        Parameters
        ----------
        name
            Of its folder; the same name goes on with the same run.
        device
            "meta": tensors have a shape and a place, but no values.

        Raises
        ------
        ConfigError
            The configuration is wrong.
        """
        made = self.make()
        made.hardware.update(
            device=device, precision="fp32", float16=False, world_size=1, strategy="ddp", compile=False, time_limit=None
        )
        made.logger.update(
            level=WARNING, log_every_step=NEVER, wandb=None, tensorboard=False, checkpoint_every_step=None,
            checkpoint_every_minutes=NEVER, checkpoint_frequency=None,
        )  # fmt: skip
        if made.optim["lr_batch_size"]:  # one process stands for all, and has the rates that they have together
            made.optim["lr_batch_size"] /= self.world_size
        made._dump_path = self.folder / name
        if self.lacks_room and device == META:
            with META:
                made.module = build(made.module, "module")
        return made


def maker_of(config: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that makes the trainer that a configuration describes, anew at each call."""
    return lambda: instanciate_config(_copied(dict(config), {}))


def config_of(trainer: BaseTrainer) -> dict[str, Any]:
    """Return the configuration of a trainer that a script made, with its live objects."""
    arguments = arguments_by_name(BaseTrainer, type(trainer), *vars(trainer)["_captured"])
    return {"trainer": {"_target_": type(trainer), **arguments}}


def maker_like(trainer: BaseTrainer) -> Callable[[], Any]:
    """Return a function that makes trainers like one that a script made, from copies of what the script gave it.

    Data sets are not copied, since they may be large and are only read.
    """
    args, kwargs = vars(trainer)["_captured"]
    extras = vars(trainer).get("_extras", {})
    sets = [
        getattr(loader, "dataset", None)
        for loader in (trainer.data if isinstance(trainer.data, Mapping) else {}).values()
    ]

    def make() -> Any:
        own_args, own_kwargs = _copied((args, kwargs), {id(dataset): dataset for dataset in sets})
        fresh = type(trainer)(*own_args, **own_kwargs)
        vars(fresh).update(_extras=extras, **extras)
        return fresh

    return make


def _copied(value: Any, shared: Mapping[int, Any]) -> Any:
    """Return a deep copy of a value; what can't be copied, such as a lock or an open file, is in both.

    Parameters
    ----------
    shared
        What is not copied, by its id.
    """
    try:
        return copy.deepcopy(value, dict(shared))
    except TypeError as error:
        frames = (frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code is copy.deepcopy.__code__)
        *_, innermost = (frame.f_locals["x"] for frame in frames)
        # The check trains modules, so they are never shared. What is shared already does not fail by itself.
        if isinstance(innermost, nn.Module) or innermost is value or id(innermost) in shared:
            raise
    return _copied(value, {**shared, id(innermost): innermost})
