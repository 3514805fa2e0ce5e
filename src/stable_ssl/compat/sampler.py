"""The sampler that early 2025 used with several processes. A `Loader` shares samples out itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler


class DistributedSamplerWrapper(DistributedSampler):
    """Gives each process its share of what another sampler draws, for a loop of one's own.

    Parameters
    ----------
    sampler
        The other sampler. It is drawn anew in each epoch, and must draw the same on all processes.
    *args, **kwargs
        The other arguments of torch's `DistributedSampler`.
    """

    def __init__(self, sampler: Any, *args: Any, **kwargs: Any):
        super().__init__(sampler, *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        """Return the samples of this process."""
        drawn = list(self.dataset)  # type: ignore[call-overload]
        return iter([drawn[index] for index in super().__iter__()])
