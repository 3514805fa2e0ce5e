"""The loss of MoCo, with its queue of negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..runtime.distributed import all_gather
from .embeddings import at_least_fp32, check_pair, check_width, if_finite

if TYPE_CHECKING:
    from jaxtyping import Float


class MoCoLoss(nn.Module):
    r"""InfoNCE with a queue of negatives (He et al., "Momentum contrast for unsupervised visual representation
    learning", CVPR 2020, equation 1).

    All vectors have unit length: the query q of an image, its key k (the embedding of another view of the same image),
    and the negatives $n_1 … n_K$ in the queue (keys of earlier steps):

    $$ L = -\frac{1}{N} \sum_i \log \frac{\exp(q_i · k_i / τ)}{\exp(q_i · k_i / τ) + \sum_j \exp(q_i · n_j / τ)} $$

    The queue begins with random vectors. `update` adds the keys of all ranks to it, in the order of the ranks. If both
    views are targets, the keys of both enter this one queue, as in the authors' notebook for CIFAR-10
    (colab/moco_cifar10_demo.ipynb), whose loss is the sum of both directions instead of their mean. solo-learn has a
    queue for each view.

    Parameters
    ----------
    dim
        Width of the embeddings.
    queue_size
        The number K of negatives in the queue.
    temperature
        The temperature τ: 0.07 in MoCo, 0.2 in MoCo v2.

    Raises
    ------
    ValueError
        The temperature or the size of the queue is not above 0.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.losses import MoCoLoss
    >>> q, k = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))  # (batch, dim) each
    >>> loss = MoCoLoss(dim=16, queue_size=32)
    >>> loss(k, k) < loss(q, k)  # queries that equal their keys have the smaller loss
    tensor(True)
    >>> loss.update(k)  # once per step, after the loss
    >>> torch.equal(loss.queue[:8], torch.nn.functional.normalize(k))
    True
    """

    queue: Tensor

    def __init__(self, dim: int = 128, queue_size: int = 65536, temperature: float = 0.2):
        super().__init__()
        if temperature <= 0 or queue_size < 1:
            raise ValueError(f"temperature {temperature} and queue_size {queue_size} must be above 0.")
        self.temperature = temperature
        self.register_buffer("queue", nn.functional.normalize(torch.randn(queue_size, dim)))

    def forward(self, q: Float[Tensor, "batch dim"], k: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        """Return the loss of queries and their keys, computed in fp32 (fp64 for fp64 queries).

        No gradient reaches the keys.

        Raises
        ------
        ValueError
            The shapes differ or are not (batch, dim), or the width is not that of the queue.
        """
        check_pair(self, q, k)
        check_width(self, "dim", self.queue.shape[1], q)
        with torch.autocast(q.device.type, enabled=False):
            q, k = (nn.functional.normalize(at_least_fp32(z)) for z in (q, k.detach()))
            positives = (q * k).sum(1, keepdim=True)  # (batch, 1)
            scores = torch.cat([positives, q @ self.queue.to(q.dtype).T], dim=1)  # (batch, 1 + queue size)
            columns = scores.new_zeros(len(q), dtype=torch.long)  # (batch,): the positive is in column 0
            return nn.functional.cross_entropy(scores / self.temperature, columns)

    @torch.no_grad()
    def update(self, keys: Float[Tensor, "keys dim"]) -> None:
        """Add the keys of all ranks at the front of the queue, and drop as many of the oldest."""
        keys = nn.functional.normalize(all_gather(at_least_fp32(keys)))  # (world size × keys, dim)
        self.queue = if_finite(torch.cat([keys, self.queue])[: len(self.queue)], self.queue)
