"""A small vision transformer that can leave out patches, and what predicts patches from others."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021) with fixed positions and
    without a class token: the representation is the mean of the patches, as in I-JEPA.

    Images of other sizes than `image_size` are fine where the patches fill them: positions are those of a grid that is
    stretched over the image.

    Parameters
    ----------
    image_size, patch_size
        In pixels.
    dim, depth, num_heads
        Width, blocks, and heads of each.
    mlp_ratio
        Width of a block's hidden layer, in multiples of `dim`.
    in_channels
        Of the images.
    num_classes
        Width of the output; None: the representation, (batch, dim).

    Raises
    ------
    ValueError
        The patches do not fill the image, or heads do not divide the width.
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int | None = None,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size: {patch_size} does not divide the image size of {image_size} pixels.")
        self.patch_size, self.grid, self.num_features = patch_size, (image_size // patch_size,) * 2, dim
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.blocks = _Blocks(dim, depth, num_heads, mlp_ratio)
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        """Return representations, or the last layer's output.

        Raises
        ------
        ValueError
            The patches do not fill the images.
        """
        return self.fc(self.forward_patches(images).mean(1))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks in place: they are all that masked methods have in common with `forward`."""
        self.blocks.compile(*args, **kwargs)

    def forward_patches(
        self,
        images: Float[Tensor, "batch channels height width"],
        places: Int[Tensor, "batch kept"] | None = None,
        is_real: Bool[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Return the outputs of the patches at `places`, as if there were no others; of all of them without.

        Where `is_real` is false, there is no patch, and the output means nothing.
        """
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size: {self.patch_size} does not divide the size of views of {height} × {width} pixels."
            )
        tokens = self.embed(images)
        grid = (tokens.shape[2], tokens.shape[3])
        tokens = tokens.flatten(2).transpose(1, 2)
        tokens = tokens + positions(grid, self.grid, tokens.shape[2], tokens.device, tokens.dtype)
        return self.blocks(tokens if places is None else take(tokens, places), is_real)

    def places_of(
        self, mask: Bool[Tensor, "batch patches"], images: Tensor
    ) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
        """Return where a mask of the images' patches is true, as the function of this name does.

        Raises
        ------
        ValueError
            It is a mask of other patches.
        """
        rows, columns = (size // self.patch_size for size in images.shape[2:])
        if mask.shape[1] != rows * columns:
            raise ValueError(
                f"patch_size: the masks have {mask.shape[1]} patches, and the views {rows} × {columns}: give the views "
                f"and the ViT one patch_size, now {self.patch_size} in the ViT."
            )
        return places_of(mask)


class PatchPredictor(nn.Module):
    """Predicts what is at some patches from the outputs of others: the decoder of MAE (He et al., "Masked autoencoders
    are scalable vision learners", CVPR 2022, section 3) and the predictor of I-JEPA (Assran et al., "Self-supervised
    learning from images with a joint-embedding predictive architecture", CVPR 2023, section 3).

    Parameters
    ----------
    grid
        Patches along height and width.
    dim, out_dim
        Width of the outputs it is given, and of what it predicts.
    hidden_dim, depth, num_heads, mlp_ratio
        As `ViT`'s.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int = 192,
        out_dim: int = 192,
        hidden_dim: int = 96,
        depth: int = 2,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
    ):
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.embed = nn.Linear(dim, hidden_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(hidden_dim))
        self.blocks = _Blocks(hidden_dim, depth, num_heads, mlp_ratio)
        self.head = nn.Linear(hidden_dim, out_dim)

    def forward(
        self,
        tokens: Float[Tensor, "batch kept dim"],
        places: Int[Tensor, "batch kept"],
        is_real: Bool[Tensor, "batch kept"],
        wanted: Int[Tensor, "batch wanted"],
        is_wanted: Bool[Tensor, "batch wanted"],
    ) -> Float[Tensor, "batch wanted out_dim"]:
        """Return what is predicted at the places `wanted`; `is_real` and `is_wanted` say which there are."""
        table = positions(self.grid, self.grid, len(self.mask_token), tokens.device, tokens.dtype)
        given = self.embed(tokens) + table[places]
        asked = self.mask_token + table[wanted]
        outputs = self.blocks(torch.cat([given, asked.to(given.dtype)], dim=1), torch.cat([is_real, is_wanted], dim=1))
        return self.head(outputs[:, given.shape[1] :])


class _Blocks(nn.Module):
    """Transformer blocks that normalise first, and a last normalisation."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        if dim % num_heads or dim % 4:
            raise ValueError(f"dim: {dim} must be a multiple of 4, and of the {num_heads} heads.")
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, num_heads, int(dim * mlp_ratio), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, is_real: Tensor | None = None) -> Tensor:
        # An image of nothing but fillings, whose outputs nobody is to look at, would have attention over nothing: NaN.
        is_padding = None if is_real is None else ~is_real & is_real.any(1, keepdim=True)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=is_padding)
        return self.norm(tokens)


def places_of(mask: Bool[Tensor, "batch patches"]) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """Return where each row of a mask is true, in order, filled up to the most of all rows; and what is no filling.

    On a GPU it waits for the device, which alone knows how many the most are.
    """
    counts = mask.sum(1)
    places = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    return places, torch.arange(places.shape[1], device=mask.device) < counts[:, None]


def take(tokens: Float[Tensor, "batch patches dim"], places: Int[Tensor, "batch kept"]) -> Tensor:
    """Return each row's tokens at its places, (batch, kept, dim)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def patchify(images: Float[Tensor, "batch channels height width"], patch_size: int) -> Tensor:
    """Return the values of each patch, (batch, patches, patch_size² × channels): row by row, channels last."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size * patch_size * channels)


@functools.lru_cache(maxsize=64)  # or each forward pass would compute and send them
def positions(
    grid: tuple[int, int],
    base: tuple[int, int],
    dim: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "patches dim"]:
    """Return sines and cosines of the places in a grid (Vaswani et al., "Attention is all you need", NeurIPS 2017,
    section 3.5), half of them for the row and half for the column; a grid other than `base` is stretched to it."""
    frequencies = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    halves = []
    for size, base_size in zip(grid, base, strict=True):
        place = (torch.arange(size, dtype=torch.float64) + 0.5) * base_size / size - 0.5
        angles = place[:, None] * frequencies
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = halves
    table = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], dim=2)
    return table.reshape(-1, dim).to(device, dtype)
