"""Mixed precision: autocast, loss scaling, gradient clipping, and the search for values that are not finite."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .device import do_without
from .distributed import local, norms

log = logging.getLogger("stable_ssl")


def resolve_precision(precision: str, device: torch.device, world_size: int = 1) -> str:
    """Return the precision that the device trains in: fp16 becomes fp32 on devices other than CUDA.

    bf16 on a CPU that has no instructions for it stays bf16, but a warning says that fp32 is faster.

    Raises
    ------
    ConfigError
        fp16 would become fp32, and `do_without` refuses to go on.
    """
    if precision == "fp16" and device.type != "cuda":
        do_without("Precision fp16 needs a CUDA device", f"using fp32 on {device.type}", world_size)
        return "fp32"
    if precision == "bf16" and device.type == "cpu" and not _is_bf16_fast():
        log.warning(
            "hardware.precision is bf16, for which this CPU has no instructions: a step may take ten times as long as "
            "in fp32."
        )
    return precision


def _is_bf16_fast() -> bool:
    """Return False if oneDNN, torch's library for convolutions, computes bf16 in software on this CPU."""
    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Precision:
    """Autocast, loss scaling, gradient clipping and the optimizer step, as one precision needs them.

    Parameters
    ----------
    precision
        "fp32", "bf16" (autocast), or "fp16" (autocast, and a dynamically scaled loss: Micikevicius et al.,
        "Mixed precision training", ICLR 2018, section 3.2).
    device
        The device of the model.
    grad_max_norm
        Largest L2 norm of all gradients together. None: no clipping.
    skip_nonfinite
        Whether to skip steps with gradients that are not finite. The host then waits for the device in each step.
    """

    def __init__(
        self,
        precision: str,
        device: torch.device,
        grad_max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ):
        self.grad_max_norm = grad_max_norm
        self.skip_nonfinite = skip_nonfinite
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        # One object serves the whole run, because making one takes as long as a small kernel.
        self.autocast: contextlib.AbstractContextManager = (
            contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the parameters, scaled in fp16."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients those of the loss without its scale."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def leave_out(self) -> None:
        """Leave out the step of gradients that `unscale` has seen."""
        if self.scaler:
            self.scaler.update()

    def step(self, optimizer: torch.optim.Optimizer, tells: bool = False) -> bool:
        """Clip the gradients and update the parameters. Call `unscale` before.

        Parameters
        ----------
        tells
            Ask fp16's scaler whether it skipped the step. This waits for the device.

        Returns
        -------
        bool
            False if the step was skipped because a gradient is not finite. In fp16 it is True all the same, unless
            `tells` is set.
        """
        if not self._clip(optimizer):
            return False
        if not self.scaler:
            optimizer.step()
            return True
        before = self.scaler.get_scale() if tells else 0.0
        self.scaler.step(optimizer)
        self.scaler.update()
        return not tells or self.scaler.get_scale() >= before  # it lowers the scale if it skips a step

    def _clip(self, optimizer: torch.optim.Optimizer) -> bool:
        """Clip the gradients in place, and return whether the step may be taken."""
        if self.grad_max_norm is None and not self.skip_nonfinite:
            return True
        if not (grads := _gradients(optimizer)):
            return True
        norm = total_norm(grads)
        # In fp16 the scaler must see gradients that are not finite, to lower its scale.
        if self.skip_nonfinite and not self.scaler and not torch.isfinite(norm):
            return False
        if self.grad_max_norm is not None:
            torch._foreach_mul_(
                [local(grad) for grad in grads], torch.clamp(self.grad_max_norm / (norm + 1e-6), max=1.0)
            )
        return True


def multiply_gradients(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Multiply the gradients of all parameters of some optimizers by a factor."""
    if factor != 1.0:
        for optimizer in optimizers:
            if grads := _gradients(optimizer):
                torch._foreach_mul_([local(grad) for grad in grads], factor)


def total_norm(grads: list[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, (), of the values on all processes."""
    if not any(hasattr(grad, "to_local") for grad in grads):
        return torch.nn.utils.get_total_norm(grads)
    total: Tensor = torch.linalg.vector_norm(norms(grads))
    return total


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


class FiniteWatch:
    """Keeps losses on the device, and checks them together when the host waits for the device anyway."""

    CHUNK = 1024  # number of scalars that are packed into one tensor

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[int] = []
        self._packed: list[Tensor] = []

    def add(self, loss: Tensor, step: int) -> None:
        """Keep the loss of one mini-batch.

        Parameters
        ----------
        loss
            A scalar.
        step
            The optimizer step that the mini-batch belongs to.
        """
        self._losses.append(loss.detach())
        self._steps.append(step)
        if len(self._losses) >= self.CHUNK:
            self._packed.append(torch.stack(self._losses))
            self._losses.clear()

    def first_bad(self) -> tuple[int, float] | None:
        """Return (step, loss) of the first loss since the last call that is not finite, or None.

        This waits for the device.
        """
        if not self._steps:
            return None
        if self._losses:
            self._packed.append(torch.stack(self._losses))
        values = zip(self._steps, torch.cat(self._packed).tolist(), strict=True)
        found = next(((step, value) for step, value in values if not math.isfinite(value)), None)
        self._losses.clear()
        self._steps.clear()
        self._packed.clear()
        return found


def all_finite(tensors: list[Tensor]) -> bool:
    """Return whether this process's values of all floating-point tensors are finite.

    This waits for the device once or twice.
    """
    floating = [local(tensor.detach()) for tensor in tensors if tensor.is_floating_point()]
    floating = [tensor for tensor in floating if tensor.numel()]  # a process may have no part of a small tensor
    if not floating:
        return True
    # If the L2 norm is finite, so are all values. It takes a tenth of the largest value's time on a CPU, but overflows
    # for large finite values. Only then is the largest value needed.
    return any(
        bool(torch.stack([norm.float() for norm in torch._foreach_norm(floating, order)]).isfinite().all())
        for order in (2.0, float("inf"))
    )


def learned_values(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's parameters, and the running statistics of its batch normalisation."""
    yield from module.parameters()
    yield from running_statistics(module)


def running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Yield the running means and variances of a module's batch normalisation."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            yield from (buffer for buffer in part.buffers() if buffer.is_floating_point())
