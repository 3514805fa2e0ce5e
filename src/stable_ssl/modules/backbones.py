"""Building a backbone from its name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..exceptions import ConfigError, nearest, similar
from ..signatures import check_call, parameters_of
from ..weights.loading import load_weights
from ..weights.resampling import adapt_channels
from ..weights.sources import parse_source
from .convmixer import ConvMixer
from .foreign_vit import VITS
from .of_run import backbone_of_run
from .resnet9 import Resnet9

log = logging.getLogger("stable_ssl")

_OWN = {"resnet9": Resnet9, "convmixer": ConvMixer}
# The attributes in which torchvision's models keep their last layer.
_HEADS = ("fc", "classifier", "heads", "head")

_STEM_IS_LOST = (
    "low_resolution: it replaces the first convolution, so that of the weights would be thrown away. Leave out "
    "weights, or set low_resolution to false and give larger images."
)


def load_backbone(
    name: str | None = None,
    num_classes: int | None = None,
    weights: Any = None,
    low_resolution: bool = False,
    return_feature_dim: bool = False,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module | tuple[nn.Module, int]:
    """Return the network of this name, by default without its last layer.

    Parameters
    ----------
    name
        A model of torchvision such as `resnet18`, `resnet9`, `ConvMixer`, or `timm/<name>` for a model of timm. None:
        the network of the run that `weights` names; of teacher and student, the one that the run is evaluated by.
    num_classes
        Width of a new last layer. None: an Identity, so the output is the representation, (batch, dim).
    weights
        Weights to begin with, as docs/weights.md lists them: a run's folder, a file, `timm/<name>`, or a dict
        `{source: …, strict: false}`. For a model of torchvision also their name there, such as "DEFAULT". For a model
        of timm also true. The log says what was found.
    low_resolution
        For images of 64 pixels and less: `conv1` becomes a 3 × 3 convolution with stride 1, and there is no `maxpool`
        (SimCLR, ICML 2020, appendix B.9). A network without `conv1` is left alone, with a warning.
    return_feature_dim
        Return (network, width of the representation).
    in_channels
        Number of channels of the images. Weights of another number are adapted.
    image_size
        Height and width of the images, or one number for a square. Plain vision transformers take other sizes, too.
    **kwargs
        Arguments of the network's constructor; of timm's and torchvision's vision transformers also `norm_eps`.

    Raises
    ------
    ValueError, ConfigError, ImportError, CheckpointError
        There is no such network, an argument does not suit it, timm is not installed, or the weights do not fit.

    Examples
    --------
    >>> import torch
    >>> backbone, dim = load_backbone("resnet18", low_resolution=True, return_feature_dim=True)
    >>> backbone(torch.zeros(2, 3, 32, 32)).shape, dim
    (torch.Size([2, 512]), 512)
    >>> backbone = load_backbone(weights="runs/photos").eval()  # doctest: +SKIP
    """
    if name is None:
        others = {"low_resolution": low_resolution, "in_channels": in_channels != 3, "image_size": image_size, **kwargs}
        return _load_run(weights, num_classes, return_feature_dim, others)
    is_library = _is_of_library(name, weights)
    source = None if is_library or weights is None or weights is False else parse_source(weights, "weights")
    if low_resolution and (is_library or (source and source.place.startswith("timm/"))):
        raise ConfigError(_STEM_IS_LOST)
    named = weights if is_library else None
    network, dim = _make(name, _Given(num_classes, named, low_resolution, in_channels, image_size), **kwargs)
    if source:
        load_weights(source, network, "backbone", "weights")
    return (network, dim) if return_feature_dim else network


def _load_run(
    weights: Any, num_classes: int | None, return_feature_dim: bool, others: dict[str, Any]
) -> nn.Module | tuple[nn.Module, int]:
    """Return the backbone of a run. `others` are arguments that only a network with a name has."""
    if weights is None or isinstance(weights, bool):
        raise ConfigError("name: it is missing. Name a network, or a run in weights.")
    if given := [key for key, value in others.items() if value]:
        raise ConfigError(f"{given[0]}: the network is the run's, so it can't be changed. Leave it out, or give name.")
    network, dim = backbone_of_run(parse_source(weights, "weights"), num_classes)
    if return_feature_dim and dim is None:
        raise ConfigError("return_feature_dim: the run's network does not say its width. Leave it out.")
    return (network, dim) if return_feature_dim and dim is not None else network


class _Given(NamedTuple):
    """Arguments of `load_backbone`; `weights` are those that the network's library has."""

    num_classes: int | None
    weights: Any
    low_resolution: bool
    in_channels: int
    image_size: int | Sequence[int] | None


def _make(name: str, given: _Given, **kwargs: Any) -> tuple[nn.Module, int]:
    """Return a network, with the weights that its library has of it if they are named, and its width."""
    if name.startswith("timm/"):
        return _load_timm(name, given, **kwargs)
    own = _OWN.get(name.lower())
    if own is None:
        return _load_torchvision(name, given, **kwargs)
    _refuse_options_of_vits(name, kwargs)
    problems: list[str] = []
    check_call(own, parameters_of(own) or {}, (), kwargs, "", problems, partial=True)
    if problems:
        raise ConfigError([problem.removeprefix(".") for problem in problems])
    network = own(num_classes=given.num_classes, in_channels=given.in_channels, **kwargs)
    if given.low_resolution and "widths" not in kwargs:
        _adapt_stem(network, name)
    return network, network.num_features


def _is_of_library(name: str, weights: Any) -> bool:
    """Return whether weights are those that the library of a network has of it, and no source.

    Raises
    ------
    ValueError, ConfigError
        The library has none of this name.
    """
    if name.startswith("timm/"):
        return weights is True
    if name.lower() in _OWN:
        if weights is True:
            raise ValueError(f"weights: {name} has no pre-trained weights; leave weights out, or name a file.")
        return False
    from torchvision import models

    if isinstance(weights, models.WeightsEnum):
        return True
    if not isinstance(weights, str | bool) or weights is False or name not in models.list_models():
        return False
    known = list(models.get_model_weights(name).__members__)
    if weights is True:
        raise ConfigError(f"weights: true is for timm. torchvision has names of weights; of {name} these: {known}.")
    if (short := weights.rpartition("_Weights.")[2]) in [*known, "DEFAULT"]:
        return True
    place = Path(parse_source(weights, "weights").place).expanduser()  # refuses a text such as "true"
    if len(place.parts) == 1 and not place.exists():
        raise ConfigError(
            f"weights: there is no file '{weights}', and of {name} torchvision has these weights: {known}."
            f"{nearest(short, known)}"
        )
    return False


def _refuse_options_of_vits(name: str, options: dict[str, Any]) -> None:
    """Raise a ConfigError if a network that is no vision transformer gets options of one, as recipes of MAE have."""
    if given := [key for key in ("class_token", "norm_eps") if key in options]:
        raise ConfigError(
            f"{name} has no {' and no '.join(given)}, because it is no vision transformer. Methods that hide patches, "
            f"such as MAE and I-JEPA, need a ViT. {VITS}"
        )


def _load_torchvision(name: str, given: _Given, **kwargs: Any) -> tuple[nn.Module, int]:
    from torchvision import models

    if name not in models.list_models():
        known = [*models.list_models(), "resnet9", "ConvMixer"]
        raise ValueError(f"name: there is no backbone '{name}'.{similar(name, known)}")
    if name.startswith("vit_"):
        network = _load_torchvision_vit(name, given.weights, given.image_size, **kwargs)
    else:
        _refuse_options_of_vits(name, kwargs)
        network = models.get_model(name, weights=given.weights, **kwargs)
    if given.in_channels != 3:
        _replace_stem(network, given.in_channels, is_pretrained=bool(given.weights))
    if given.low_resolution:
        _adapt_stem(network, name)
    return network, _replace_head(network, name, given.num_classes)


def _load_torchvision_vit(
    name: str,
    weights: Any,
    image_size: int | Sequence[int] | None,
    class_token: bool = True,
    norm_eps: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    from torchvision import models

    from .torchvision_vit import AnySizeVisionTransformer

    if not class_token:
        raise ConfigError(f"class_token: {name} of torchvision can't do without one. Leave class_token out.")
    size = image_size
    if isinstance(size, int):
        kwargs, size = kwargs if weights else {"image_size": size, **kwargs}, (size, size)
    network: nn.Module = models.get_model(name, weights=weights, **kwargs)
    AnySizeVisionTransformer.of(network, None if size is None else (size[0], size[1]), is_pretrained=bool(weights))
    _set_norm_eps(network, norm_eps)
    return network


def _load_timm(name: str, given: _Given, **kwargs: Any) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"name: '{name}' needs `pip install 'stable-ssl[timm]'`.") from error
    if not timm.is_model(model := name.removeprefix("timm/")):
        raise ValueError(f"name: timm has no '{model}'.{similar(model, timm.list_models(), 'timm/')}")
    if "norm_eps" in kwargs and not _is_vit_of_timm(model):
        _refuse_options_of_vits(name, kwargs)
    norm_eps = kwargs.pop("norm_eps", None)
    options = arguments_of_timm(model, given.num_classes, given.in_channels, given.image_size, **kwargs)
    network: Any = timm.create_model(model, pretrained=bool(given.weights), **options)
    _set_norm_eps(network, norm_eps)
    if given.low_resolution:
        _adapt_stem(network, name)
    return network, network.num_features


def _is_vit_of_timm(model: str) -> bool:
    import timm

    return timm.models.is_model_in_modules(model, ["vision_transformer", "deit"])  # type: ignore[no-any-return]


def arguments_of_timm(
    model: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Return the arguments that `timm.create_model` gets for a model; the parameters are those of `load_backbone`."""
    import timm

    if image_size is not None and getattr(timm.get_pretrained_cfg(model), "fixed_input_size", False):
        kwargs["img_size"] = image_size if isinstance(image_size, int) else tuple(image_size)
    if _is_vit_of_timm(model):
        kwargs = {"dynamic_img_size": True, "dynamic_img_pad": True, **kwargs}
    return {"num_classes": num_classes or 0, "in_chans": in_channels, **kwargs}


def _set_norm_eps(network: nn.Module, value: float | None) -> None:
    """Set the constant in the layer normalisations of a network. None: they stay as they are."""
    for part in network.modules() if value is not None else ():
        if isinstance(part, nn.LayerNorm):
            part.eps = float(value or 0)


def _replace_stem(network: nn.Module, in_channels: int, is_pretrained: bool) -> None:
    """Replace the first convolution by one for another number of channels, with adapted weights if it has some."""
    name, old = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    options: Any = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **options)
    network.set_submodule(name, new)
    if is_pretrained:
        new.load_state_dict({**old.state_dict(), "weight": adapt_channels(old.weight.detach(), in_channels)})
    if hasattr(network, "transform_input"):  # GoogLeNet and Inception change the ranges of three channels
        vars(network)["transform_input"] = False


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
