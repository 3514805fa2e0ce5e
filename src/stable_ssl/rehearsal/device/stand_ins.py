"""What CUDA has and `meta` lacks, for the time of a rehearsal: autocast, generators, and the answers of `torch.cuda`.

None of them asks a mode of torch. So they are replaced, in a `with` block only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

OF_DEVICE = ("meta", "cuda")
_OF_TORCH: Any = torch.Generator


@contextmanager
def autocast_for_meta() -> Iterator[None]:
    """Let `torch.autocast` of `meta`, and of CUDA, be made in the block. It changes nothing.

    Losses switch autocast off for the device of their inputs, which torch refuses for `meta` as well.
    """
    original: Callable = torch.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **options: Any) -> None:
        is_ours = device_type in OF_DEVICE
        original(self, "cpu" if is_ours else device_type, *args, **options)
        self._enabled = self._enabled and not is_ours

    torch.autocast.__init__ = init  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


class _IsGenerator(type(_OF_TORCH)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return issubclass(type(instance), _OF_TORCH)


class _Generator(_OF_TORCH, metaclass=_IsGenerator):  # type: ignore[misc]
    """A generator of the CPU that stands for one of the device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _OF_TORCH.__new__(cls) if torch.device(device).type in OF_DEVICE else _OF_TORCH(device)


@contextmanager
def generators_for_meta() -> Iterator[None]:
    """Let `torch.Generator("meta")` be made in the block."""
    torch.Generator = _Generator  # type: ignore[misc]
    try:
        yield
    finally:
        torch.Generator = _OF_TORCH  # type: ignore[misc]


def is_of_host(generator: Any) -> bool:
    """Return whether something is a generator of the CPU, which stands for nothing else."""
    return type(generator) is _OF_TORCH


@contextmanager
def cuda_is_there(is_of_user: Callable[[], bool], waits: Callable[[], None]) -> Iterator[None]:
    """Let `torch.cuda` answer in the block as it does on a machine with one GPU.

    Torch and packages get the answers of this machine, since they would go on to use its driver.

    Parameters
    ----------
    is_of_user
        Says whether the code that asks is the user's.
    waits
        Is called if the user's code waits for the device.
    """

    def instead(original: Callable, answer: Callable[[], Any]) -> Callable:
        return lambda *args, **options: answer() if is_of_user() else original(*args, **options)

    answers: dict[str, Callable[[], Any]] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "synchronize": waits,
    }  # fmt: skip
    originals = {name: getattr(torch.cuda, name) for name in answers}
    for name, answer in answers.items():
        setattr(torch.cuda, name, instead(originals[name], answer))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)
