"""Vision transformers of this package, timm and torchvision in one form, from which other formats are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.vit import ViT, positions
from ..weights.keys import as_timm
from .writing import is_of

_KEYS = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)"
    r"|blocks\.\d+\.((norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma)"
)
# From the names of `nn.TransformerEncoderLayer` to those of timm.
_OF_LAYERS = {
    "self_attn.in_proj_": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "linear1.": "mlp.fc1.",
    "linear2.": "mlp.fc2.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
}


@dataclass(frozen=True)
class PlainViT:
    """A vision transformer with a table of positions, whose blocks normalise first.

    Attributes
    ----------
    grid
        Rows and columns of patches.
    patch_size, channels, dim, depth, num_heads, hidden_dim
        Sizes, as of `ViT`; hidden_dim is the width of the blocks' hidden layers.
    norm_eps
        The constant in the layer normalisations.
    pooling
        The representation: "class", the class token's output, or "mean", the mean over the patches.
    state
        Its values by timm's keys. There is a `cls_token` if it has one, and `ls1.gamma` if its blocks scale their
        outputs. `pos_embed` has a row for the class token, or only rows of patches.
    """

    grid: tuple[int, int]
    patch_size: int
    channels: int
    dim: int
    depth: int
    num_heads: int
    hidden_dim: int
    norm_eps: float
    pooling: str
    state: dict[str, Tensor]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    @property
    def has_class_token(self) -> bool:
        """Whether a class token goes through the blocks."""
        return "cls_token" in self.state

    @property
    def is_scaled(self) -> bool:
        """Whether the blocks scale their outputs, as those of DINOv2."""
        return "blocks.0.ls1.gamma" in self.state


def as_plain_vit(network: Any, size: tuple[int, int]) -> PlainViT | None:
    """Return a network in this form; None if it is no vision transformer, or has parts that the form lacks.

    Parameters
    ----------
    network
        The network.
    size
        Height and width of the images, in pixels. The positions of a `ViT` are computed for them.
    """
    if isinstance(network, ViT):
        layers: Any = network.blocks.layers
        grid = (size[0] // network.patch_size, size[1] // network.patch_size)
        num_heads = layers[0].self_attn.num_heads
        return _plain(grid, _of_own(network, grid), network.blocks.norm, num_heads, network.pooling)
    if is_of(network, "VisionTransformer", "torchvision.models.vision_transformer"):
        side = network.image_size // network.patch_size
        state = {as_timm(key): value for key, value in network.state_dict().items()}
        num_heads = network.encoder.layers[0].self_attention.num_heads
        return _plain(getattr(network, "grid", (side, side)), state, network.encoder.ln, num_heads, "class")
    if not is_of(network, "VisionTransformer", "timm.models.vision_transformer"):
        return None
    pooling = {"token": "class", "avg": "mean"}.get(network.global_pool, "")
    grid = tuple(network.patch_embed.grid_size)
    return _plain(grid, network.state_dict(), network.norm, network.blocks[0].attn.num_heads, pooling)


def _plain(grid: tuple[int, int], state: dict[str, Tensor], norm: Any, num_heads: int, pooling: str) -> PlainViT | None:
    """Return the form of a network; None if it has other keys, registers, or another way to pool."""
    is_plain = "pos_embed" in state and all(_KEYS.fullmatch(key) for key in state)
    if not pooling or not isinstance(norm, nn.LayerNorm) or not is_plain:
        return None
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    dim, channels, _, patch_size = state["patch_embed.proj.weight"].shape
    hidden = len(state["blocks.0.mlp.fc1.bias"])
    sizes = (grid, patch_size, channels, dim, depth, num_heads, hidden)
    return PlainViT(*sizes, norm.eps, pooling, state)


def _of_own(network: ViT, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return the values of a `ViT` by timm's keys."""
    state: dict[str, Any] = {
        "patch_embed.proj.weight": network.embed.weight,
        "patch_embed.proj.bias": network.embed.bias,
        "pos_embed": positions(grid, network.grid, network.num_features)[None],
    }
    if network.class_token is not None:
        state["cls_token"] = network.class_token[None, None]
    for key, value in network.blocks.state_dict().items():
        if key.startswith("layers."):
            _, number, name = key.split(".", 2)
            start = next(start for start in _OF_LAYERS if name.startswith(start))
            key = f"blocks.{number}.{_OF_LAYERS[start]}{name.removeprefix(start)}"
        state[key] = value
    return {key: value.detach() for key, value in state.items()}


def with_positions_of_all(vit: PlainViT) -> Tensor:
    """Return the table of positions with a row for the class token, if there is one: zeros if it has no position."""
    table, rows = vit.state["pos_embed"], vit.grid[0] * vit.grid[1]
    if not vit.has_class_token or table.shape[1] > rows:
        return table
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
