"""Passing several views through one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


def forward_views(
    forward: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    network: nn.Module | None = None,
    join: bool = False,
) -> list[Tensor]:
    """Return a network's output for each view, (batch, dim) each.

    Views of the same shape go through the network together, which is faster (Caron et al., "Unsupervised learning of
    visual features by contrasting cluster assignments", NeurIPS 2020, section 3.3). If the network has batch
    normalisation, each view goes through it alone unless `join` is true: its statistics are then those of one view.

    Parameters
    ----------
    forward
        The network, or a function that calls it.
    views
        The views, (batch, …) each.
    network
        The network that `forward` calls. Needed only if `forward` is a function: without it, each view goes alone
        unless `join` is true.
    join
        Whether views of the same shape go together through batch normalisation too. Its statistics are then those of
        all of them.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import ViT, forward_views
    >>> views = [torch.zeros(4, 3, 32, 32)] * 2 + [torch.zeros(4, 3, 16, 16)] * 6  # 2 global and 6 local views
    >>> outputs = forward_views(ViT(dim=12, depth=1), views)  # two calls of the network
    >>> len(outputs), outputs[-1].shape
    (8, torch.Size([4, 12]))
    """
    network = forward if network is None and isinstance(forward, nn.Module) else network
    is_same_alone = network is not None and not has_batch_norm(network)
    if len(views) == 1 or not (join or is_same_alone):
        return [forward(view) for view in views]
    outputs: dict[int, Tensor] = {}
    for shape in dict.fromkeys(view.shape for view in views):
        places = [place for place, view in enumerate(views) if view.shape == shape]
        outputs.update(zip(places, forward(torch.cat([views[p] for p in places])).chunk(len(places)), strict=True))
    return [outputs[place] for place in range(len(views))]


_has_batch_norm: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has batch normalisation. The answer is kept, because finding it takes 85 µs (ViT-S)."""
    if network not in _has_batch_norm:
        _has_batch_norm[network] = any(isinstance(p, nn.modules.batchnorm._BatchNorm) for p in network.modules())
    return _has_batch_norm[network]
