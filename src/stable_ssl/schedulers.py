"""Learning-rate schedules. Each is a function of the step alone, so that a resumed run has the same learning rates.

A schedule multiplies the learning rate of each parameter group by a factor. The factor begins at `start_factor`, rises
linearly to 1 at the peak, and then falls. `end_lr` is the learning rate that would follow the last step. `step()` is
called once per optimizer step.

Arguments of the schedules:

optimizer
    The optimizer whose learning rates change.
total_steps
    Number of optimizer steps of the whole run.
start_factor
    The factor of the first step.
end_lr
    The learning rate after the last step. It is a learning rate, not a factor.
peak_step
    The step of the peak. Below 1: a fraction of `total_steps`, rounded down to a whole step.
n_cycles
    Number of half cosines after the peak.
gamma
    The factor between the heights of two cycles or of two steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger("stable_ssl")

_ROUNDING = 1e-9  # makes up for rounding: 29 / 100 * 100 is a little less than 29
_FALLS = (0.4, 0.6, 0.8)  # of three steps, as fractions of the steps after the peak
_NO_SINE = (
    "%s: the cycles are half cosines, and each begins below the one before. In stable-ssl of early 2025, they were a "
    "sine that rose 38 %% above the peak."
)


class _Schedule(LambdaLR):
    """A linear warm-up, followed by the function `after`.

    `after(progress, end)` returns the factor for a progress from 0 at the peak to 1 at the end. `end` is the factor
    that makes `end_lr`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float,
        end_lr: float,
        peak_step: float,
        after: Callable[[float, float], float],
    ):
        if total_steps < 1:
            raise ValueError(f"total_steps: {total_steps} is below 1.")
        for name, value in (("start_factor", start_factor), ("end_lr", end_lr)):
            if value < 0:
                raise ValueError(f"{name}: {value} is below 0, and so would the learning rate be.")
        peak = int(peak_step * total_steps) if peak_step < 1 else peak_step
        if not 0 <= peak <= total_steps:
            raise ValueError(
                f"peak_step: {peak_step} must be a fraction of the steps, or a step up to total_steps, {total_steps}."
            )
        bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        factors: list[Callable[[int], float]] = [
            partial(
                _factor,
                total=total_steps,
                peak=peak,
                start=start_factor,
                end=end_lr / base if base else 0.0,
                after=after,
            )
            for base in bases
        ]
        super().__init__(optimizer, factors)


def _factor(
    step: int, total: int, peak: float, start: float, end: float, after: Callable[[float, float], float]
) -> float:
    if step < peak:
        return start + (1 - start) * step / peak
    return after(min((step - peak) / max(total - peak, 1), 1.0), end)


def _constant(progress: float, end: float) -> float:
    return 1.0


def _cosine(progress: float, end: float) -> float:
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


def _cyclic(progress: float, end: float, cycles: int, gamma: float) -> float:
    cycle = min(int(progress * cycles + _ROUNDING), cycles - 1)
    within = progress * cycles - cycle
    return end + (1 - end) * gamma**cycle * (1 + math.cos(math.pi * within)) / 2


def _three_steps(progress: float, end: float, gamma: float) -> float:
    num_falls = sum(progress >= fall - _ROUNDING for fall in _FALLS)
    return max(gamma**num_falls, end)


class LinearWarmup(_Schedule):
    """A linear rise from `start_factor` to the peak at `peak_step`. The learning rate then stays the same."""

    def __init__(self, optimizer: Optimizer, total_steps: int, start_factor: float = 0.01, peak_step: float = 0.1):
        super().__init__(optimizer, total_steps, start_factor, 0.0, peak_step, _constant)


class LinearWarmupCosineAnnealing(_Schedule):
    """A linear rise to the peak, then a fall along half a cosine to `end_lr` (Loshchilov and Hutter, "SGDR", ICLR 2017,
    equation 5, without restarts).

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.schedulers import LinearWarmupCosineAnnealing
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    >>> schedule = LinearWarmupCosineAnnealing(optimizer, total_steps=4, start_factor=0.5, peak_step=0.25)
    >>> for _ in range(4):
    ...     print(round(schedule.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     schedule.step()
    0.2
    0.4
    0.3
    0.1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.01,
        end_lr: float = 0.0,
        peak_step: float = 0.01,
    ):
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, _cosine)


class LinearWarmupCyclicAnnealing(_Schedule):
    """A linear rise to the peak, then `n_cycles` half cosines down to `end_lr`. Each cycle is `gamma` times as high as
    the one before."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.01,
        peak_step: float = 0.1,
        end_lr: float = 0.0,
        n_cycles: int = 3,
        gamma: float = 0.5,
    ):
        log.info(_NO_SINE, type(self).__name__)
        after = partial(_cyclic, cycles=n_cycles, gamma=gamma)
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, after)


class LinearWarmupThreeStepsAnnealing(_Schedule):
    """A linear rise to the peak, then three falls, each by the factor `gamma`: when 40, 60 and 80 % of the steps after
    the peak are over. The learning rate never falls below `end_lr`."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.001,
        gamma: float = 0.3,
        peak_step: float = 0.05,
        end_lr: float = 0.0,
    ):
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, partial(_three_steps, gamma=gamma))
        rest = total_steps - (int(peak_step * total_steps) if peak_step < 1 else peak_step)
        if any(rest * fall % 1 for fall in _FALLS):
            log.info(
                "LinearWarmupThreeStepsAnnealing: the learning rate falls three times. In stable-ssl of early 2025, a "
                "fall that was due between two steps, as one of this schedule is, never came."
            )


class CosineDecayer:
    """A function for `torch.optim.lr_scheduler.LambdaLR`: `n_cycles` half cosines down to 0. The first begins at 1, and
    each other one begins at `gamma` times the height of the one before.

    Examples
    --------
    >>> from stable_ssl.schedulers import CosineDecayer
    >>> decay = CosineDecayer(total_steps=4, n_cycles=2, gamma=0.5)
    >>> [round(decay(step), 3) for step in range(5)]
    [1.0, 0.5, 0.5, 0.25, 0.0]
    """

    def __init__(self, total_steps: int, n_cycles: int = 3, gamma: float = 0.2):
        log.info(_NO_SINE, type(self).__name__)
        self.total_steps, self.n_cycles, self.gamma = total_steps, n_cycles, gamma

    def __call__(self, step: int) -> float:
        """Return the factor for a step, counted from 0."""
        return _cyclic(min(step / self.total_steps, 1.0), 0.0, self.n_cycles, self.gamma)
