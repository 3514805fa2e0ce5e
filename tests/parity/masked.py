"""Methods that predict patches from other patches: MAE, with and without a class token, and I-JEPA."""

from __future__ import annotations

import copy
import functools

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stable_ssl import losses, modules, trainers
from stable_ssl.modules.vit import positions

from .sides import BATCH, DIM, SIZE, STEPS, Part, Sides, views

PATCH, HIDDEN = 4, 8  # pixels; width of decoders and predictors
GRID = (SIZE // PATCH, SIZE // PATCH)
PATCHES = GRID[0] * GRID[1]
MOMENTUM = 0.9
NORM = functools.partial(nn.LayerNorm, eps=1e-6)


def our_vit(class_token: bool = False) -> modules.ViT:
    return modules.ViT(SIZE, PATCH, DIM, depth=2, num_heads=2, norm_eps=1e-6, class_token=class_token)


def our_predictor(out_dim: int) -> modules.PatchPredictor:
    return modules.PatchPredictor(GRID, DIM, out_dim, HIDDEN, depth=2, num_heads=2, norm_eps=1e-6)


def table(width: int) -> Tensor:
    """Return our table of positions, (1, patches, width)."""
    return positions(GRID, GRID, width, dtype=torch.float64)[None]


def lightly_vit(class_token: bool = False) -> MaskedVisionTransformerTIMM:
    """Return lightly's ViT with our positions. A class token has none."""
    options = dict(img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=2, norm_layer=NORM)
    vit = VisionTransformer(**options, num_classes=0, class_token=class_token, global_pool="avg", fc_norm=False)
    masked = MaskedVisionTransformerTIMM(vit).double()
    places = vit.pos_embed.data[:, int(class_token) :]
    # In lightly's table, as in the authors', the column has the first half and the row the second.
    torch.testing.assert_close(places.roll(DIM // 2, 2), table(DIM), atol=1e-6, rtol=0)
    places.copy_(table(DIM))
    return masked


def encoder_parts(masked: MaskedVisionTransformerTIMM) -> Part:
    """Return the parts of lightly's ViT in the order of ours."""
    tokens = [] if masked.vit.cls_token is None else [masked.vit.cls_token]
    return [*tokens, masked.vit.patch_embed.proj, *masked.vit.blocks, masked.vit.norm]


def decoder_parts(decoder: MaskedVisionTransformerDecoderTIMM, embed: nn.Module, head: nn.Module) -> Part:
    """Return the parts of lightly's decoder in the order of our `PatchPredictor`."""
    return [decoder.mask_token, embed, *decoder.blocks, decoder.norm, head]


def indices(mask: Tensor) -> Tensor:
    """Return where each row of a mask is true, (batch, count); every row has the same count."""
    return mask.nonzero()[:, 1].view(len(mask), -1)


def mae(normalize: bool, class_token: bool = False) -> Sides:
    """benchmarks/imagenet/vitb16/mae.py; `normalize` is the authors' --norm_pix_loss."""
    first = int(class_token)  # lightly's number of the first patch
    generator = torch.Generator().manual_seed(3)
    batches = []
    for image, _ in views():
        order = torch.rand(BATCH, PATCHES, generator=generator).argsort(1)
        batches.append([image, torch.zeros(BATCH, PATCHES, dtype=torch.bool).scatter_(1, order[:, :12], True)])
    encoder, embed, head = (
        lightly_vit(class_token),
        nn.Linear(DIM, HIDDEN).double(),
        nn.Linear(HIDDEN, PATCH**2 * 3).double(),
    )
    decoder = MaskedVisionTransformerDecoderTIMM(
        PATCHES, HIDDEN, depth=2, num_heads=2, num_prefix_tokens=first, norm_layer=NORM
    ).double()
    decoder.pos_embed.data[:, first:].copy_(table(HIDDEN))

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        images, is_hidden = batch
        hidden, kept = indices(is_hidden) + first, indices(~is_hidden) + first
        kept = torch.cat([torch.zeros(BATCH, first, dtype=torch.long), kept], dim=1)
        features = embed(encoder.encode(images=images, idx_keep=kept))
        full = utils.set_at_index(features.new_zeros(BATCH, first + PATCHES, HIDDEN), kept, features)
        predicted = head(utils.get_at_index(decoder(full, idx_mask=hidden), hidden))
        target = utils.get_at_index(utils.patchify(images, PATCH), hidden - first)
        return nn.functional.mse_loss(predicted, utils.normalize_mean_var(target) if normalize else target)

    return Sides(
        trainers.MaskedTrainer,
        {"backbone": our_vit(class_token), "decoder": our_predictor(PATCH**2 * 3)},
        losses.MAELoss(normalize=normalize),
        batches,
        student={"backbone": encoder_parts(encoder), "decoder": decoder_parts(decoder, embed, head)},
        step_loss=step_loss,
    )


def ijepa_batches(num_sizes: int) -> list[list[Tensor]]:
    """Return batches of images, contexts and four square targets for each image.

    The context of image i has 4 + i % num_sizes patches.
    """
    generator = torch.Generator().manual_seed(4)
    batches = []
    for image, _ in views():
        is_context = torch.zeros(BATCH, PATCHES, dtype=torch.bool)
        is_target = torch.zeros(BATCH, 4, *GRID, dtype=torch.bool)
        for i in range(BATCH):
            is_context[i, torch.randperm(PATCHES, generator=generator)[: 4 + i % num_sizes]] = True
            for target in is_target[i]:
                row, column = torch.randint(3, (2,), generator=generator).tolist()
                target[row : row + 2, column : column + 2] = True
        batches.append([image, is_context, is_target.flatten(2)])
    return batches


def ijepa(num_sizes: int = 1) -> Sides:
    """examples/pytorch/ijepa.py with lightly's modules for timm, and the momentum of the authors' src/train.py.

    Contexts of `num_sizes` sizes do not fit into one batch of lightly's, which gets one batch per size.
    """
    encoder = lightly_vit()
    target_encoder = copy.deepcopy(encoder).requires_grad_(False)
    predictor = IJEPAPredictorTIMM(PATCHES, 2, DIM, HIDDEN, 2, norm_layer=NORM).double()
    predictor.decoder.pos_embed.data.copy_(table(HIDDEN))

    def loss_of(images: Tensor, is_context: Tensor, is_target: Tensor) -> Tensor:
        contexts, targets = [indices(is_context)], [indices(mask) for mask in is_target.unbind(1)]
        with torch.no_grad():
            wanted = nn.functional.layer_norm(target_encoder.encode(images), (DIM,))
            wanted = utils.apply_masks(wanted, targets)
            wanted = utils.repeat_interleave_batch(wanted, len(images), repeat=len(contexts))
        return nn.functional.smooth_l1_loss(
            predictor(encoder.encode(images, idx_keep=contexts[0]), contexts, targets), wanted
        )

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        groups = [[part[i::num_sizes] for part in batch] for i in range(num_sizes)]
        return sum(len(group[0]) * loss_of(*group) for group in groups) / BATCH

    context = our_vit()
    parts = decoder_parts(predictor.decoder, predictor.predictor_embed, predictor.predictor_proj)
    return Sides(
        trainers.IJEPATrainer,
        {"context_encoder": context, "target_encoder": copy.deepcopy(context), "predictor": our_predictor(DIM)},
        losses.IJEPALoss(),
        ijepa_batches(num_sizes),
        student={"context_encoder": encoder_parts(encoder), "predictor": parts},
        teacher={"target_encoder": encoder_parts(target_encoder)},
        step_loss=step_loss,
        after_step=lambda step: utils.update_momentum(
            encoder, target_encoder, m=MOMENTUM + step * (1 - MOMENTUM) / STEPS
        ),
        options={"base_ema_coefficient": MOMENTUM},
    )
