"""Multi-layer perceptrons, for projectors and predictors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..exceptions import similar


class MLP(nn.Sequential):
    """Linear layers with batch normalisation and an activation between them. The last layer has no bias.

    It maps (batch, first size) to (batch, last size).

    Parameters
    ----------
    sizes
        Width of the input, widths of the hidden layers, width of the output.
    activation
        Name of a class in `torch.nn`, such as "GELU".
    batch_norm
        Whether to normalise before each activation. If so, the hidden layers have no bias, because the normalisation
        would remove it.

    Raises
    ------
    ValueError
        There are fewer than 2 sizes, or `torch.nn` has no such activation.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import MLP
    >>> projector = MLP([512, 2048, 128])
    >>> projector(torch.zeros(4, 512)).shape
    torch.Size([4, 128])
    """

    def __init__(self, sizes: Sequence[int], activation: str = "ReLU", batch_norm: bool = True):
        if len(sizes) < 2:
            raise ValueError(f"sizes: {list(sizes)} must have at least 2 widths: the input's and the output's.")
        if not isinstance(getattr(nn, activation, None), type):
            raise ValueError(f"activation: torch.nn has no '{activation}'.{similar(activation, dir(nn))}")
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(width_in, width_out, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width_out))
            layers.append(getattr(nn, activation)())
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))

    @property
    def layers(self) -> nn.Sequential:
        """The layers, for subclasses of early 2025. A change of it changes this network."""
        layers = nn.Sequential()
        layers._modules, layers.training = self._modules, self.training
        return layers

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `layers` replaces all layers."""
        if name != "layers":
            return super().__setattr__(name, value)
        new = list(value) if isinstance(value, nn.Sequential) else [value]
        self._modules.clear()
        self.extend(new)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the weights of early 2025 too, whose keys are `layers.0.weight` and so on."""
        old = f"{prefix}layers."
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[prefix + key.removeprefix(old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
