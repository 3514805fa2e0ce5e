"""The comparison notices small faults: each is put into our side of a method, in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("lightly", reason="lightly is not installed: pip install '.[dev]'")

from stable_ssl import losses
from stable_ssl.losses import swav
from stable_ssl.modules import teacher_student, vit
from stable_ssl.trainers import SelfDistillationTrainer

from .cases import CASES
from .sides import STEPS, TOLERANCE, compare

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")]


def setting(name, value):
    """Return a fault: a setting of our loss has another value."""
    return lambda patch, sides: setattr(sides.loss, name, value)


def option(name, value):
    """Return a fault: our trainer has another option, as if it ignored the one that was given."""
    return lambda patch, sides: sides.options.update({name: value})


def replaced(owner, name, change):
    """Return a fault: a function or method is what `change` makes of it."""
    return lambda patch, sides: patch.setattr(owner, name, change(getattr(owner, name)))


def without_stop_gradient(compute_loss):
    def wrong(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", lambda tensor: tensor)
            return compute_loss(self)

    return wrong


def biased(forward):
    def wrong(self, predicted, target, is_real=None):
        target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True, correction=0)
        return (predicted - target).square().mean()

    return wrong


def squared(forward):
    def wrong(self, predicted, target, is_real=None):
        return (predicted - nn.functional.layer_norm(target, target.shape[-1:])).square().mean()

    return wrong


def without_padding(places_of):
    def wrong(mask):
        places, is_real = places_of(mask)
        return places, torch.ones_like(is_real)

    return wrong


def unnormalised(update):
    def wrong(self, keys):
        self.queue = torch.cat([keys, self.queue])[: len(self.queue)]

    return wrong


def with_buffers(follow):
    def wrong(teacher, student, coefficient):
        follow(teacher, student, coefficient)
        for value, aim in zip(teacher.buffers(), student.buffers(), strict=True):
            value.lerp_(aim, 1 - coefficient) if value.is_floating_point() else value.copy_(aim)

    return wrong


FAULTS = {
    "SimCLR's temperature is 0.1001": ("SimCLR", setting("temperature", 0.1001)),
    "Barlow Twins' lambda is 0.0051": ("Barlow Twins", setting("lambd", 0.0051)),
    "VICReg's covariance is biased": (
        "VICReg",
        replaced(losses.VICRegLoss, "forward", lambda f: lambda self, *z: f(self, *(x * (15 / 16) ** 0.5 for x in z))),
    ),
    "LeJEPA's centre is the mean of all views": ("LeJEPA, 2 + 2 views", setting("num_global", 4)),
    "SwAV's prototypes are never frozen": ("SwAV, 2 + 2 views", option("freeze_prototypes_epochs", 0)),
    "SwAV's queue starts an epoch late": ("SwAV, 2 + 2 views, queue", option("queue_start_epoch", 2)),
    "SwAV's queue is filled late": (
        "SwAV, 2 + 2 views, queue filled from the start",
        option("queue_fill_epoch", None),
    ),
    "SwAV's views go one by one": ("SwAV, 2 + 2 views", option("join_views", False)),
    "SwAV iterates twice": ("SwAV, 2 + 2 views", replaced(swav, "sinkhorn", lambda f: lambda x, e, n: f(x, e, 2))),
    "MoCo's queue holds keys of any length": ("MoCo v2", replaced(losses.MoCoLoss, "update", unnormalised)),
    "BYOL's momentum is one step late": (
        "BYOL",
        replaced(teacher_student, "ema_coefficient", lambda f: lambda owner, p: f(owner, max(p - 1 / STEPS, 0))),
    ),
    "BYOL's loss is the mean of both directions": ("BYOL", setting("sums_pairs", False)),
    "MoCo's teacher takes over the student's statistics": (
        "MoCo v2",
        replaced(teacher_student, "follow", with_buffers),
    ),
    "SimSiam's target has a gradient": (
        "SimSiam",
        replaced(SelfDistillationTrainer, "compute_loss", without_stop_gradient),
    ),
    "DINO's centre is of one view": (
        "DINO, ViT, 2 + 2 views",
        replaced(losses.DINOLoss, "update", lambda f: lambda self, scores: f(self, scores[: len(scores) // 2])),
    ),
    "DINO's last layer is never frozen": ("DINO, ViT, 2 + 2 views", option("freeze_prototypes_epochs", 0)),
    "DINO's temperature warms up in two epochs": (
        "DINO, ViT, 2 + 2 views",
        option("warmup_epochs_temperature_teacher", 2),
    ),
    "MAE's variance is biased": ("MAE, pixels standardised", replaced(losses.MAELoss, "forward", biased)),
    "the decoder gets no class token": (
        "MAE, with a class token",
        replaced(
            vit.PatchPredictor,
            "forward",
            lambda f: lambda self, tokens, places, *more: f(self, tokens[:, -places.shape[1] :], places, *more),
        ),
    ),
    "the ViT's last normalisation has another constant": (
        "MAE, pixels standardised",
        lambda patch, sides: setattr(sides.module["backbone"].blocks.norm, "eps", 1e-5),
    ),
    "I-JEPA's distance is squared": ("I-JEPA", replaced(losses.IJEPALoss, "forward", squared)),
    "I-JEPA's teacher follows too fast": ("I-JEPA", option("base_ema_coefficient", 0.89)),
    "I-JEPA's momentum is a cosine": ("I-JEPA", option("ema_schedule", "cosine")),
    "the ViT takes padding for patches": (
        "I-JEPA, contexts of different sizes",
        replaced(vit, "places_of", without_padding),
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_noticed(monkeypatch, what):
    name, put_fault = FAULTS[what]
    case = CASES[name]

    def faulty():
        sides = case.make()
        put_fault(monkeypatch, sides)
        return sides

    found = compare(faulty, case.optimizer)
    assert any(value > TOLERANCE for value in found.values()), found
