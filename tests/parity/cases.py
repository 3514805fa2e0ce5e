"""The table of methods: how each is made, what it equals, and where it differs."""

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
    equals: str = "lightly"
    differs: frozenset[str] = frozenset()  # kinds of values that are known to differ


CASES = {
    "SimCLR": Case(functools.partial(simclr, together=True), "LARS"),
    "SimCLR, views one by one": Case(functools.partial(simclr, join_views=False), "SGD"),
    "Barlow Twins": Case(barlow_twins, "LARS", "lightly, with the authors' projector"),
    "VICReg": Case(vicreg, "LARS", "lightly, with the authors' projector"),
    "LeJEPA, 2 + 2 views": Case(lejepa, "AdamW", "lightly, with the authors' joined views"),
    "SwAV, 2 + 2 views": Case(swav, "SGD", "lightly, with the authors' joined views"),
    "SwAV, 2 + 2 views, queue": Case(
        functools.partial(swav, num_queued=2), "LARS", "lightly, with the authors' joined views and rule for the queue"
    ),
    "SwAV, 2 + 2 views, queue filled from the start": Case(
        functools.partial(swav, num_queued=3, fill_epoch=0),
        "SGD",
        "lightly, with the authors' joined views and solo-learn's rule for the queue",
    ),
    "MoCo v2": Case(moco, "SGD"),
    "MoCo v2, symmetric": Case(
        functools.partial(moco, symmetric=True), "SGD", "lightly, with the authors' one queue, and half their loss"
    ),
    "BYOL": Case(byol, "LARS", "lightly, with the authors' heads, loss and momentum"),
    "SimSiam": Case(simsiam, "SGD"),
    "DINO, ViT, 2 + 2 views": Case(dino, "AdamW", "lightly, with the authors' momentum"),
    "DINO, ConvNet, 2 + 2 views": Case(
        functools.partial(dino, with_vit=False), "SGD", "lightly, with the authors' joined views and momentum"
    ),
    "MAE, pixels as they are": Case(functools.partial(mae, normalize=False), "AdamW"),
    "MAE, pixels standardised": Case(functools.partial(mae, normalize=True), "SGD"),
    "MAE, with a class token": Case(functools.partial(mae, normalize=True, class_token=True), "AdamW"),
    "I-JEPA": Case(ijepa, "AdamW", "lightly, with the authors' momentum"),
    "I-JEPA, contexts of different sizes": Case(
        functools.partial(ijepa, num_sizes=5), "SGD", "lightly, with the authors' momentum"
    ),
}
