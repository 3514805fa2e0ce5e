"""What a loader keeps: images in the memory of the host or of the card, workers, and batches that are made ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...data import Loader
from ...data.in_memory import SHARE_OF_MEMORY, free_memory, is_constant, of_whole
from ..cards import GIB, Card
from .accounting import Accounting

PROCESS = GIB  # Python, torch and the libraries of CUDA
WORKER = GIB // 5  # what a worker process changes of the memory that it shares with its parent
_TRIED = 4  # images


def held_bytes(loader: Any, world_size: int = 1) -> int:
    """Return how much memory the images of a set take that the loader would hold in memory here. 0: it holds none.

    Parameters
    ----------
    loader
        The set's, after its set-up.
    world_size
        Number of processes, which share this machine's free memory.
    """
    if not isinstance(loader, Loader) or loader.views is None or not is_constant(loader.dataset):
        return 0
    wish = of_whole(loader.dataset, "in_memory")
    expected = getattr(loader.dataset, "num_bytes", 0) or math.prod(loader._find_shape()) * len(loader.dataset)
    limit = (1 if wish is True else SHARE_OF_MEMORY) * free_memory() / world_size
    return int(expected) if wish is not False and expected <= limit else 0


def views_on_card(loader: Any, held: int, card: Card | None) -> bool:
    """Return whether the run makes views of a set on its card.

    Parameters
    ----------
    loader
        The set's.
    held
        Bytes of its images that are held in memory.
    card
        The card. None: any that has memory enough.
    """
    if not isinstance(loader, Loader) or loader.views is None or loader.on == "cpu":
        return False
    fits = held > 0 and (card is None or held <= SHARE_OF_MEMORY * card.memory_bytes)
    return loader.on == "device" or fits


def bytes_per_image(loader: Loader) -> tuple[float, float]:
    """Return the memory of the views of an image that are made on a card, and what making them takes beside it.

    The latter is what operations take that are done one by one. On CUDA they are compiled together, and take less.
    """
    assert loader.views is not None
    images = torch.zeros((_TRIED, *loader._find_shape()), dtype=torch.uint8)
    account = Accounting()
    with torch.no_grad(), account:
        made = loader.views.make(images, 0, 0, list(range(_TRIED)))
    lasting = sum(tensor.nbytes for tensor in made)
    return lasting / _TRIED, (images.nbytes + sum(account.at_peak.values()) - lasting) / _TRIED


def host_parts(
    data: Mapping[str, Any], held: Mapping[str, int], batch_bytes: int, copy: Mapping[str, int]
) -> dict[str, int]:
    """Return the host memory that a process takes, by part.

    Parameters
    ----------
    data
        The loaders by name.
    held
        Bytes of the images that each of them holds in memory.
    batch_bytes
        Of a batch of `data.train`.
    copy
        Bytes of the copy of a checkpoint's tensors while it is written: those of the "checkpoint", which the first
        process copies, or of "part_of_checkpoint", if each process copies its shards.
    """
    workers = {name: 0 if held.get(name) else getattr(loader, "num_workers", 0) for name, loader in data.items()}
    train = data["train"]
    ahead = workers["train"] * (getattr(train, "_options", {}).get("prefetch_factor") or 2) or 2
    return {
        "process": PROCESS,
        "held_images": sum(held.values()),
        "workers": WORKER * sum(workers.values()),
        "batches": ahead * batch_bytes,
        **copy,
    }


def on_node(parts: Mapping[str, int], processes: int) -> int:
    """Return the host memory of several processes with the same parts. Only the first one copies checkpoints."""
    return processes * sum(parts.values()) - (processes - 1) * parts.get("checkpoint", 0)
