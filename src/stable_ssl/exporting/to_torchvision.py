"""A network of torchvision: its values, and the lines that make it again by torchvision's constructor."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..exceptions import ConfigError
from .backbone import Backbone
from .writing import WEIGHTS, Lines, save_tensors, unlike

LIBRARIES = {"torchvision"}


def write(backbone: Backbone, folder: Path) -> Lines:
    """Write the values with torchvision's keys, and return the lines of Python that load them.

    Raises
    ------
    ConfigError
        It is no network of torchvision, or torchvision can't make it.
    """
    call, changes = made_by(backbone)
    save_tensors(folder, backbone.network.state_dict())
    return lambda place: [
        "import torch, torchvision",
        "from safetensors.torch import load_file",
        f"model = torchvision.models.{call}",
        *changes,
        f"model.load_state_dict(load_file({str(place / WEIGHTS)!r}))",
        "features = model.eval()(images)",
    ]


def made_by(backbone: Backbone) -> tuple[str, list[str]]:
    """Return the call of torchvision that makes a network, and the lines that change what it made.

    Raises
    ------
    ConfigError
        It is no network of torchvision, or torchvision can't make it.
    """
    from torchvision import models

    network = backbone.network
    cls = next((cls for cls in type(network).__mro__ if cls.__module__.startswith("torchvision.models.")), None)
    if cls is None:
        raise unlike(backbone, "torchvision", "networks that torchvision makes, such as resnet18 and vit_b_16")
    if cls is models.VisionTransformer:
        calls = [_call_of_vit(network)]
    else:
        calls = [f"{n}()" for n in models.list_models() if models.get_model_builder(n).__module__ == cls.__module__]
    found = [(call, changes) for call in calls if (changes := _changes(_made(call), network)) is not None]
    if not found:
        raise ConfigError(f"export: torchvision makes no {cls.__name__} with the layers of this one; onnx holds it.")
    return min(found, key=lambda pair: len(pair[1]))


def _call_of_vit(network: Any) -> str:
    """Return the call that makes a vision transformer of the same sizes."""
    first = network.encoder.layers[0]
    if network.encoder.pos_embedding.shape[1] != 1 + (network.image_size // network.patch_size) ** 2:
        raise ConfigError("export: a vision transformer of torchvision takes square images only; onnx holds this one.")
    sizes = {
        "image_size": network.image_size,
        "patch_size": network.patch_size,
        "num_layers": len(network.encoder.layers),
        "num_heads": first.self_attention.num_heads,
        "hidden_dim": network.hidden_dim,
        "mlp_dim": network.mlp_dim,
    }
    return f"VisionTransformer({', '.join(f'{name}={value}' for name, value in sizes.items())})"


def _made(call: str) -> nn.Module:
    """Return what a call of torchvision makes, without values."""
    from torchvision import models

    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return eval(f"models.{call}", {"models": models})  # type: ignore[no-any-return]


def _changes(plain: nn.Module, network: nn.Module) -> list[str] | None:
    """Return the lines that give a network the layers of another one; None if lines can't."""
    theirs, ours = (
        {name: part for name, part in m.named_modules() if not [*part.children()]} for m in (plain, network)
    )
    if theirs.keys() != ours.keys():
        return None
    changed = {name: part for name, part in ours.items() if repr(part) != repr(theirs[name])}
    if not all(hasattr(nn, type(part).__name__) for part in changed.values()):
        return None
    places = {re.sub(r"\.(\d+)", r"[\1]", name): part for name, part in changed.items()}
    return [f"model.{place} = torch.nn.{part!r}" for place, part in places.items()]
