"""Several views through one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


def forward_views(
    forward: Callable[[Tensor], Tensor], views: Sequence[Tensor], network: nn.Module | None = None
) -> list[Tensor]:
    """Return a network's output for each view, (batch, dim).

    Views of one shape go through it together (Caron et al., "Unsupervised learning of visual features by contrasting
    cluster assignments", NeurIPS 2020, section 3.3), unless it has batch normalisation, whose statistics are to be
    those of one view.

    Parameters
    ----------
    forward
        What to call.
    views
        (batch, …) each.
    network
        What `forward` runs, where that is not a module itself.
    """
    network = forward if network is None and isinstance(forward, nn.Module) else network
    if len(views) == 1 or network is None or has_batch_norm(network):
        return [forward(view) for view in views]
    outputs: dict[int, Tensor] = {}
    for shape in dict.fromkeys(view.shape for view in views):
        places = [place for place, view in enumerate(views) if view.shape == shape]
        outputs.update(zip(places, forward(torch.cat([views[p] for p in places])).chunk(len(places)), strict=True))
    return [outputs[place] for place in range(len(views))]


_has_batch_norm: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def has_batch_norm(network: nn.Module) -> bool:
    """Say whether a network normalises by statistics of the batch. Looked up once: it takes 85 µs for a ViT-S."""
    if network not in _has_batch_norm:
        _has_batch_norm[network] = any(isinstance(p, nn.modules.batchnorm._BatchNorm) for p in network.modules())
    return _has_batch_norm[network]
