"""A folder that `timm.create_model("local-dir:…")` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..exceptions import ConfigError
from ..modules.backbones import arguments_of_timm
from .backbone import Backbone, ImagesOfRun
from .card import write_card
from .plain_vit import PlainViT, as_plain_vit
from .to_torchvision import made_by
from .writing import Lines, is_of, save_tensors, unlike

LIBRARIES = {"timm"}
# timm's constructors take no constant of layer normalisation, so it is that of the model.
_VITS = {1e-6: "vit_tiny_patch16_224", 1e-5: "vit_base_patch16_clip_224"}


def write(backbone: Backbone, folder: Path) -> Lines:
    """Write `config.json`, the values and a model card, and return the lines of Python that load them.

    Raises
    ------
    ConfigError
        timm has no such network.
    """
    architecture, arguments, state, ends = _in_timm(backbone)
    images = backbone.images
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": getattr(backbone.network, "num_features", None),
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {
            **ends,
            "input_size": [images.channels, *images.size],
            "fixed_input_size": "img_size" in arguments and not arguments.get("dynamic_img_size"),
            "interpolation": images.interpolation,
            **_cropping(images),
            "mean": images.mean or [0.0] * images.channels,
            "std": images.std or [1.0] * images.channels,
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}, indent=2))
    save_tensors(folder, state)

    def lines(place: Path) -> list[str]:
        return [
            "import timm",
            f"model = timm.create_model({f'local-dir:{place}'!r}, pretrained=True).eval()",
            "features = model(images)",
        ]

    write_card(backbone, folder, "timm", lines)
    return lines


def _cropping(images: ImagesOfRun) -> dict[str, Any]:
    """Return how timm resizes and cuts images, so that it is what the run's evaluation does."""
    if isinstance(images.resize, int):
        return {"crop_pct": min(images.size) / images.resize, "crop_mode": "center"}
    return {"crop_pct": min(images.size) / min(images.resize), "crop_mode": "squash"}


def _in_timm(backbone: Backbone) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Return the name of a network in timm, its arguments, its values, and the names of its first and last layer."""
    network = backbone.network
    if "architecture" in getattr(network, "pretrained_cfg", {}):
        ends = {key: network.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
        return network.pretrained_cfg["architecture"], _arguments(backbone), network.state_dict(), ends
    if vit := as_plain_vit(network, backbone.images.size):
        return _of_vit(vit)
    if is_of(network, "ResNet", "torchvision.models.resnet"):
        call, changes = made_by(backbone)
        if any(not line.startswith(("model.fc ", "model.conv1 ")) for line in changes):
            raise ConfigError(
                f"export: timm's {call[:-2]} has another stem than this network, which is made for images of low "
                "resolution; torchvision and onnx hold it."
            )
        arguments = {"in_chans": backbone.images.channels}
        return call[:-2], arguments, network.state_dict(), {"first_conv": "conv1", "classifier": "fc"}
    raise unlike(backbone, "timm", "networks of timm, and ResNets and plain vision transformers of others")


def _arguments(backbone: Backbone) -> dict[str, Any]:
    """Return the arguments with which timm made a network, as the run's configuration has them."""
    node = {key: value for key, value in backbone.found.node.items() if value is not None and not key.startswith("_")}
    if backbone.found.target != "load_backbone":
        return {key: value for key, value in node.items() if key not in ("model_name", "pretrained")}
    name = node.pop("name").removeprefix("timm/")
    left_out = ("weights", "low_resolution", "return_feature_dim", "num_classes", "norm_eps")
    return arguments_of_timm(name, **{key: value for key, value in node.items() if key not in left_out})


def _of_vit(vit: PlainViT) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    if vit.norm_eps not in _VITS:
        raise ConfigError(
            f"export: timm has no vision transformer with norm_eps={vit.norm_eps}; huggingface and onnx hold it."
        )
    rows = vit.state["pos_embed"].shape[1]
    arguments = {
        "img_size": vit.size,
        "patch_size": vit.patch_size,
        "in_chans": vit.channels,
        "embed_dim": vit.dim,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.hidden_dim / vit.dim,
        "class_token": vit.has_class_token,
        "no_embed_class": rows == vit.grid[0] * vit.grid[1],
        "global_pool": {"class": "token", "mean": "avg"}[vit.pooling],
        "fc_norm": False,
        "pre_norm": False,
        "dynamic_img_size": True,
    }
    return _VITS[vit.norm_eps], arguments, vit.state, {"first_conv": "patch_embed.proj", "classifier": "head"}
