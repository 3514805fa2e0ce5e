"""Learning-rate schedules: closed functions of the step, so that a resumed run is where it was.

Each is a factor on the learning rate that its group was given. The first step has `start_factor`, the peak is 1, and
the step after the last would have `end_lr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_ROUNDING = 1e-9  # 29 / 100 * 100 is a little less than 29


class _Schedule(LambdaLR):
    """Warms up linearly, then follows `after(progress)` with progress in [0, 1] from the peak to the end."""

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
            raise ValueError(f"total_steps: {total_steps} is not at least 1.")
        peak = peak_step * total_steps if peak_step < 1 else peak_step
        if not 0 <= peak <= total_steps:
            raise ValueError(f"peak_step: {peak_step} is neither a fraction nor a count up to total_steps.")
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


def _factor(step: int, total: int, peak: float, start: float, end: float, after: Callable) -> float:
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
    if progress >= 1:
        return end
    return max(gamma ** int(progress * 4 + _ROUNDING), end)


class LinearWarmup(_Schedule):
    """Rises linearly from `start_factor` to the peak at `peak_step` (a fraction of the steps, or a count); stays."""

    def __init__(self, optimizer: Optimizer, total_steps: int, start_factor: float = 0.01, peak_step: float = 0.1):
        super().__init__(optimizer, total_steps, start_factor, 0.0, peak_step, _constant)


class LinearWarmupCosineAnnealing(_Schedule):
    """Rises linearly to the peak, then falls along half a cosine to `end_lr` (Loshchilov and Hutter, "SGDR", ICLR 2017,
    equation 5, without restarts)."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.01,
        end_lr: float = 0.0,
        peak_step: float = 0.1,
    ):
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, _cosine)


class LinearWarmupCyclicAnnealing(_Schedule):
    """Rises linearly to the peak, then falls along `n_cycles` half cosines, each `gamma` times as high as the last."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.01,
        end_lr: float = 0.0,
        peak_step: float = 0.1,
        n_cycles: int = 4,
        gamma: float = 0.5,
    ):
        after = partial(_cyclic, cycles=n_cycles, gamma=gamma)
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, after)


class LinearWarmupThreeStepsAnnealing(_Schedule):
    """Rises linearly to the peak, then is multiplied by `gamma` three times, a quarter of the rest apart."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        start_factor: float = 0.01,
        end_lr: float = 0.0,
        peak_step: float = 0.1,
        gamma: float = 0.3,
    ):
        super().__init__(optimizer, total_steps, start_factor, end_lr, peak_step, partial(_three_steps, gamma=gamma))


class CosineDecayer:
    """A factor for `LambdaLR`: `n_cycles` half cosines from 1 to 0, each `gamma` times as high as the one before."""

    def __init__(self, total_steps: int, n_cycles: int = 3, gamma: float = 0.2):
        self.total_steps, self.n_cycles, self.gamma = total_steps, n_cycles, gamma

    def __call__(self, step: int) -> float:
        """Return the factor of a step."""
        return _cyclic(min(step / self.total_steps, 1.0), 0.0, self.n_cycles, self.gamma)
