"""Values of settings that are out of the usual range, each with the range and the reason."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...exceptions import ConfigError
from ...nodes import is_node, locate, plain
from ...signatures import parameters_of
from .users_code import targets_in

# The smallest and the largest learning rate of the published recipes for images, with a margin, after `lr_batch_size`.
_RATES = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax"), (1e-6, 0.02)),
    "SGD": (1e-4, 10.0),
    "LARS": (1e-3, 50.0),
    "RMSprop": (1e-6, 0.05),
    "Lion": (1e-7, 1e-3),
}
_MOST_DECAY = {"AdamW": 0.5, "Lion": 1.0}  # it is multiplied by the rate there; elsewhere 0.01
_COMPARING = ("NTXEntLoss", "BarlowTwinsLoss", "VICRegLoss", "SwAVLoss", "LeJEPALoss")
# Arguments of schedules that count steps, and are often meant to count epochs.
_LENGTHS = ("T_max", "T_0", "total_iters", "total_steps", "step_size", "milestones")
_MINUTES_OF_A_MONTH = 43_200


@dataclass(frozen=True)
class Settings:
    """What the values of a configuration are compared with.

    Parameters
    ----------
    hardware, optim, logger
        The three configurations, as the trainer has parsed them.
    trainer
        The trainer's node.
    world_size
        Number of processes.
    """

    hardware: Any
    optim: Any
    logger: Any
    trainer: Mapping[str, Any]
    world_size: int

    @property
    def batch_size(self) -> int | None:
        """Images per mini-batch and process; None if the configuration does not say it."""
        value = argument(section(self.trainer, "data").get("train"), "batch_size")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def eval_sets(self) -> list[str]:
        """The names of the evaluation sets."""
        return [name for name in section(self.trainer, "data") if name != "train" and not name.startswith("_")]

    @property
    def rate_factor(self) -> float:
        """What `optim.lr_batch_size` multiplies the learning rates by."""
        if not self.optim["lr_batch_size"] or not self.batch_size:
            return 1.0
        whole: int = self.batch_size * self.world_size * self.optim["accumulation_steps"]
        return whole / int(self.optim["lr_batch_size"])


def unusual(settings: Settings) -> Iterator[str]:
    """Yield a sentence per value that is out of the usual range."""
    rules = (_rates, _decay, _betas, _scaling, _temperatures, _teachers, _batch, _warm_up, _epochs, _limits)
    for rule in rules:
        yield from rule(settings)


def unusual_steps(optim: Any, schedule: Any, logger: Any) -> Iterator[str]:
    """Yield a sentence per value that does not suit the number of steps.

    Parameters
    ----------
    optim, logger
        The configurations; `optim` has the number of mini-batches per epoch.
    schedule
        `optim.scheduler` as it was given.
    """
    num_batches = optim["num_batches"]
    accumulated = optim["accumulation_steps"]
    steps = optim["epochs"] * -(-num_batches // accumulated)
    if logger["log_every_step"] > steps:
        yield (
            f"logger.log_every_step: {logger['log_every_step']} is more than the {steps} steps of the run, so no loss "
            "is logged. Give a smaller number."
        )
    if accumulated > num_batches:
        yield (
            f"optim.accumulation_steps: {accumulated} is more than the {num_batches} mini-batches of an epoch, and no "
            "step goes on in the next epoch. Give a smaller number."
        )
    for name in _LENGTHS:
        value = argument(schedule, name)
        value = max(value) if isinstance(value, list) and value and all(map(_number, value)) else value
        is_length = _number(value) is not None and (value == optim["epochs"] or name in ("T_max", "total_steps"))
        if is_length and value < steps:
            yield (
                f"optim.scheduler.{name}: {value}, but the run has {steps} steps, and the schedule moves on with each "
                "of them, not with each epoch."
            )


def section(trainer: Any, name: str) -> Mapping[str, Any]:
    """Return a section of the trainer's configuration; an empty one if it is missing, or is no dict."""
    found = trainer.get(name) if isinstance(trainer, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def argument(node: Any, name: str) -> Any:
    """Return an argument of a node, of a partial or of a live object: what was given, or the default; else None."""
    node = plain(node)
    if isinstance(node, functools.partial):
        target, given = node.func, node.keywords
    elif is_node(node):
        target, given = _target(node), node
    else:
        return getattr(node, name, None)
    if name in given:
        return given[name]
    parameter = (parameters_of(target) or {}).get(name) if callable(target) else None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _target(node: Any) -> Any:
    """Return what a node or a partial calls; None for anything else, or if it can't be imported."""
    if isinstance(node, functools.partial):
        return node.func
    try:
        return locate(node["_target_"], "") if is_node(node) else None
    except ConfigError:
        return None


def _kinds(node: Any) -> list[str]:
    """Return the names of the class that a node makes, and of its ancestors."""
    target = _target(plain(node))
    return [cls.__name__ for cls in target.__mro__] if isinstance(target, type) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rates(settings: Settings) -> Iterator[str]:
    optim, factor = settings.optim, settings.rate_factor
    kind = next((name for name in _kinds(optim["optimizer"]) if name in _RATES), None)
    rate = _number(argument(optim["optimizer"], "lr"))
    if kind is None or rate is None:
        return
    least, most = _RATES[kind]
    rates = {"optim.optimizer.lr": (rate, factor)}
    for name, group in optim["groups"].items():
        scale = group.get("lr_scale")
        if group.get("lr") or scale:
            key = f"optim.groups.{name}.{'lr_scale' if scale else 'lr'}"
            rates[key] = (scale or group["lr"], factor * rate if scale else factor)
    for key, (value, times) in rates.items():
        real = value * times
        if value == 0:
            yield f"{key}: 0, so nothing is trained."
        elif value > 0 and not least <= real <= most:
            shown = "" if times == 1 else f", which makes a rate of {real:.3g} for the whole batch,"
            where, effect = (
                ("above", "training mostly diverges") if real > most else ("below", "hardly anything is learnt")
            )
            yield f"{key}: {value:g}{shown} is {where} the usual rates of {kind}, {least:g} to {most:g}: {effect}."


def _decay(settings: Settings) -> Iterator[str]:
    node = settings.optim["optimizer"]
    kind = next((name for name in _kinds(node) if name in _RATES), None)
    values = {"optim.optimizer.weight_decay": _number(argument(node, "weight_decay"))}
    for name, group in settings.optim["groups"].items():
        values[f"optim.groups.{name}.weight_decay"] = group.get("weight_decay")
    most = _MOST_DECAY.get(kind or "", 0.01)
    for key, value in values.items():
        if kind is not None and value is not None and value > most:
            yield f"{key}: {value:g} is unusual for {kind}: 0 to {most:g} is usual, and more draws all weights to 0."


def _betas(settings: Settings) -> Iterator[str]:
    betas, momentum = (argument(settings.optim["optimizer"], name) for name in ("betas", "momentum"))
    values = [_number(beta) for beta in betas] if isinstance(betas, list | tuple) else []
    if len(values) == 2 and None not in values and values[0] > values[1]:  # type: ignore[operator]
        yield f"optim.optimizer.betas: {list(betas)}: the first is usually 0.9, the second larger. Are they swapped?"
    if (value := _number(momentum)) is not None and value >= 1:
        yield f"optim.optimizer.momentum: {value:g}: 0 to below 1 is usual, since with 1 and more the steps only grow."


def _scaling(settings: Settings) -> Iterator[str]:
    factor = settings.rate_factor
    if not 1 / 64 <= factor <= 64:
        whole = round(factor * settings.optim["lr_batch_size"])
        yield (
            f"optim.lr_batch_size: the whole batch is {whole}, so all rates are multiplied by {factor:.3g}. A factor "
            "of 1/64 to 64 is usual, since rates that grow with the batch were tried up to there."
        )


def _temperatures(settings: Settings) -> Iterator[str]:
    for path, node, target in targets_in(settings.trainer):
        value = _number(node.get("temperature"))
        is_own = str(target.__module__).startswith("stable_ssl.")
        if value is not None and is_own and (0 < value < 0.01 or value > 2):
            yield (
                f"{path}.temperature: {value:g}: 0.01 to 2 is usual. Below, only the nearest pair counts; above, all "
                "pairs count alike."
            )
    teacher, student = (_number(settings.trainer.get(f"temperature_{name}")) for name in ("teacher", "student"))
    student = 0.1 if student is None else student
    if teacher is not None and 0 < student <= teacher:
        yield (
            f"temperature_teacher: {teacher:g} is not below temperature_student, {student:g}. The teacher's scores are "
            "usually the sharper ones, since the network collapses otherwise."
        )


def _teachers(settings: Settings) -> Iterator[str]:
    places = [("", settings.trainer), *((f"{path}.", node) for path, node, _ in targets_in(settings.trainer))]
    for path, node in dict(places).items():
        base, final = (_number(node.get(f"{name}_ema_coefficient")) for name in ("base", "final"))
        if base is not None and not 0.9 <= base < 1:
            why = "with 1 it never learns" if base >= 1 else "a lower one copies the student, and both may collapse"
            yield f"{path}base_ema_coefficient: {base:g}: 0.9 to below 1 is usual for a teacher; {why}."
        if final is not None and not 0.9 <= final <= 1:
            yield f"{path}final_ema_coefficient: {final:g}: 0.9 to 1 is usual for a teacher."


def _batch(settings: Settings) -> Iterator[str]:
    kind = next((name for name in _kinds(settings.trainer.get("loss")) if name in _COMPARING), None)
    size = settings.batch_size
    if kind is not None and size is not None and size * settings.world_size < 32:
        whole = f", {size * settings.world_size} over all processes" if settings.world_size > 1 else ""
        yield (
            f"data.train.batch_size: {size}{whole}: {kind} compares the images of a batch with each other, so 32 or "
            "more are usual. Accumulated mini-batches do not count, since each is compared by itself."
        )


def _warm_up(settings: Settings) -> Iterator[str]:
    optim, trainer = settings.optim, settings.trainer
    peak = _number(argument(optim["scheduler"], "peak_step"))
    if peak is not None and 0.5 < peak < 1:
        yield f"optim.scheduler.peak_step: {peak:g}: the rate rises for over half of the run; up to 0.2 of it is usual."
    for name in ("warmup_epochs_temperature_teacher", "freeze_prototypes_epochs"):
        value = _number(trainer.get(name))
        if value is not None and value >= optim["epochs"] and value > 1:
            yield f"{name}: {value:g} is not below optim.epochs, {optim['epochs']}, so its end never comes."
    for name, group in optim["groups"].items():
        if (value := group.get("frozen_epochs", 0)) >= optim["epochs"]:
            yield (
                f"optim.groups.{name}.frozen_epochs: {value} is not below optim.epochs, {optim['epochs']}, so these "
                "parameters are never trained. optim.frozen says that shorter."
            )


def _epochs(settings: Settings) -> Iterator[str]:
    optim, logger = settings.optim, settings.logger
    epochs, every = optim["epochs"], logger["eval_every_epoch"]
    is_whole = isinstance(optim["max_steps"], int) and optim["max_steps"] < 0
    if epochs == 1 and is_whole:
        yield "optim.epochs: 1: methods of this kind usually see each image 100 times or more."
    if settings.eval_sets and every and every > epochs > 1:
        yield f"logger.eval_every_epoch: {every} is more than optim.epochs, {epochs}: the end is the only evaluation."
    patience = (logger["best"] or {}).get("patience")
    if patience and every and patience >= epochs // every:
        yield (
            f"logger.best.patience: {patience} is not below the {epochs // every} evaluations of the run, so it never "
            "ends training."
        )
    frequency = logger["checkpoint_frequency"]
    if frequency and frequency > epochs:
        yield f"logger.checkpoint_frequency: {frequency} is more than optim.epochs, {epochs}: no weights are kept."


def _limits(settings: Settings) -> Iterator[str]:
    hardware, optim, logger = settings.hardware, settings.optim, settings.logger
    limit, every, norm = hardware["time_limit"], logger["checkpoint_every_minutes"], optim["grad_max_norm"]
    if limit is not None and (limit < 2 or limit > _MINUTES_OF_A_MONTH):
        yield f"hardware.time_limit: {limit:g} minutes. Is another unit meant?"
    if limit is not None and every > limit and not logger["checkpoint_every_step"]:
        yield (
            f"logger.checkpoint_every_minutes: {every:g} is more than hardware.time_limit, {limit:g}: a job that is "
            "killed before its end may lose everything."
        )
    if norm is not None and norm < 0.01:
        yield f"optim.grad_max_norm: {norm:g}: 0.1 to 10 is usual, and so small a limit cuts every gradient to it."
