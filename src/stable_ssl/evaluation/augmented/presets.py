"""The protocols that train on augmented images, by name, with the numbers of those who publish such figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .protocols import Augmented, FineTuning, LinearProbe

CAPI_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
DINO_RATES = (*CAPI_RATES, 2e-2, 5e-2, 0.1)
SGD: Mapping[str, Any] = {"_target_": "torch.optim.SGD", "momentum": 0.9, "weight_decay": 0.0}
ON_REPORTED = "the reported split"

_dino: Mapping[str, Any] = {
    "view": "224", "chosen_on": ON_REPORTED, "seeds": 1, "rates": DINO_RATES, "optimizer": SGD, "epochs": 10,
    "iterations": 1250, "batch_size": 128, "interpolation": "bicubic", "precision": "fp16", "std": 0.01,
}  # fmt: skip
_one: Mapping[str, Any] = {"view": "224"}

_low_shot: Mapping[str, Any] = {
    **_one, "seeds": 3, "reproduces": "SimCLR (arXiv:2002.05709, appendix B.5)", "rates": (0.05,),
    "optimizer": {**SGD, "nesterov": True}, "batch_size": 256, "whole_batch": 4096,
}  # fmt: skip

PRESETS: dict[str, Augmented] = {
    protocol.name: protocol
    for protocol in (
        LinearProbe(
            name="dinov2-linear",
            summary="Linear classifiers on four sets of features with 13 rates each; the best one counts.",
            reproduces="DINOv2's linear evaluation (facebookresearch/dinov2)",
            features=("class", "class+patches", "class:4", "class:4+patches"),
            **_dino,
        ),
        LinearProbe(
            name="dinov3-linear",
            summary="Linear classifiers on the class token and the mean patch with 13 rates; the best one counts.",
            reproduces="DINOv3's linear evaluation (facebookresearch/dinov3)",
            features=("class+patches",),
            **_dino,
        ),
        LinearProbe(
            name="capi",
            summary="Linear classifiers on three sets of features; 10 % of train choose rate and decay of 30 pairs.",
            reproduces="CAPI's linear evaluation (facebookresearch/capi); it also has heads that attend to patches",
            features=("class", "patches", "class+patches"),
            view="224",
            chosen_on="10 % of train",
            seeds=1,
            rates=CAPI_RATES,
            decays=(5e-4, 1e-3, 5e-2),
            optimizer={"_target_": "torch.optim.AdamW", "betas": (0.9, 0.95)},
            exclude_bias_norm=True,
            epochs=10,
            iterations=1250,
            warmup_epochs=1,
            has_both_ends=True,
            batch_size=128,
            interpolation="bicubic",
            std=0.02,
            apart=42,
        ),
        LinearProbe(
            name="simclr-90",
            summary="A linear classifier, 90 epochs of SGD with a cosine.",
            reproduces="lightly's benchmarks, which report the best epoch on the validation set",
            **{**_one, "chosen_on": "the reported split for the best epoch, nothing for the last"},
            rates=(0.1,),
            optimizer=SGD,
            epochs=90,
            batch_size=256,
            whole_batch=256,
            precision="fp16",
            reports=("last epoch", "best epoch"),
        ),
        LinearProbe(
            name="mae-linear",
            summary="A linear classifier behind a batch normalisation, 90 epochs of LARS in batches of 16,384.",
            reproduces="MAE's linear probing (facebookresearch/mae)",
            **_one,
            rates=(0.1,),
            optimizer={"_target_": "stable_ssl.optimizers.LARS", "momentum": 0.9, "eta": 1e-3, "weight_decay": 0.0},
            exclude_bias_norm=True,
            epochs=90,
            warmup_epochs=10,
            batch_size=512,
            whole_batch=16384,
            interpolation="bicubic",
            precision="fp16",
            norm={"affine": False, "eps": 1e-6},
            std=0.01,
        ),
        FineTuning(
            name="mae-finetune",
            summary="The whole network, 100 epochs of AdamW with layer decay and strong augmentation.",
            reproduces="MAE's fine-tuning of ViT-Base (facebookresearch/mae)",
            **_one,
            rates=(5e-4,),
            optimizer={"_target_": "torch.optim.AdamW", "weight_decay": 0.05},
            exclude_bias_norm=True,
            epochs=100,
            warmup_epochs=5,
            end_lr=1e-6,
            batch_size=32,
            whole_batch=1024,
            interpolation="bicubic",
            precision="fp16",
            layer_decay=0.65,
            drop_path=0.1,
            augment={
                "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": None, "re_prob": 0.25, "re_mode": "pixel",
                "re_count": 1,
            },
            mix={"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
            std=2e-5,
        ),
        LinearProbe(
            name="solo-100",
            summary="A linear classifier, 100 epochs of SGD, whose rate falls to a tenth after 60 and 80.",
            reproduces="solo-learn's linear evaluation",
            **_one,
            rates=(0.1,),
            optimizer=SGD,
            epochs=100,
            falls=(60, 80),
            batch_size=256,
            whole_batch=256,
            precision="fp16",
        ),
        LinearProbe(
            name="vissl-28",
            summary="A linear classifier behind a batch normalisation, 28 epochs of SGD with Nesterov's momentum.",
            reproduces="VISSL's linear benchmark (facebookresearch/vissl)",
            **_one,
            rates=(0.01,),
            optimizer={**SGD, "weight_decay": 5e-4, "nesterov": True},
            epochs=28,
            falls=(8, 16, 24),
            batch_size=256,
            whole_batch=256,
            norm={},
        ),
        FineTuning(
            name="simclr-finetune-1",
            summary="The whole network, 60 epochs of SGD on 1 % of the labels.",
            **_low_shot,
            epochs=60,
            labels=0.01,
        ),
        FineTuning(
            name="simclr-finetune-10",
            summary="The whole network, 30 epochs of SGD on 10 % of the labels.",
            **_low_shot,
            epochs=30,
            labels=0.1,
        ),
    )
}  # fmt: skip
