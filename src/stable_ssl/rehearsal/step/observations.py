"""What is odd about a step that came to its end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...exceptions import some_of
from .read_back import own_optimizers
from .ruin import silent_ruin
from .watching import Watch, folded


def observations(run: Any, values: Mapping[str, float], first: Any) -> Iterator[str]:
    """Yield a sentence or two for each thing that is odd.

    Parameters
    ----------
    run
        The run: its `trainer`, its `watch`, and its `size`.
    values
        What it logged, by name.
    first
        The first batch of `data.train`. None: there is none.
    """
    if run.watch.stopped:
        yield (
            f"A hook ends the whole training by BreakAllEpochs{run.watch.stopped}. If a run is to go on there, see the "
            "condition in that hook."
        )
    elif "train" in run.trainer.data and not run.watch.gradients:
        yield "No optimizer step was taken, since hooks have broken off each mini-batch, the epoch, or training."
    yield from _of_gradients(run)
    yield from _of_own_optimizers(run.trainer)
    yield from _of_modes(run.watch)
    yield from silent_ruin(run.trainer, first, run.watch.batch)
    for name in ("latest_representations", "latest_embeddings"):
        if _is_constant(getattr(run.trainer, name, None)):
            yield (
                f"self.{name} are the same for all samples: the images are, or the network has collapsed before "
                "training. Look at its first weights, and at the range of the images."
            )
            break
    if odd := [name for name, value in values.items() if not math.isfinite(value)]:
        yield f"Not finite with {run.size} samples: {some_of(odd)}. With all samples they may be."
    backbone = dict(run.trainer.module.named_children()).get("backbone")
    was_trained = any(name.startswith("module.backbone.") for name in run.watch.gradients)
    is_idle = backbone is not None and run.watch.gradients and _is_frozen(backbone) and not was_trained
    if is_idle and not _asks_to_freeze(run.trainer):
        yield (
            "module.backbone: all its parameters are frozen, so it learns nothing. If that is meant, say so by "
            "optim.frozen=[backbone]."
        )
    frozen = [n for n, p in run.trainer.named_parameters() if n in run.watch.gradients and not p.requires_grad]
    if frozen:
        yield (
            f"Trained in the first step, but frozen after the evaluation: {some_of(folded(frozen, frozen))}. A hook "
            "has called requires_grad_(False). Thaw them in after_eval, or in before_fit_epoch."
        )


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _asks_to_freeze(trainer: Any) -> bool:
    """Return whether the configuration says that parameters are not trained, or not yet."""
    groups = trainer.optim["groups"].values()
    return bool(trainer.optim["frozen"]) or any(group.get("frozen_epochs") for group in groups)


def _of_own_optimizers(trainer: Any) -> Iterator[str]:
    if lost := [*own_optimizers(trainer, is_unsaved=True)]:
        yield (
            f"A resumed run begins {some_of(lost)} anew, since no checkpoint holds plain attributes. Save each by "
            f"self.register('{lost[0].rpartition('.')[2]}', {lost[0]}), or have side_optimizers() return the optimizer."
        )


def _of_gradients(run: Any) -> Iterator[str]:
    watch, parameters = run.watch, dict(run.trainer.named_parameters())
    own = [one for one in own_optimizers(run.trainer).values() if isinstance(one, torch.optim.Optimizer)]
    trained = {id(parameter) for one in own for group in one.param_groups for parameter in group["params"]}
    names = [name for name in watch.gradients if id(parameters.get(name)) not in trained]
    none = [name for name in names if watch.gradients[name] == "none"]
    if none:
        yield (
            f"No gradient reaches {some_of(folded(none, names))} in the first step, although trainable. Does "
            "compute_loss use it? If it need not, remove it, or name it in optim.frozen."
        )
    if names and all(kind in ("none", "zero") for kind in watch.gradients.values()):
        yield "All gradients are 0 in the first step, so nothing is learned. Is the loss constant, or detached?"


def _of_modes(watch: Watch) -> Iterator[str]:
    for phase, other in (("training", "evaluation"), ("evaluation", "training")):
        if found := watch.in_other_mode[phase]:
            yield (
                f"In {phase} mode of the run, these are in {other} mode: {some_of([*found])}. A hook, or the module, "
                f"has called {'eval' if phase == 'training' else 'train'}()."
            )


def _is_constant(outputs: Any) -> bool:
    """Return whether outputs, (samples, dim) or a list of them, are the same for all samples."""
    if isinstance(outputs, list | tuple) and outputs and all(isinstance(one, Tensor) for one in outputs):
        return all(_is_constant(one) for one in outputs)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or len(outputs) < 2 or not outputs.is_floating_point():
        return False
    spread = (outputs - outputs[:1]).abs().max()
    return bool(torch.isfinite(spread) and spread <= 1e-6 * outputs.abs().max())


def why_not_finite(watch: Watch, trainer: Any) -> str:
    """Return what is known of a loss or a value that is not finite after the first step; "" if nothing is."""
    if bad := not_finite(watch.losses):
        step = trainer._progress.global_step
        advice = " Step 1 was finite: is optim.optimizer.lr too large?" if step > 1 else ""
        return f"compute_loss(): not finite in step {step}: {some_of(bad)}.{advice}"
    if odd := [name for name, kind in watch.gradients.items() if kind == "not finite"]:
        names = some_of(folded(odd, list(watch.gradients)))
        return f"The loss of the first step is finite, but not the gradients of {names}. Is there a root or log of 0?"
    values = [name for name, value in trainer.state_dict().items() if isinstance(value, Tensor)]
    if odd := [name for name in values if not torch.isfinite(trainer.state_dict()[name]).all()]:
        return f"Not finite after the first step: {some_of(odd)}."
    return ""


def not_finite(losses: Any) -> list[str]:
    """Return the names and values of those parts of what `compute_loss` returned that are not finite."""
    listed = {f"loss_{place}": loss for place, loss in enumerate(losses)} if isinstance(losses, list | tuple) else {}
    parts = losses if isinstance(losses, Mapping) else listed or {"loss": losses}
    numbers = {
        name: float(torch.as_tensor(value).detach())
        for name, value in parts.items()
        if isinstance(value, int | float | Tensor)
    }
    return [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]
