"""What networks call their weights: heads, position embeddings, and vision transformers by the names of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Wrappers put these into keys: torch.compile, FSDP, and activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OWN_HEADS = re.compile(r"(fc|heads?|classifier|head_dist|aux\d|AuxLogits)\.")
_OTHER_HEADS = re.compile(
    r"(head_\w+|\w*classifier|\w*projector|proj(ection)?(_head|ection)?|\w*predictor|prototypes|decoder\w*|pooler|linear"
    r"|probe|last_layer|pre_logits|mask_token|queue\w*|logit_\w+|loss|criterion|optimizer|scheduler|lr_scheduler|scaler)"
    r"(\.|$)"
)
_POSITIONS = ("pos_embed", "pos_embedding", "position_embeddings")
_HARMLESS = ("num_batches_tracked", "_extra_state", "relative_position_index", "attn_mask")

# From the names in torchvision and transformers to those in timm, which DINO, DINOv2, MAE and I-JEPA have, too.
_TO_TIMM = [
    (re.compile(rf"(?<![^.]){pattern}"), name)
    for pattern, name in [
        (r"conv_proj\.", "patch_embed.proj."),
        (r"class_token$", "cls_token"),
        (r"encoder\.pos_embedding$", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"encoder\.ln\.", "norm."),
        (r"ln_([12])\.", r"norm\1."),
        (r"self_attention\.in_proj_", "attn.qkv."),
        (r"self_attention\.out_proj\.", "attn.proj."),
        (r"mlp\.(?:0|linear_1)\.", "mlp.fc1."),
        (r"mlp\.(?:3|linear_2)\.", "mlp.fc2."),
        (r"heads\.head\.", "head."),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"register_tokens$", "reg_token"),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"layernorm\.", "norm."),
        (r"attention\.attention\.qkv\.", "attn.qkv."),
        (r"attention\.output\.dense\.", "attn.proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"output\.dense\.", "mlp.fc2."),
        (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
    ]
]


def is_own_head(key: str) -> bool:
    """Return whether a key is of a network's last layer, as timm and torchvision name it."""
    return _OWN_HEADS.match(key) is not None


def is_head(key: str) -> bool:
    """Return whether a key is of a part that methods put on a network: a head, a projector, a decoder, a queue."""
    return is_own_head(key) or _OTHER_HEADS.match(key) is not None


def is_harmless(key: str) -> bool:
    """Return whether a network works as well without the value of a key."""
    return key.endswith(_HARMLESS)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the names of wrappers in their keys."""
    return {_WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}


def as_timm(key: str) -> str:
    """Return the name in timm of a weight of a vision transformer of torchvision or transformers.

    Examples
    --------
    >>> as_timm("encoder.layers.encoder_layer_3.mlp.0.weight")
    'blocks.3.mlp.fc1.weight'
    """
    for pattern, name in _TO_TIMM:
        key = pattern.sub(name, key)
    return key


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the layers for queries, keys and values, which transformers has one by one, in one."""
    result = dict(tensors)
    for key in [key for key in tensors if ".attention.attention.query." in key]:
        three = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in result for part in three):
            result[key.replace(".query.", ".qkv.")] = torch.cat([result.pop(part) for part in three])
    return result


def position_tables(module: nn.Module) -> dict[str, tuple[int, tuple[int, int]]]:
    """Return the keys of a network's tables of position embeddings, with their forms.

    Returns
    -------
    dict
        By key: how many rows are not of patches, such as that of a class token, and the grid of the patches.
    """
    tables = {}
    for key, table in module.named_parameters():
        if key.rpartition(".")[2] in _POSITIONS and table.ndim == 3 and len(table) == 1:
            grid = next((grid for owner in _owners(module, key) if (grid := _grid_of(owner))), None)
            if grid is not None and table.shape[1] >= grid[0] * grid[1]:
                tables[key] = table.shape[1] - grid[0] * grid[1], grid
    return tables


def _owners(module: nn.Module, key: str) -> list[nn.Module]:
    """Return the modules that a parameter is in, the innermost first."""
    parts = key.split(".")[:-1]
    return [module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1)]


def _grid_of(owner: nn.Module) -> tuple[int, int] | None:
    """Return the rows and columns of patches that a vision transformer was made for."""
    grid = getattr(owner, "grid", None) or getattr(getattr(owner, "patch_embed", None), "grid_size", None)
    size, patch = (getattr(owner, name, None) for name in ("image_size", "patch_size"))
    if grid is None and isinstance(size, int) and isinstance(patch, int):
        grid = (size // patch, size // patch)
    return (int(grid[0]), int(grid[1])) if isinstance(grid, tuple | list) and len(grid) == 2 else None
