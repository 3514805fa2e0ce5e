"""Multi-layer perceptrons: projectors and predictors."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence

from torch import nn


class MLP(nn.Sequential):
    """Linear layers with batch normalisation and an activation between them; the last layer is linear, without bias.

    Parameters
    ----------
    sizes
        Widths, from the input's to the output's; at least 2.
    activation
        Name of a module in `torch.nn`.
    batch_norm
        Normalise before each activation; the linear layer before it then has no bias, which would be taken off again.

    Raises
    ------
    ValueError
        Too few sizes, or no such activation.
    """

    def __init__(self, sizes: Sequence[int], activation: str = "ReLU", batch_norm: bool = True):
        if len(sizes) < 2:
            raise ValueError(f"sizes: {list(sizes)} needs at least an input's and an output's width.")
        if not isinstance(getattr(nn, activation, None), type):
            names = {name.lower(): name for name in dir(nn)}
            near = [names[name] for name in difflib.get_close_matches(activation.lower(), names)]
            raise ValueError(f"activation: torch.nn has no module '{activation}'; near are {near}.")
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(width_in, width_out, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width_out))
            layers.append(getattr(nn, activation)())
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
