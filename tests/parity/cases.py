"""The table of methods: how each is made, and what it equals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from .joint_embedding import barlow_twins, lejepa, simclr, swav, vicreg
from .masked import ijepa, mae
from .self_distillation import byol, dino, moco, simsiam
from .sides import Sides


@dataclass(frozen=True)
class Case:
    """A method beside its reference."""

    make: Callable[[], Sides]
    optimizer: str  # the one of the quick tests; the table is made with all
    equals: str = "lightly"  # or the authors' code, and in what the two differ


CASES = {
    "SimCLR": Case(functools.partial(simclr, together=True), "LARS"),
    "SimCLR, views one by one": Case(functools.partial(simclr, join_views=False), "SGD"),
    "Barlow Twins": Case(barlow_twins, "LARS", "the authors' code: projector"),
    "VICReg": Case(vicreg, "LARS", "the authors' code: projector"),
    "LeJEPA, 2 + 2 views": Case(lejepa, "AdamW", "the authors' code: joined views"),
    "SwAV, 2 + 2 views": Case(swav, "SGD", "the authors' code: joined views"),
    "SwAV, 2 + 2 views, queue": Case(
        functools.partial(swav, num_queued=2), "LARS", "the authors' code: joined views, queue"
    ),
    "SwAV, 2 + 2 views, queue filled from the start": Case(
        functools.partial(swav, num_queued=3, fill_epoch=0),
        "SGD",
        "solo-learn's code: queue, with joined views",
    ),
    "MoCo v2": Case(moco, "SGD"),
    "MoCo v2, symmetric": Case(
        functools.partial(moco, symmetric=True), "SGD", "the authors' code: one queue, half their loss"
    ),
    "BYOL": Case(byol, "LARS", "the authors' code: heads, loss, momentum"),
    "SimSiam": Case(simsiam, "SGD"),
    "DINO, ViT, 2 + 2 views": Case(dino, "AdamW", "the authors' code: momentum"),
    "DINO, ConvNet, 2 + 2 views": Case(
        functools.partial(dino, with_vit=False), "SGD", "the authors' code: joined views, momentum"
    ),
    "MAE, pixels as they are": Case(functools.partial(mae, normalize=False), "AdamW"),
    "MAE, pixels standardised": Case(functools.partial(mae, normalize=True), "SGD"),
    "MAE, with a class token": Case(functools.partial(mae, normalize=True, class_token=True), "AdamW"),
    "I-JEPA": Case(ijepa, "AdamW", "the authors' code: momentum"),
    "I-JEPA, contexts of different sizes": Case(
        functools.partial(ijepa, num_sizes=5), "SGD", "the authors' code: momentum"
    ),
}
