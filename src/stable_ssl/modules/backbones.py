"""Building a backbone from its name."""

from __future__ import annotations

import difflib
import logging
from typing import Any

from torch import nn

from .convmixer import ConvMixer
from .resnet9 import Resnet9

log = logging.getLogger("stable_ssl")

_OWN = {"resnet9": Resnet9, "convmixer": ConvMixer}
# The attributes in which torchvision's models keep their last layer.
_HEADS = ("fc", "classifier", "heads", "head")


def load_backbone(
    name: str,
    num_classes: int | None = None,
    weights: Any = None,
    low_resolution: bool = False,
    return_feature_dim: bool = False,
    in_channels: int = 3,
    image_size: int | None = None,
    **kwargs: Any,
) -> nn.Module | tuple[nn.Module, int]:
    """Return the network of this name, by default without its last layer.

    Parameters
    ----------
    name
        A model of torchvision such as `resnet18`, `resnet9`, `ConvMixer`, or `timm/<name>` for a model of timm.
    num_classes
        Width of a new last layer. None: an Identity, so the output is the representation, (batch, dim).
    weights
        Pre-trained weights. For a model of torchvision, their name there, such as "DEFAULT". For a model of timm, true.
    low_resolution
        Adapt a network to images of 64 pixels and less: its `conv1` becomes a 3 × 3 convolution with stride 1, and its
        `maxpool` is removed (SimCLR, ICML 2020, appendix B.9). One without `conv1` is left alone, with a warning.
    return_feature_dim
        Return (network, width of the representation) instead of the network alone.
    in_channels
        Number of channels of the images.
    image_size
        Height and width of the images, for models of timm that need to know. Its ViTs then take other sizes, too.
    **kwargs
        Arguments of the network's constructor.

    Raises
    ------
    ValueError
        There is no network of this name, or it has no pre-trained weights.
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
    if name.startswith("timm/"):
        network, dim = _load_timm(name, num_classes, weights, low_resolution, in_channels, image_size, **kwargs)
    elif own is None:
        network, dim = _load_torchvision(name, num_classes, weights, low_resolution, in_channels, **kwargs)
    elif not weights:
        network = own(num_classes=num_classes, in_channels=in_channels, **kwargs)
        dim = network.num_features
        if low_resolution and "widths" not in kwargs:
            _adapt_stem(network, name)
    else:
        raise ValueError(f"weights: {name} has no pre-trained weights; leave weights out.")
    return (network, dim) if return_feature_dim else network


def _load_torchvision(
    name: str, num_classes: int | None, weights: Any, low_resolution: bool, in_channels: int, **kwargs: Any
) -> tuple[nn.Module, int]:
    from torchvision import models

    if name not in models.list_models():
        near = difflib.get_close_matches(name, [*models.list_models(), "resnet9", "ConvMixer"], n=3)
        raise ValueError(f"name: there is no backbone '{name}'. Similar names: {near}.")
    network = models.get_model(name, weights=weights, **kwargs)
    if in_channels != 3:
        _replace_stem(network, in_channels)
    if low_resolution:
        _adapt_stem(network, name)
    return network, _replace_head(network, name, num_classes)


def _load_timm(
    name: str,
    num_classes: int | None,
    weights: Any,
    low_resolution: bool,
    in_channels: int,
    image_size: int | None,
    **kwargs: Any,
) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"name: '{name}' needs `pip install 'stable-ssl[timm]'`.") from error
    if not timm.is_model(model := name.removeprefix("timm/")):
        near = [f"timm/{known}" for known in difflib.get_close_matches(model, timm.list_models(), n=3)]
        raise ValueError(f"name: timm has no '{model}'. Similar names: {near}.")
    if image_size is not None and getattr(timm.get_pretrained_cfg(model), "fixed_input_size", False):
        kwargs["img_size"] = image_size
        if timm.models.is_model_in_modules(model, ["vision_transformer"]):
            kwargs = {"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs}
    options = {"pretrained": bool(weights), "num_classes": num_classes or 0, "in_chans": in_channels, **kwargs}
    network: Any = timm.create_model(model, **options)
    if low_resolution:
        _adapt_stem(network, name)
    return network, network.num_features


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for another number of channels."""
    name, first = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    options: Any = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding")}
    network.set_submodule(name, nn.Conv2d(in_channels, first.out_channels, bias=first.bias is not None, **options))


def _adapt_stem(network: nn.Module, name: str) -> None:
    """Replace `conv1` and the first max-pooling of a network, for images of low resolution."""
    stem = getattr(network, "conv1", None)
    layers = stem.modules() if isinstance(stem, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        log.warning("low_resolution: %s has no conv1 to adapt, as ResNets have; it stays as it is.", name)
        return
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
