"""A folder that `transformers.AutoModel.from_pretrained` loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exceptions import ConfigError
from .backbone import Backbone, ImagesOfRun
from .card import write_card
from .plain_vit import PlainViT, as_plain_vit, with_positions_of_all
from .writing import Lines, is_of, save_tensors, unlike

LIBRARIES = {"transformers"}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # of PIL

# From the names of timm to those of files of transformers.
_OF_VIT = {
    r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"norm(?=\.)": "layernorm",
    r"blocks\.(\d+)": r"encoder.layer.\1",
    r"attn\.proj": "attention.output.dense",
}
_IN_VIT = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense"}
_IN_VIT["mlp.fc2"] = "output.dense"
_IN_DINOV2 = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
_OF_RESNET: list[tuple[str, Any]] = [
    (r"^conv1", "embedder.embedder.convolution"),
    (r"^bn1", "embedder.embedder.normalization"),
    (r"downsample\.0", "shortcut.convolution"),
    (r"downsample\.1", "shortcut.normalization"),
    (r"^layer(\d)\.(\d+)", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers.{found[2]}"),
    (r"(?<=\.)conv(\d)", lambda found: f"layer.{int(found[1]) - 1}.convolution"),
    (r"(?<=\.)bn(\d)", lambda found: f"layer.{int(found[1]) - 1}.normalization"),
]


def write(backbone: Backbone, folder: Path) -> Lines:
    """Write the configuration, the values, the preprocessing and a model card; return the lines that load them.

    Raises
    ------
    ConfigError
        transformers has no such network.
    """
    config, state, options, features = _in_transformers(backbone)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", **config}, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessing(backbone.images), indent=2))
    save_tensors(folder, state)

    def lines(place: Path) -> list[str]:
        return [
            "from transformers import AutoModel",
            f"model = AutoModel.from_pretrained({str(place)!r}{options}).eval()",
            f"features = model(images).{features}",
        ]

    write_card(backbone, folder, "transformers", lines)
    return lines


def _in_transformers(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor], str, str]:
    """Return the configuration of a network, its values, options of from_pretrained, and where its features are."""
    if vit := as_plain_vit(backbone.network, backbone.images.size):
        return _of_vit(vit)
    if is_of(backbone.network, "ResNet", "torchvision.models.resnet", "timm.models.resnet"):
        return _of_resnet(backbone)
    raise unlike(backbone, "transformers", "plain vision transformers, and ResNets of torchvision and timm")


def _of_vit(vit: PlainViT) -> tuple[dict[str, Any], dict[str, Tensor], str, str]:
    height, width = vit.size
    config: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "patch_size": vit.patch_size,
        "num_channels": vit.channels,
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": vit.norm_eps,
        "qkv_bias": True,
    }
    names, options = {**_OF_VIT, **_IN_VIT}, ""
    if vit.is_scaled:
        if not vit.has_class_token or vit.hidden_dim % vit.dim:
            raise ConfigError("export: Dinov2Model of transformers needs a class token; timm and onnx hold this one.")
        config |= {"model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": vit.hidden_dim // vit.dim}
        names = {**_OF_VIT, **_IN_DINOV2}
    else:
        kind = "ViT" if vit.has_class_token else "IJepa"  # IJepaModel is a ViT without a class token
        config |= {"model_type": kind.lower(), "architectures": [f"{kind}Model"], "intermediate_size": vit.hidden_dim}
        options = ", add_pooling_layer=False"
    state = {**vit.state, "pos_embed": with_positions_of_all(vit)}
    renamed = {_renamed(key, names): value for key, value in _apart(state).items()}
    if vit.is_scaled:
        renamed["embeddings.mask_token"] = torch.zeros(1, vit.dim)
    patches = "[:, 1:]" if vit.has_class_token else ""
    features = "last_hidden_state[:, 0]" if vit.pooling == "class" else f"last_hidden_state{patches}.mean(1)"
    return config, renamed, options, features


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values with the layers for queries, keys and values one by one."""
    result = {}
    for key, value in state.items():
        if ".attn.qkv." not in key:
            result[key] = value
            continue
        for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
            result[key.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
    return result


def _renamed(key: str, names: dict[str, str]) -> str:
    for pattern, name in names.items():
        key = re.sub(rf"(?<![^.]){pattern}", name, key)
    return key


def _of_resnet(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor], str, str]:
    network = backbone.network
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    blocks = [[*getattr(network, f"layer{number}")] for number in (1, 2, 3, 4)]
    is_deep = hasattr(blocks[0][0], "conv3")
    last = "conv3" if is_deep else "conv2"
    stem = state.get("conv1.weight")
    if stem is None or stem.shape[2:] != (7, 7):
        raise ConfigError(
            "export: ResNetModel of transformers has a stem of 7 × 7, and this network another one; torchvision and "
            "onnx hold networks for images of low resolution."
        )
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": stem.shape[1],
        "embedding_size": stem.shape[0],
        "hidden_sizes": [getattr(stage[0], last).out_channels for stage in blocks],
        "depths": [len(stage) for stage in blocks],
        "layer_type": "bottleneck" if is_deep else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    renamed = {}
    for key, value in state.items():
        for pattern, name in _OF_RESNET:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return config, renamed, "", "pooler_output.flatten(1)"


def _preprocessing(images: ImagesOfRun) -> dict[str, Any]:
    """Return what transformers' image processor does to an image, which is what the run's evaluation does."""
    height, width = images.size
    resize = images.resize
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": images.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]},
        "resample": _RESAMPLE[images.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": images.mean is not None,
        "image_mean": images.mean,
        "image_std": images.std,
    }
