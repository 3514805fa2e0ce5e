"""Vision transformers of timm and torchvision as methods that hide patches need them: with some of an image's patches.

The network stays the user's object, with its own keys. What it computes of all patches is what it computes by itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError
from ..weights.resampling import resample_positions
from .patches import check_masks, grid_of
from .vit import ViT, places_of, take

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

VITS = (
    "ViTs are: backbone=vit_tiny, vit_small, vit_base or vit_digits; backbone=timm/NAME with a plain vision "
    "transformer of timm, such as timm/vit_small_patch16_224; in Python a ViT(…), or torchvision's such as vit_b_16."
)
_OFFERED = ("grid", "patch_size", "places_of", "forward_tokens", "patches_of", "pool")


def as_vit(network: nn.Module, key: str = "module.backbone") -> Any:
    """Return a vision transformer as an object that offers what methods that hide patches call.

    These are the attributes `grid` and `patch_size`, and the methods `places_of`, `forward_tokens`, `patches_of` and
    `pool` of a `ViT`. A network that has them itself is returned as it is.

    Parameters
    ----------
    network
        A `ViT`, or a vision transformer of timm or torchvision.
    key
        Its key in the configuration, for the error message.

    Raises
    ------
    ConfigError
        It is another network.
    """
    if isinstance(network, ViT) or all(hasattr(network, name) for name in _OFFERED):
        return network
    if _is_of_timm(network):
        return _OfTimm(network)
    if _is_of_torchvision(network):
        return _OfTorchvision(network)
    name = type(network).__name__
    raise ConfigError(f"{key}: the method hides patches, so it needs a ViT, which {name} is not. {VITS}")


def _is_of_timm(network: Any) -> bool:
    """Return whether a network is timm's plain vision transformer with square patches. timm need not be installed."""
    cls = getattr(sys.modules.get("timm.models.vision_transformer"), "VisionTransformer", None)
    if cls is None or not isinstance(network, cls):
        return False
    is_plain = all(getattr(type(network), name) is getattr(cls, name) for name in ("forward_features", "_pos_embed"))
    proj, patch = getattr(network.patch_embed, "proj", None), network.patch_embed.patch_size
    is_cut = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == tuple(patch) and patch[0] == patch[1]
    return is_plain and is_cut


def _is_of_torchvision(network: nn.Module) -> bool:
    cls = getattr(sys.modules.get("torchvision.models.vision_transformer"), "VisionTransformer", None)
    return cls is not None and isinstance(network, cls)


class _Adapter:
    """What both libraries have in common.

    Parameters
    ----------
    network
        The vision transformer.
    grid
        The rows and columns of patches that it was made for.
    patch_size
        Height and width of a patch, in pixels.
    num_others
        Number of tokens before the patches: a class token and registers.
    """

    def __init__(self, network: Any, grid: tuple[int, int], patch_size: int, num_others: int):
        self.network, self.grid, self.patch_size, self.num_others = network, grid, patch_size, num_others

    def places_of(
        self, mask: Bool[Tensor, "batch patches"], images: Tensor
    ) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
        """See `ViT.places_of`."""
        check_masks(mask, images, self.patch_size)
        return places_of(mask)

    def patches_of(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch kept dim"]:
        """Return the outputs of `forward_tokens` without those of the class token and of registers."""
        return tokens[:, self.num_others :]

    def forward_tokens(
        self,
        images: Float[Tensor, "batch channels height width"],
        places: Int[Tensor, "batch kept"] | None = None,
        is_real: Bool[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """See `ViT.forward_tokens`."""
        patches, others = self._embed(images, grid_of(images, self.patch_size))
        patches = patches if places is None else take(patches, places)  # (batch, kept, dim)
        others = [token.to(patches.dtype).expand(patches.shape[0], -1, -1) for token in others]
        is_hidden = None
        if is_real is not None:
            is_real = nn.functional.pad(is_real, (self.num_others, 0), value=True)
            # If all tokens of an image are padding, none is hidden: attention over nothing would give NaN.
            is_hidden = ~is_real & is_real.any(1, keepdim=True)  # (batch, tokens)
        return self._transform(torch.cat([*others, patches], dim=1), is_hidden)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Return the patches (batch, patches, dim) and the other tokens (1, number, dim), with their positions."""
        raise NotImplementedError

    def _transform(self, tokens: Tensor, is_hidden: Tensor | None) -> Tensor:
        """Return the outputs of the transformer's blocks. No token attends to hidden ones."""
        raise NotImplementedError

    def _positions(self, table: Tensor, num_others: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return position embeddings of a grid of patches, and of the other tokens."""
        return resample_positions(table[:, num_others:], self.grid, grid), table[:, :num_others]


class _OfTimm(_Adapter):
    """Adapts timm's VisionTransformer."""

    def __init__(self, network: Any):
        embed = network.patch_embed
        super().__init__(network, tuple(embed.grid_size), embed.patch_size[0], network.num_prefix_tokens)

    def pool(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Return the representations from the outputs of `forward_tokens`. `is_real` is false at padded patches."""
        network = self.network
        if is_real is None or network.global_pool != "avg":
            return network.fc_norm(network.pool(tokens))  # type: ignore[no-any-return]
        patches = self.patches_of(tokens) * is_real[..., None]
        return network.fc_norm(patches.sum(1) / is_real.sum(1, keepdim=True).clamp(min=1))  # type: ignore[no-any-return]

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        network = self.network
        patches = network.patch_embed.norm(network.patch_embed.proj(images).flatten(2).transpose(1, 2))
        others = [token for token in (network.cls_token, network.reg_token) if token is not None]
        if network.pos_embed is None:
            return patches, others
        num_others = 0 if network.no_embed_class else self.num_others
        table, table_of_others = self._positions(network.pos_embed, num_others, grid)
        if num_others:
            others = [torch.cat(others, dim=1) + table_of_others]
        return patches + table, others

    def _transform(self, tokens: Tensor, is_hidden: Tensor | None) -> Tensor:
        network = self.network
        tokens = network.norm_pre(network.pos_drop(tokens))
        options = {} if is_hidden is None else {"attn_mask": ~is_hidden[:, None, None]}
        for block in network.blocks:
            tokens = block(tokens, **options)
        return network.norm(tokens)  # type: ignore[no-any-return]


class _OfTorchvision(_Adapter):
    """Adapts torchvision's VisionTransformer."""

    def __init__(self, network: Any):
        side = network.image_size // network.patch_size
        super().__init__(network, getattr(network, "grid", (side, side)), network.patch_size, 1)

    def pool(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Return the representations from the outputs of `forward_tokens`: those of the class token."""
        return tokens[:, 0]

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        patches = self.network.conv_proj(images).flatten(2).transpose(1, 2)
        table, table_of_others = self._positions(self.network.encoder.pos_embedding, 1, grid)
        return patches + table, [self.network.class_token + table_of_others]

    def _transform(self, tokens: Tensor, is_hidden: Tensor | None) -> Tensor:
        encoder = self.network.encoder
        tokens = encoder.dropout(tokens)
        for block in encoder.layers:
            x = block.ln_1(tokens)
            x, _ = block.self_attention(x, x, x, key_padding_mask=is_hidden, need_weights=False)
            tokens = tokens + block.dropout(x)
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return encoder.ln(tokens)  # type: ignore[no-any-return]
