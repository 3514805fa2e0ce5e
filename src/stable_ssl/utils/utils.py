"""Names of early 2025 whose objects are in other modules now."""

from __future__ import annotations

import torch

from .exceptions import BreakAllEpochs, BreakEpoch, BreakStep, NanError

__all__ = ["BreakAllEpochs", "BreakEpoch", "BreakStep", "NanError", "str_to_dtype"]


def str_to_dtype(name: str) -> torch.dtype:
    """Return a torch dtype by its name, "float32" or "torch.float32"."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is not the name of a torch dtype.")
    return dtype
