"""The order in which the samples of an epoch come, and which of them each process reads.

All of it follows from the arguments: the seed, the epoch, the sampler, and how many processes there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import RandomSampler, SequentialSampler

from ..runtime.seeding import Stream, derive_seed, preserved_generators, seed_generators


@dataclass(frozen=True)
class Share:
    """The part of all batches that one process reads.

    Parameters
    ----------
    rank, world_size
        The number of this process, from 0, and the number of processes.
    is_even
        Give every process as many batches as any other, and batches of the same size. Training needs that. Of the last
        samples of an epoch, up to `world_size` - 1 are then left out.
    """

    rank: int = 0
    world_size: int = 1
    is_even: bool = False

    def of_samples(self, samples: Sequence[int]) -> Sequence[int]:
        """Return this process's piece of the samples of one global batch; no sample is in two pieces."""
        usable = len(samples) // self.world_size * self.world_size if self.is_even else len(samples)
        first, end = (usable * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return samples[first:end]


def epoch_order(num_samples: int, *, shuffle: bool, sampler: Any, seed: int, epoch: int) -> list[int]:
    """Return the indices of all samples of an epoch, in order.

    Parameters
    ----------
    num_samples
        Size of the data set.
    shuffle
        Draw an order; without it, and without a sampler, the order is that of the data set.
    sampler
        Decides on the order instead, unless it is None.
    seed, epoch
        What a drawn order is a function of.
    """
    if sampler is not None:
        return draw(sampler, seed, epoch)
    if not shuffle:
        return list(range(num_samples))
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.ORDER, epoch))
    return torch.randperm(num_samples, generator=generator).tolist()


def draw(sampler: Any, seed: int, epoch: int) -> list[Any]:
    """Return what a sampler, or a batch sampler, of the user's gives for an epoch, as a function of (seed, epoch).

    The default generators are put back as they were.
    """
    with preserved_generators():
        seed_generators(seed, Stream.ORDER, epoch)
        parts: list[Any] = [sampler, getattr(sampler, "sampler", None)]
        for part in parts:
            if isinstance(getattr(part, "generator", None), torch.Generator):
                part.generator.manual_seed(derive_seed(seed, Stream.ORDER, epoch))
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        return list(sampler)


def cut(order: list[int], batch_size: int, drop_last: bool, share: Share) -> list[list[int]]:
    """Return the batches of one process, as sample indices.

    A global batch is the next `world_size` × `batch_size` samples of the order. Each process has a piece of it.
    """
    size = batch_size * share.world_size
    end = len(order) // size * size if drop_last else len(order)
    pieces = (list(share.of_samples(order[first : first + size])) for first in range(0, end, size))
    return [piece for piece in pieces if piece]


def count_cut(num_samples: int, batch_size: int, drop_last: bool, share: Share) -> int:
    """Return how many batches `cut` makes of so many samples."""
    whole, rest = divmod(num_samples, batch_size * share.world_size)
    return whole + (not drop_last and len(share.of_samples(range(rest))) > 0)


def deal(batches: list[Any], share: Share) -> list[list[int]]:
    """Return the batches of one process: of all that a batch sampler gave, every `world_size`-th.

    For even shares, the batches that are read at the same time are cut to the length of the shortest.
    """
    lists = [list(batch) for batch in batches]
    if not share.is_even:
        return lists[share.rank :: share.world_size]
    groups = [lists[at : at + share.world_size] for at in range(0, len(lists), share.world_size)]
    return [group[share.rank][: min(map(len, group))] for group in groups if len(group) == share.world_size]


def count_dealt(num_batches: int, share: Share) -> int:
    """Return how many of so many batches `deal` gives to one process."""
    # The first processes have those that are left over.
    left_over = 0 if share.is_even else share.world_size - 1 - share.rank
    return (num_batches + left_over) // share.world_size


def is_plain_order(sampler: Any, dataset: Any) -> bool | None:
    """Return whether a sampler of torch's shuffles a data set (True) or goes in order (False).

    None: it does anything else, such as leaving out samples.
    """
    if type(sampler) not in (SequentialSampler, RandomSampler):
        return None
    source = sampler.data_source
    if source is not dataset and len(source) != len(dataset):
        return None
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return True
    return None
