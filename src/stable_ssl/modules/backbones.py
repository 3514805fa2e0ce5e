"""Building a backbone from its name."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from .convmixer import ConvMixer
from .resnet9 import Resnet9

_OWN = {"resnet9": Resnet9, "convmixer": ConvMixer}
# The attributes in which torchvision's models keep their last layer.
_HEADS = ("fc", "classifier", "heads", "head")


def load_backbone(
    name: str,
    num_classes: int | None = None,
    weights: Any = None,
    low_resolution: bool = False,
    return_feature_dim: bool = False,
    **kwargs: Any,
) -> nn.Module | tuple[nn.Module, int]:
    """Return the network of this name, by default without its last layer.

    Parameters
    ----------
    name
        A model of torchvision such as `resnet18`, `resnet9`, `ConvMixer`, or `timm/<name>` for a model of timm.
    num_classes
        Width of a new last layer. None: the last layer becomes an Identity, so the output is the representation,
        (batch, dim).
    weights
        Pre-trained weights. For a model of torchvision, their name there, such as "DEFAULT". For a model of timm, true.
    low_resolution
        Adapt a ResNet to images of 64 pixels and less: its first convolution becomes 3 × 3 with stride 1, and its first
        max-pooling is removed (Chen et al., "A simple framework for contrastive learning", ICML 2020, appendix B.9).
        `resnet9` and `ConvMixer` suit such images without a change, and ignore it.
    return_feature_dim
        Return (network, width of the representation) instead of the network alone.
    **kwargs
        Arguments of the network's constructor.

    Raises
    ------
    ValueError
        There is no network of this name, it has no pre-trained weights, or it can't be adapted to low resolution.
    ImportError
        timm is not installed.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import load_backbone
    >>> backbone, dim = load_backbone("resnet18", low_resolution=True, return_feature_dim=True)
    >>> backbone(torch.zeros(2, 3, 32, 32)).shape, dim
    (torch.Size([2, 512]), 512)
    """
    own = _OWN.get(name.lower())
    if own is None:
        load = _load_timm if name.startswith("timm/") else _load_torchvision
        network, dim = load(name, num_classes, weights, low_resolution, **kwargs)
    elif weights is None:
        network = own(num_classes=num_classes, **kwargs)
        dim = network.num_features
    else:
        raise ValueError(f"weights: {name} has no pre-trained weights; leave weights out.")
    return (network, dim) if return_feature_dim else network


def _load_torchvision(
    name: str, num_classes: int | None, weights: Any, low_resolution: bool, **kwargs: Any
) -> tuple[nn.Module, int]:
    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, [*models.list_models(), "resnet9", "ConvMixer"], n=3)
        raise ValueError(f"name: there is no backbone '{name}'. Similar names: {near}.")
    network = models.get_model(name, weights=weights, **kwargs)
    if low_resolution:
        _adapt_stem(network, name)
    return network, _replace_head(network, name, num_classes)


def _load_timm(
    name: str, num_classes: int | None, weights: Any, low_resolution: bool, **kwargs: Any
) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"name: '{name}' needs `pip install 'stable-ssl[timm]'`.") from error
    if not timm.is_model(model := name.removeprefix("timm/")):
        near = [f"timm/{known}" for known in difflib.get_close_matches(model, timm.list_models(), n=3)]
        raise ValueError(f"name: timm has no '{model}'. Similar names: {near}.")
    network: Any = timm.create_model(model, pretrained=bool(weights), num_classes=num_classes or 0, **kwargs)
    if low_resolution:
        _adapt_stem(network, name)
    return network, network.num_features


def _adapt_stem(network: nn.Module, name: str) -> None:
    """Replace the first convolution and the first max-pooling of a ResNet, for images of low resolution."""
    first = getattr(network, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise ValueError(f"low_resolution: {name} can't be adapted; ResNets can, by this option.")
    network.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()


def _replace_head(network: nn.Module, name: str, num_classes: int | None) -> int:
    """Replace the last linear layer, and return the width of its input: the width of the representation."""
    parent, key = network, next((head for head in _HEADS if hasattr(network, head)), None)
    while key is not None and isinstance(getattr(parent, key), nn.Sequential):
        parent = getattr(parent, key)
        key = max((k for k, child in parent.named_children() if isinstance(child, nn.Linear)), default=None)
    last = None if key is None else getattr(parent, key)
    if not isinstance(last, nn.Linear):
        raise ValueError(f"name: '{name}' can't be a backbone, because its last layer is not an nn.Linear.")
    setattr(parent, str(key), nn.Identity() if num_classes is None else nn.Linear(last.in_features, num_classes))
    return last.in_features
