"""A small vision transformer that can leave out patches, and a transformer that predicts patches from others.

Both work on some patches of each image. `places` holds the numbers of these patches, counted row by row from the upper
left one. Images may have different numbers of them, so shorter rows are padded, and `is_real` is False at the padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .patches import check_masks, grid_of
from .patches import patchify as patchify

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021) with fixed position
    embeddings. The representation is the mean over the patches, as in I-JEPA, or a class token's output, as in MAE.

    Images of another size than `image_size` are accepted if `patch_size` divides their height and width. The grid of
    positions is then stretched over the image.

    Parameters
    ----------
    image_size
        Height and width of the images, in pixels, or one number for a square.
    patch_size
        Height and width of a patch, in pixels.
    dim
        Width of the tokens.
    depth
        Number of blocks.
    num_heads
        Number of attention heads per block.
    mlp_ratio
        Width of each block's hidden layer, in multiples of `dim`.
    in_channels
        Number of channels of the images.
    num_classes
        Width of the output. None: the output is the representation, (batch, dim).
    norm_eps
        The constant in the layer normalisations. timm, MAE and I-JEPA have 1e-6.
    class_token
        Whether a class token goes through the blocks before the patches. It has no position.
    pooling
        The representation: "class", the output of the class token, or "mean", the mean over the patches. None: "class"
        if there is a class token.

    Raises
    ------
    ValueError
        `patch_size` does not divide `image_size`, `dim` is not a multiple of 4 and of `num_heads`, or `pooling` needs a
        class token that is not there, or is unknown.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import ViT
    >>> vit = ViT(image_size=32, patch_size=8, dim=48)
    >>> vit(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 48])
    >>> vit.forward_patches(torch.zeros(2, 3, 32, 32)).shape  # 4 × 4 patches
    torch.Size([2, 16, 48])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 32,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        num_classes: int | None = None,
        norm_eps: float = 1e-5,
        class_token: bool = False,
        pooling: str | None = None,
    ):
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size: {patch_size} does not divide the image size of {image_size} pixels.")
        self.pooling = pooling or ("class" if class_token else "mean")
        if self.pooling not in ("class", "mean") or (self.pooling == "class" and not class_token):
            raise ValueError(f"pooling: {self.pooling!r} must be 'mean', or 'class' together with class_token.")
        self.patch_size, self.num_features = patch_size, dim
        self.grid = (height // patch_size, width // patch_size)
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.blocks = _Blocks(dim, depth, num_heads, mlp_ratio, norm_eps)
        self.fc: nn.Module = nn.Identity() if num_classes is None else nn.Linear(dim, num_classes)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))
        self.class_token = nn.Parameter(0.02 * torch.randn(dim)) if class_token else None

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        """Return the representations (batch, dim), or the output of the last layer (batch, num_classes).

        Raises
        ------
        ValueError
            `patch_size` does not divide the height and width of the images.
        """
        outputs: Tensor = self.fc(self.pool(self.forward_tokens(images)))
        return outputs

    def pool(
        self, tokens: Float[Tensor, "batch tokens dim"], is_real: Bool[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return the representations from the outputs of `forward_tokens`. `is_real` is false at padded patches."""
        if self.pooling == "class":
            return tokens[:, 0]
        patches = self.patches_of(tokens)
        if is_real is None:
            return patches.mean(1)
        return (patches * is_real[..., None]).sum(1) / is_real.sum(1, keepdim=True).clamp(min=1)

    def patches_of(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch kept dim"]:
        """Return the outputs of `forward_tokens` without that of the class token."""
        return tokens if self.class_token is None else tokens[:, 1:]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks in place, with the arguments of `torch.compile`.

        `forward` itself is not compiled, because masked methods call `forward_tokens` instead.
        """
        self.blocks.compile(*args, **kwargs)

    def forward_patches(
        self,
        images: Float[Tensor, "batch channels height width"],
        places: Int[Tensor, "batch kept"] | None = None,
        is_real: Bool[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch kept dim"]:
        """Return the outputs of some patches, as if the image had no others. See `forward_tokens` for the arguments."""
        return self.patches_of(self.forward_tokens(images, places, is_real))

    def forward_tokens(
        self,
        images: Float[Tensor, "batch channels height width"],
        places: Int[Tensor, "batch kept"] | None = None,
        is_real: Bool[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the outputs of the class token, if there is one, and of some patches, as if there were no others.

        Parameters
        ----------
        images
            The images.
        places
            The numbers of the patches. None: all patches.
        is_real
            False at the padding of `places`; the output there has no meaning. None: there is no padding.

        Raises
        ------
        ValueError
            `patch_size` does not divide the height and width of the images.
        """
        grid = grid_of(images, self.patch_size)
        tokens = self.embed(images)  # (batch, dim, rows, columns)
        tokens = tokens.flatten(2).transpose(1, 2)  # (batch, patches, dim)
        tokens = tokens + _table(grid, self.grid, tokens.shape[2], tokens)
        tokens = tokens if places is None else take(tokens, places)  # (batch, kept, dim)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1), tokens], dim=1)
            is_real = None if is_real is None else nn.functional.pad(is_real, (1, 0), value=True)
        outputs: Tensor = self.blocks(tokens, is_real)
        return outputs  # (batch, [1 +] kept, dim)

    def places_of(
        self, mask: Bool[Tensor, "batch patches"], images: Tensor
    ) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
        """Return the numbers of the patches at which a mask is true, and False at the padding.

        This is the function `places_of`, after a check that the mask suits the images.

        Raises
        ------
        ValueError
            The mask has another number of patches than the images.
        """
        check_masks(mask, images, self.patch_size)
        return places_of(mask)


class PatchPredictor(nn.Module):
    """A transformer that predicts some patches from an encoder's outputs at others.

    It is the decoder of MAE (He et al., "Masked autoencoders are scalable vision learners", CVPR 2022, section 3) and
    the predictor of I-JEPA (Assran et al., "Self-supervised learning from images with a joint-embedding predictive
    architecture", CVPR 2023, section 3).

    Parameters
    ----------
    grid
        Number of patches along the height and along the width of an image.
    dim
        Width of the encoder's outputs.
    out_dim
        Width of the predictions: for MAE the values of a patch, for I-JEPA the width of the target encoder.
    hidden_dim
        Width of the tokens inside this transformer.
    depth, num_heads, mlp_ratio, norm_eps
        As for `ViT`.

    Raises
    ------
    ValueError
        `hidden_dim` is not a multiple of 4 and of `num_heads`.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.modules import PatchPredictor
    >>> decoder = PatchPredictor(grid=(4, 4), dim=48, out_dim=192)
    >>> kept, hidden = torch.tensor([[0, 5, 6, 9]]), torch.tensor([[1, 2]])  # numbers of patches
    >>> is_real, is_wanted = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)  # no padding
    >>> decoder(torch.zeros(1, 4, 48), kept, is_real, hidden, is_wanted).shape
    torch.Size([1, 2, 192])
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
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.embed = nn.Linear(dim, hidden_dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(hidden_dim))
        self.blocks = _Blocks(hidden_dim, depth, num_heads, mlp_ratio, norm_eps)
        self.head = nn.Linear(hidden_dim, out_dim)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        places: Int[Tensor, "batch kept"],
        is_real: Bool[Tensor, "batch kept"],
        wanted: Int[Tensor, "batch wanted"],
        is_wanted: Bool[Tensor, "batch wanted"],
    ) -> Float[Tensor, "batch wanted out_dim"]:
        """Return the predictions for the patches `wanted`.

        Parameters
        ----------
        tokens
            The encoder's outputs. If there is one more than places, the first is that of the class token.
        places, wanted
            The numbers of the patches that the outputs belong to, and of those to predict.
        is_real, is_wanted
            False at the padding of `places` and of `wanted`; predictions there have no meaning.
        """
        table = _table(self.grid, self.grid, len(self.mask_token), tokens)
        num_class_tokens = tokens.shape[1] - places.shape[1]
        is_real = nn.functional.pad(is_real, (num_class_tokens, 0), value=True)
        given = self.embed(tokens) + nn.functional.pad(table[places], (0, 0, num_class_tokens, 0))
        asked = self.mask_token + table[wanted]  # (batch, wanted, hidden_dim)
        outputs = self.blocks(torch.cat([given, asked.to(given.dtype)], dim=1), torch.cat([is_real, is_wanted], dim=1))
        predictions: Tensor = self.head(outputs[:, given.shape[1] :])
        return predictions  # (batch, wanted, out_dim)


class _Blocks(nn.Module):
    """Transformer blocks that normalise before attention and before the hidden layer, and a last normalisation."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, norm_eps: float):
        super().__init__()
        if dim % num_heads or dim % 4:
            raise ValueError(f"dim: {dim} must be a multiple of 4 and of the number of heads, {num_heads}.")
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, num_heads, int(dim * mlp_ratio), 0.0, "gelu", norm_eps, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, norm_eps)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Float[Tensor, "batch kept dim"], is_real: Bool[Tensor, "batch kept"] | None = None
    ) -> Float[Tensor, "batch kept dim"]:
        # If all tokens of an image are padding, none is hidden: attention over nothing would give NaN.
        is_padding = None if is_real is None else ~is_real & is_real.any(1, keepdim=True)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=is_padding)
        outputs: Tensor = self.norm(tokens)
        return outputs


def places_of(mask: Bool[Tensor, "batch patches"]) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """Return the indices of each row's true entries, padded to the longest row, and a mask that is False at padding.

    The length of the longest row must be known in host memory. It is counted in the mask's `on_host`, its copy there,
    which batches have. Without one, a GPU is waited for.

    Examples
    --------
    >>> places, is_real = places_of(torch.tensor([[False, True, True], [True, False, False]]))
    >>> places[0], is_real
    (tensor([1, 2]), tensor([[ True,  True],
            [ True, False]]))
    """
    counts, on_host = mask.sum(1), _on_host(mask)  # (batch,)
    most = int((counts if on_host is None else on_host.sum(1)).max())
    places = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, torch.arange(places.shape[1], device=mask.device) < counts[:, None]


def mask_of(mask: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mask that a function makes of another, with a copy in host memory if the other has one."""
    made, on_host = function(mask), _on_host(mask)
    if on_host is not None:
        made.on_host = function(on_host)  # type: ignore[attr-defined]
    return made


def _on_host(mask: Tensor) -> Tensor | None:
    """Return the copy of a mask in host memory, if it has one, and was not changed in place since."""
    on_host: Tensor | None = getattr(mask, "on_host", None)
    return None if on_host is None or mask.is_inference() or mask._version else on_host


def take(
    tokens: Float[Tensor, "batch patches dim"], places: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept dim"]:
    """Return the tokens at some places of each row."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def _table(grid: tuple[int, int], base: tuple[int, int], dim: int, tokens: Tensor) -> Float[Tensor, "patches dim"]:
    """Return `positions` on the device and in the dtype of the tokens.

    A table is kept for later passes, unless this pass is being recorded (by torch.export, torch.jit.trace or
    torch.compile) or has no values (with fake tensors). Its tensors would be of no use to another pass.
    """
    is_recorded = type(tokens) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return (positions if is_recorded else _kept_positions)(grid, base, dim, tokens.device, tokens.dtype)


@functools.lru_cache(maxsize=64)  # else each forward pass would compute the table and copy it to the device
def _kept_positions(
    grid: tuple[int, int], base: tuple[int, int], dim: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "patches dim"]:
    with torch.inference_mode(False):  # autograd can't use tensors that were made in inference mode
        return positions(grid, base, dim, device, dtype)


def positions(
    grid: tuple[int, int],
    base: tuple[int, int],
    dim: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "patches dim"]:
    """Return the position embeddings of a grid of patches: sines and cosines of each patch's row and column (Vaswani et
    al., "Attention is all you need", NeurIPS 2017, section 3.5). Half of the dimensions are for the row.

    Parameters
    ----------
    grid
        Number of rows and columns.
    base
        The grid that the model was made for. A grid of another size is stretched over it.
    dim
        Width of the embeddings, a multiple of 4.
    device, dtype
        Those of the result.
    """
    # The CPU always computes the table, so that it has the same bits on each device.
    count = functools.partial(torch.arange, dtype=torch.float64, device="cpu")
    frequencies = 10000 ** (-count(dim // 4) / (dim // 4))
    halves = []
    for size, base_size in zip(grid, base, strict=True):
        place = (count(size) + 0.5) * base_size / size - 0.5  # (size,)
        angles = place[:, None] * frequencies  # (size, dim / 4)
        halves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = halves  # (rows, dim / 2), (columns, dim / 2)
    table = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], dim=2)
    return table.reshape(-1, dim).to(device, dtype)
