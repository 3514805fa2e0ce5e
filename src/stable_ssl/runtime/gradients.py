"""The mean of gradients over the processes of a run, whose exchange begins while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .sharded import is_sharded

BUCKET = 1 << 21  # gradient values that are summed together


class GradientMean:
    """Replaces gradients by their mean over the processes.

    Parameters are divided into buckets, and the gradients of a bucket are summed together. `begin` before a backward
    pass lets each bucket's exchange begin as soon as its gradients are there; `finish` waits for all. The division, and
    the order of the exchanges, depend on the parameters only, so a resumed run adds in the same order.
    (DistributedDataParallel changes its layout after the first step. With more than two processes the order of a sum
    depends on the layout, so a resumed run would differ in the last bits. `replicate` of FSDP2 makes all parameters
    DTensors, and copies them and their gradients in each step.)

    Gradients of half precision are summed in fp32. The buckets are exchanged in a process group of their own, so that
    collectives of losses and batch normalisation may come in between.

    What a process has to tell the others, a few flags, travels with its gradients (`set_flags` and `received_flags`).
    That costs nothing if the last bucket is on the host. If the last bucket is on a device, reading it would wait for
    the device; then, or if there is no bucket, an all-reduce of a CPU tensor of their own carries the flags.

    Parameters
    ----------
    num_flags
        Number of flags that a process can send with its gradients.

    Attributes
    ----------
    overlaps
        Whether exchanges may begin during the backward pass. The first pass shows whether each gradient is complete
        when its parameter's hook runs; reentrant activation checkpointing may call the hook more often.
    """

    def __init__(self, num_flags: int) -> None:
        self._num_flags = num_flags
        self._group: Any = dist.new_group()
        self._size = dist.get_world_size()
        self._buckets: list[list[nn.Parameter]] = []
        self._place: dict[nn.Parameter, int] = {}  # the bucket of each parameter
        self._hooks: dict[nn.Parameter, Any] = {}
        self._sums: list[tuple[Tensor, Any]] = []  # what was sent, by bucket
        self._fired: set[Tensor] = set()
        self._trained_before: set[Tensor] = set()  # in earlier backward passes of this step
        self._missing: list[nn.Parameter] = []  # those without a gradient on this process
        self._left: list[int] = []  # gradients that each bucket waits for
        self._is_open = self._has_observed = False
        self._own_flags = 0  # of this process
        self._received: int | None = None  # of all processes, if they came with the gradients
        self._message: tuple[Tensor, Any] | None = None  # the flags, if they don't go with the gradients
        self.overlaps = True

    def note(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Note which parameters are trained in a backward pass that is not the last before `finish`."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._trained_before.update(p for group in groups for p in group["params"] if p.requires_grad)

    def begin(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Let the exchange begin in the backward passes from now on: they are the last before `finish`.

        Such a backward pass raises RuntimeError if it reaches a parameter whose bucket was exchanged already.
        """
        self._divide(optimizers)
        self._left = [len(bucket) for bucket in self._buckets]
        self._fired.clear()
        self._is_open = True

    @torch.no_grad()
    def finish(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Wait until each gradient is the mean over the processes.

        If any process has a gradient of a parameter, those that lack it count as zero. If none has, there is none.
        """
        if not self._is_open:
            self._divide(optimizers)
        self._has_observed |= self._is_open
        self._is_open = False
        self._missing = [p for p in self._place if p.grad is None]
        for bucket in self._buckets[len(self._sums) :]:
            self._send(bucket)
        for bucket, (flat, work) in zip(self._buckets, self._sums, strict=True):
            work.wait()
            gradients = [_gradient(p) for p in bucket]
            means = _unflatten_dense_tensors(flat.mul_(1 / self._size), gradients)
            for parameter, gradient, mean in zip(bucket, gradients, means, strict=True):
                if mean.dtype is gradient.dtype and gradient.is_contiguous():
                    parameter.grad = mean  # a view, which saves a copy
                else:
                    gradient.copy_(mean)
        if self._missing:  # only then it matters what the others have, and only then this waits for the device
            used = dict(zip(self._place, self._tail().tolist(), strict=False))
            for parameter in self._missing:
                if not used[parameter]:
                    parameter.grad = None
            self._missing = []
        self._end()

    def forget(self) -> None:
        """Wait for what was sent, and drop it: the step is not taken."""
        self._is_open = False
        for _, work in self._sums:
            work.wait()
        self._end()

    def _tail(self) -> Tensor:
        """Return the end of the last bucket: who has a gradient, and the flags of the processes."""
        return self._sums[-1][0][_numel(self._buckets[-1]) :]

    def _end(self) -> None:
        """Read the flags that came with the gradients, and be ready for the next step."""
        if len(self._sums) == len(self._buckets) and self._carries_flags():
            self._received = _number(self._tail()[-self._num_flags :])
        self._sums.clear()
        self._trained_before.clear()

    # Flags ------------------------------------------------------------------------------------------------------------

    def set_flags(self, flags: int) -> None:
        """Send flags to the other processes, with the gradients of the next step.

        Parameters
        ----------
        flags
            A whole number whose bits are the flags.
        """
        self._own_flags, self._received = flags, None
        if not self._carries_flags():
            self._message = self._send_flags()

    def received_flags(self) -> int:
        """Return the flags that any process has set. It is called once per `set_flags`, after the next step."""
        if self._received is None:  # no gradient went with them
            bits, work = self._message or self._send_flags()
            work.wait()
            self._received = _number(bits)
        self._message = None
        return self._received

    def _bits(self) -> list[float]:
        """Return the flags of this process, as values whose sum over the processes is not 0 if any process has one."""
        return [float(self._own_flags >> place & 1) for place in range(self._num_flags)]

    def _carries_flags(self) -> bool:
        return bool(self._buckets) and self._buckets[-1][0].is_cpu

    def _send_flags(self) -> tuple[Tensor, Any]:
        bits = torch.tensor(self._bits())
        return bits, dist.all_reduce(bits, group=self._group, async_op=True)

    # Buckets ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the parameters alone: they may be trained further, by another run or without one."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()

    def _divide(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Divide the parameters into buckets of the same type and device, those whose gradients come first first."""
        parameters = [p for optimizer in optimizers for p in self._trained(optimizer)]
        if list(map(id, self._place)) == list(map(id, parameters)):
            return
        self._has_observed = False
        self._buckets, size, before = [], 0, None
        for parameter in parameters:
            kind = parameter.dtype, parameter.device
            size += parameter.numel()
            if kind != before or size > BUCKET:
                self._buckets.append([])
                size, before = parameter.numel(), kind
            self._buckets[-1].append(parameter)
        self._place = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        for parameter in [p for p in self._hooks if p not in self._place]:
            self._hooks.pop(parameter).remove()
        for parameter in parameters:
            if parameter not in self._hooks and parameter.requires_grad:
                self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(self._arrived)

    def _trained(self, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        """Return the parameters of an optimizer whose gradients are averaged here, the last first."""
        # Whether there is a gradient would not do: that may differ between the processes.
        before = self._trained_before
        found = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad or p in before]
        return [p for p in reversed(found) if not is_sharded(p)]  # FSDP averages those of its own

    def _arrived(self, parameter: Tensor) -> None:
        """Send the buckets that are complete, in their order, now that a parameter has its gradient."""
        if not self._is_open:
            return
        number = self._place[parameter]  # type: ignore[index]
        if parameter in self._fired:
            if number < len(self._sums):
                raise RuntimeError(
                    f"The gradient of a parameter of shape {tuple(parameter.shape)} changed after it was exchanged: a "
                    "second backward pass reached it in one step. Add the losses, and return their sum from "
                    "compute_loss()."
                )
            self.overlaps = False
            return
        self._fired.add(parameter)
        self._left[number] -= 1
        if self.overlaps and self._has_observed:
            while len(self._sums) < len(self._buckets) and not self._left[len(self._sums)]:
                self._send(self._buckets[len(self._sums)])

    @torch.no_grad()
    def _send(self, bucket: list[nn.Parameter]) -> None:
        """Begin to sum the gradients of a bucket. The last one also says which parameters have one, and the flags."""
        flags = []
        if len(self._sums) == len(self._buckets) - 1:
            missing = set(self._missing)
            flags = [float(p not in missing) for p in self._place] + self._bits()
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [_gradient(parameter) for parameter in bucket]
        flat = _flatten_dense_tensors([*gradients, gradients[0].new_tensor(flags)] if flags else gradients)
        if flat.dtype in (torch.float16, torch.bfloat16):
            flat = flat.float()
        self._sums.append((flat, dist.all_reduce(flat, group=self._group, async_op=True)))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _number(sums: Tensor) -> int:
    """Return the number with the bits that any process has."""
    return sum(1 << place for place, value in enumerate(sums.tolist()) if value)


def _numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
