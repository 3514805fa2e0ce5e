"""Two sides of one method: ours in a trainer, and a training step by hand that the trainer's hooks call.

Both sides begin with the same weights and see the same batches, in float64 on the CPU, where a difference above
`TOLERANCE` is no rounding.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.utils.lars import LARS as LightlyLARS
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from stable_ssl.optimizers import LARS
from stable_ssl.trainers import SelfSupervisedTrainer

BATCH, SIZE, LOCAL, DIM = 16, 16, 8, 16  # images per batch, pixels of a view and of a local view, width of backbones
BATCHES, EPOCHS = 5, 3
STEPS = BATCHES * EPOCHS
TOLERANCE = 1e-9  # for values of about 1

OPTIMIZERS: dict[str, tuple[Callable, Callable]] = {
    "SGD": (functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),) * 2,
    # Some biases have gradients that are 0 but for rounding. The usual eps of 1e-8 would make steps of them.
    "AdamW": (functools.partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05, eps=1e-5),) * 2,
    "LARS": (
        functools.partial(LARS, lr=0.3, momentum=0.9, weight_decay=1e-3, eta=0.02, epsilon=1e-8),
        functools.partial(LightlyLARS, lr=0.3, momentum=0.9, weight_decay=1e-3, trust_coefficient=0.02, eps=1e-8),
    ),
}

Part = Any  # a module, a tensor, or a list of parts


def nothing(step: int) -> None:
    """Do nothing."""


@dataclass
class Sides:
    """A method on both sides. Building it copies our first weights to the other side."""

    # What our trainer is made of.
    trainer: type[SelfSupervisedTrainer]
    module: dict[str, nn.Module]
    loss: nn.Module | None
    batches: list
    # The other side's parts, by the name of our module that each stands for.
    student: dict[str, Part]
    step_loss: Callable[[Any, int], Tensor]  # (batch, step) -> loss
    teacher: dict[str, Part] = field(default_factory=dict)
    prototypes: Part = ()  # the other side's, if our loss has any
    state: Callable[[nn.Module], dict[str, tuple[Part, Part]]] = lambda loss: {}  # our loss -> its state and theirs
    before_step: Callable[[int], None] = nothing  # runs between the backward pass and the optimizer step
    after_step: Callable[[int], None] = nothing
    options: dict[str, Any] = field(default_factory=dict)  # of our trainer

    def __post_init__(self) -> None:
        for part in [*self.module.values(), *filter(None, [self.loss])]:
            part.double()
        for name, part in self.student.items():
            copy_values(role(self.module[name], "student"), part)
        for name, part in self.teacher.items():
            copy_values(role(self.module[name], "teacher"), part)

    def trained(self) -> list[Tensor]:
        """Return the weights that the other side's optimizer changes."""
        return [p for p in weights([*self.student.values(), self.prototypes]) if p.requires_grad]

    def take_step(self, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """Take the other side's step, counted from 0, and return its loss."""
        loss = self.step_loss(self.batches[step % BATCHES], step)
        optimizer.zero_grad()
        loss.backward()
        self.before_step(step)
        optimizer.step()
        self.after_step(step)
        return loss

    def pairs(self, modules: dict[str, nn.Module], loss: nn.Module) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return everything that is compared: pairs of our value and theirs, by kind."""
        found = defaultdict(list)
        for kind, parts in (("student", self.student), ("teacher", self.teacher)):
            for name, part in parts.items():
                ours = role(modules[name], kind)
                found[f"{kind}'s weights"] += zip(weights(ours), weights(part), strict=True)
                found[f"{kind}'s statistics"] += zip(statistics(ours), statistics(part), strict=True)
        for kind, (ours, theirs) in self.state(loss).items():
            found[kind] += zip(weights(ours), weights(theirs), strict=True)
        return found


def role(module: nn.Module, kind: str) -> nn.Module:
    """Return the student or the teacher of a module; a module without them is both."""
    return getattr(module, kind, module)


def weights(part: Part) -> list[Tensor]:
    """Return the parameters of a part, in the order in which ours has them."""
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, list | tuple):
        return [value for one in part for value in weights(one)]
    if isinstance(part, Block):
        return weights([part.attn.qkv, part.attn.proj, part.mlp.fc1, part.mlp.fc2, part.norm1, part.norm2])
    # The lengths of `weight_norm`'s rows stay 1. Ours has no such parameter.
    return [value for name, value in part.named_parameters() if not name.endswith("weight_g")]


def statistics(part: Part) -> list[Tensor]:
    """Return running means and variances."""
    if isinstance(part, list | tuple):
        return [value for one in part for value in statistics(one)]
    return [b for b in part.buffers() if b.is_floating_point()] if isinstance(part, nn.Module) else []


@torch.no_grad()
def copy_values(source: Part, target: Part) -> None:
    """Copy weights and running statistics."""
    for read in (weights, statistics):
        for value, aim in zip(read(source), read(target), strict=True):
            aim.copy_(value.view_as(aim))


def largest(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the largest difference between two tensors; NaN if any is not finite."""
    return (ours - theirs).detach().abs().max()


def compare(make: Callable[[], Sides], optimizer: str) -> dict[str, float]:
    """Train both sides for `STEPS` steps, and return the largest difference of each kind of value after any step."""
    torch.manual_seed(0)
    sides = make()
    ours, theirs = OPTIMIZERS[optimizer]
    # What is one-dimensional does not decay, as in the authors' code. A mask token has the shape (1, 1, dim).
    groups = [
        {"params": [p for p in sides.trained() if p.ndim > 1]},
        {"params": [p for p in sides.trained() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    stepper = theirs(groups)
    first = copy.deepcopy(sides.trained())
    differences: dict[str, list[Tensor]] = defaultdict(list)
    seen: dict[str, Any] = {"step": 0}

    class BesideTheOther(sides.trainer):  # type: ignore[name-defined]
        def before_fit(self) -> None:
            self.loss.double()  # a loss that the trainer makes is in float32

        def before_fit_step(self) -> None:
            seen["generator"] = torch.get_rng_state()

        def compute_loss(self) -> dict[str, Tensor]:
            computed = super().compute_loss()
            seen["loss"] = computed["loss_ssl"].detach()
            return computed

        def after_fit_step(self) -> None:
            torch.set_rng_state(seen["generator"])  # both sides draw the same numbers
            loss = sides.take_step(stepper, seen["step"])
            pairs = {"loss": [(seen["loss"], loss)], **sides.pairs(self.module, self.loss)}
            for kind, values in pairs.items():
                differences[kind] += [largest(mine, other.view_as(mine)) for mine, other in values]
            seen["step"] += 1

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        BesideTheOther(
            data={"train": sides.batches},
            module=sides.module,
            loss=sides.loss,
            hardware={"device": "cpu", "seed": 0},
            optim={"epochs": EPOCHS, "optimizer": ours, "exclude_bias_norm": True},
            logger={"dump_path": folder, "level": logging.ERROR, "log_every_step": 1000},
            **sides.options,
        )()
    moved = max(largest(before, after) for before, after in zip(first, sides.trained(), strict=True))
    if seen["step"] != STEPS or moved < 1e-3:
        raise AssertionError(f"After {seen['step']} of {STEPS} steps, no weight has moved by more than {moved:.0e}.")
    return {kind: float(torch.stack(values).max()) for kind, values in differences.items() if values}


# What families share --------------------------------------------------------------------------------------------------


def convnet(batch_norm: bool = True) -> nn.Module:
    """Return a small ConvNet whose representation is `DIM` wide."""

    def block(width_in: int, width: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(2, width)
        return [nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False), norm, nn.ReLU()]

    return nn.Sequential(*block(3, 8), *block(8, DIM), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def views(num_local: int = 0) -> list[list[Tensor]]:
    """Return batches of two views and some smaller ones, which have something in common."""
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = []
    for _ in range(BATCHES):
        base = randn(BATCH, 3, SIZE, SIZE)
        sizes = [SIZE] * 2 + [LOCAL] * num_local
        batches.append([base[..., :size, :size] + 0.5 * randn(BATCH, 3, size, size) for size in sizes])
    return batches


def by_size(network: nn.Module, views: list[Tensor]) -> Tensor:
    """Return the outputs of the global views and of the local ones, with a forward pass of the network for each size."""
    sizes = dict.fromkeys(view.shape for view in views)
    return torch.cat([network(torch.cat([view for view in views if view.shape == size])) for size in sizes])


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False)


def momentum_at(step: int, base: float, final: float = 1.0) -> float:
    """Return the teacher's momentum after a step, counted from 0, as BYOL's paper has it in section 3.2."""
    return final - (final - base) * (math.cos(math.pi * step / STEPS) + 1) / 2


def newest_first(queue: MemoryBankModule, count: int = BATCH) -> Tensor:
    """Return a queue of lightly's, a ring of batches of `count`, in the order of ours: the newest batch first."""
    start = int(queue.bank_ptr)
    return torch.cat(torch.cat([queue.bank[start:], queue.bank[:start]]).split(count)[::-1])
