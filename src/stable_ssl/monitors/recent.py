"""The newest embeddings, which some monitors compute from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Recent:
    """Holds the newest rows of the tensors that it is given, on their device.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.monitors.recent import Recent
    >>> recent = Recent()
    >>> for number in range(4):
    ...     recent.add(torch.full((2, 1), number), limit=3)
    >>> recent.newest(limit=3).flatten()
    tensor([2, 3, 3])
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def add(self, rows: Tensor, limit: int) -> None:
        """Add rows, (rows, …), and drop old tensors if the later ones have `limit` rows already."""
        self._held.append(rows.detach()[-limit:])
        while sum(len(held) for held in self._held[1:]) >= limit:
            del self._held[0]

    def add_batch(self, rows: Tensor, limit: int) -> None:
        """Add rows, (rows, …), and drop the tensors before the newest `limit` ones."""
        self._held = [*self._held, rows.detach()][-limit:]

    def newest(self, limit: int | None = None) -> Tensor | None:
        """Return the newest rows, at most `limit` of those that are held, or None if there are none."""
        if not self._held:
            return None
        device = self._held[-1].device  # after a resume, older rows are in host memory
        return torch.cat([held.to(device) for held in self._held])[-(limit or 0) :]

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for a checkpoint."""
        return {"held": list(self._held)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore rows from a checkpoint."""
        self._held = list(state["held"])
