"""Linear heads on several features, trained together, and the accuracy of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class Head(NamedTuple):
    """One classifier of those that a protocol trains: the name of its features, its learning rate for 256 images per
    step, and its weight decay. None: the decay is that of the optimizer."""

    features: str
    rate: float
    decay: float | None = None

    @property
    def setting(self) -> dict[str, float]:
        """What tells the head from others on the same features."""
        return {"lr": self.rate, **({} if self.decay is None else {"weight_decay": self.decay})}

    def __str__(self) -> str:
        decay = "" if self.decay is None else f"_decay{self.decay:g}"
        return f"{self.features}_lr{self.rate:g}{decay}"


class Heads(nn.Module):
    """The same number of linear classifiers on each of several features.

    Parameters
    ----------
    dims
        Widths of the features by name.
    num_classes
        Number of classes.
    num_heads
        Number of classifiers on each of the features.
    norm
        Arguments of a `BatchNorm1d` before the classifiers. None: there is none.
    std
        Standard deviation of the first weights; the first biases are 0. None: both are as those of `nn.Linear`.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.evaluation.augmented.heads import Heads
    >>> heads = Heads({"class": 8, "patches": 8}, num_classes=5, num_heads=3)
    >>> heads({"class": torch.zeros(2, 8), "patches": torch.zeros(2, 8)}).shape
    torch.Size([2, 6, 5])
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        num_classes: int,
        num_heads: int = 1,
        norm: Mapping[str, Any] | None = None,
        std: float | None = None,
    ):
        super().__init__()
        made = nn.Identity if norm is None else nn.BatchNorm1d
        self.norms = nn.ModuleDict({name: made(dim, **(norm or {})) for name, dim in dims.items()})
        self.linears = nn.ModuleDict(
            {
                name: nn.ModuleList(linear_head(dim, num_classes, std) for _ in range(num_heads))
                for name, dim in dims.items()
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of features (batch, dim) by name, (batch, heads, classes).

        Heads come in the order of `dims`, those on the same features side by side: they are one matrix product.
        """
        return torch.cat([self._scores(name, features[name]) for name in self.linears], dim=1)

    def _scores(self, name: str, values: Tensor) -> Tensor:
        heads: Any = self.linears[name]
        weight = torch.cat([head.weight for head in heads])  # (heads × classes, dim)
        bias = torch.cat([head.bias for head in heads])
        scores = nn.functional.linear(self.norms[name](values), weight, bias)
        return scores.view(len(scores), len(heads), -1)


def linear_head(dim: int, num_classes: int, std: float | None) -> nn.Linear:
    """Return a classifier whose first weights have the standard deviation `std`, and whose first biases are 0.

    None: both are those of `nn.Linear`.
    """
    head = nn.Linear(dim, num_classes)
    if std is not None:
        nn.init.trunc_normal_(head.weight, std=std)
        nn.init.zeros_(head.bias)
    return head


class HeadAccuracy(Metric):
    """Share of the images whose class each head finds, by the head. A head whose scores are no numbers finds none.

    Parameters
    ----------
    heads
        The heads, in the order of the scores (batch, heads, classes).
    """

    full_state_update = False
    hits: Tensor
    total: Tensor

    def __init__(self, heads: Sequence[Head]):
        super().__init__()
        self.heads = [*heads]
        self.add_state("hits", torch.zeros(len(heads), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count the hits of a batch."""
        highest, found = scores.max(2)  # the highest is NaN if any is
        self.hits += ((found == labels[:, None]) & ~highest.isnan()).sum(0)
        self.total += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracy of each head."""
        shares = self.hits.cpu().double() / self.total.cpu()  # MPS has no float64
        return {str(head): share for head, share in zip(self.heads, shares, strict=True)}
