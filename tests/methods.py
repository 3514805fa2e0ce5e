"""Every method as a tiny trainer on tiny images: no batch normalisation, so that two ranks can be held to one.

The one with batch normalisation is there for the running statistics.
"""

from __future__ import annotations

import functools
import os
import signal

import torch
from torch import nn

from stable_ssl import full_state_dict, losses, modules, trainers
from stable_ssl.augmentations import Affine, BlockMasks, MultiView, RandomMask, RandomResizedCrop, View
from stable_ssl.data import Loader

VIEW = View([Affine(degrees=15, translate=(0.1, 0.1))])
LOCAL = View([RandomResizedCrop(4, (0.3, 0.6))])
TWO, FOUR = MultiView([VIEW, VIEW]), MultiView([VIEW, VIEW, LOCAL, LOCAL])


def images(number=64):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 4
    patterns = torch.randint(0, 200, (4, 1, 8, 8), generator=generator)
    noise = torch.randint(0, 56, (number, 1, 8, 8), generator=generator)
    return torch.utils.data.TensorDataset((patterns[labels] + noise).to(torch.uint8), labels)


def backbone():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0))


def normed():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def head():
    return nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8))


def taught(network):
    return modules.TeacherStudentModule(network, base_ema_coefficient=0.9)


def plain(**others):
    return {"backbone": backbone(), "projector": head(), **others}


def distilled(projector=head, **others):
    return {"backbone": taught(backbone()), "projector": taught(projector()), **others}


def vit():
    return modules.ViT(8, 2, dim=32, depth=2, num_heads=2, in_channels=1)


def predictor(out_dim):
    return modules.PatchPredictor((4, 4), 32, out_dim, hidden_dim=16, depth=1, num_heads=2)


def dino_head():
    return modules.DINOHead(32, out_dim=16, hidden_dim=16, bottleneck_dim=8)


# Trainer, loss, modules, views, and the trainer's own parameters.
METHODS = {
    "simclr": lambda: (trainers.JointEmbeddingTrainer, losses.NTXEntLoss(0.2), plain(), TWO, {}),
    "vicreg": lambda: (trainers.JointEmbeddingTrainer, losses.VICRegLoss(), plain(), TWO, {}),
    "barlow_twins": lambda: (trainers.JointEmbeddingTrainer, losses.BarlowTwinsLoss(), plain(), TWO, {}),
    "lejepa": lambda: (trainers.JointEmbeddingTrainer, losses.LeJEPALoss(num_slices=16), plain(), FOUR, {}),
    "byol": lambda: (
        trainers.SelfDistillationTrainer, losses.BYOLLoss(), distilled(predictor=nn.Linear(8, 8)), TWO, {},
    ),
    "byol_with_batch_norm": lambda: (
        trainers.SelfDistillationTrainer, losses.NegativeCosineSimilarity(),
        distilled(predictor=nn.Linear(8, 8), backbone=taught(normed())), TWO, {},
    ),
    "simsiam": lambda: (
        trainers.SelfDistillationTrainer, losses.NegativeCosineSimilarity(), plain(predictor=nn.Linear(8, 8)), TWO, {},
    ),
    "moco": lambda: (
        trainers.SelfDistillationTrainer, losses.MoCoLoss(8, 40, 0.2), distilled(), TWO, {"symmetric": False},
    ),
    "dino": lambda: (
        trainers.DINOTrainer, None, distilled(dino_head), FOUR, {"warmup_epochs_temperature_teacher": 2},
    ),
    "swav": lambda: (
        trainers.ClusteringTrainer, losses.SwAVLoss(8, 12, queue_size=40), plain(), FOUR, {"queue_start_epoch": 0},
    ),
    "ijepa": lambda: (
        trainers.IJEPATrainer, losses.IJEPALoss(),
        {"context_encoder": vit(), "target_encoder": vit(), "predictor": predictor(32)},
        MultiView([VIEW], [BlockMasks((4, 4), num_targets=2, min_context=2)]), {"base_ema_coefficient": 0.9},
    ),
    "mae": lambda: (
        trainers.MaskedTrainer, losses.MAELoss(), {"backbone": vit(), "decoder": predictor(4)},
        MultiView([VIEW], [RandomMask((4, 4), 0.75)]), {},
    ),
}  # fmt: skip


def make(name, folder, batch_size=16, probes=True, dies_at=None, **options):
    """Return a trainer of a method; it is killed in its step `dies_at`."""
    torch.manual_seed(0)
    base, loss, networks, views, own = METHODS[name]()
    if probes:
        networks["backbone_classifier"] = nn.Linear(32, 4)

    optim = {"optimizer": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9), "epochs": 2}
    trainer = base(
        {"train": Loader(images(), batch_size, views=views, shuffle=True, drop_last=True)},
        networks,
        {"device": "cpu", **options.pop("hardware", {})},
        {**optim, **options.pop("optim", {})},
        {"dump_path": folder, "level": 50, "checkpoint_every_step": 1, **options.pop("logger", {})},
        loss,
        **{**own, **options},
    )

    def compute_loss():
        if trainer.global_step + 1 == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return base.compute_loss(trainer)

    if dies_at is not None:
        trainer.compute_loss = compute_loss
    return trainer


def train(names, folder, batch_size=16, dies_at=None, strategy="ddp"):
    """Train these methods, each in a folder of its own that each rank leaves its state in."""
    for name in names:
        trainer = make(name, folder / name, batch_size, dies_at=dies_at, hardware={"strategy": strategy})
        trainer.after_fit = functools.partial(keep_state, trainer)
        trainer()


def keep_state(trainer):
    torch.save(full_state_dict(trainer), trainer.folder / f"rank_{trainer.rank}.pt")
