"""Protocols that train on augmented images do what their pages say, and are runs like any other."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from stable_ssl import ConfigError, Preempted
from stable_ssl.augmentations import EvalView, HorizontalFlip, Normalize, RandomResizedCrop, View
from stable_ssl.data import Loader
from stable_ssl.evaluation.augmented import PRESETS
from stable_ssl.evaluation.augmented.finetuning import FineTuningTrainer, layer_groups, set_drop_path
from stable_ssl.evaluation.augmented.heads import Head, HeadAccuracy
from stable_ssl.evaluation.augmented.linear import LinearProbeTrainer
from stable_ssl.evaluation.augmented.running import schedule
from stable_ssl.evaluation.augmented.samples import EndlessOrder, sampled
from stable_ssl.evaluation.networks import Features, blocks_of
from stable_ssl.evaluation.sets import LabelledSet
from stable_ssl.evaluation.subject import Subject
from stable_ssl.modules import ViT
from stable_ssl.optimizers import param_groups

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CPU = torch.device("cpu")


class Colours(Dataset):
    """Noise on one of three levels of grey, which is the class; the first image has no label."""

    def __init__(self, number: int = 49, seed: int = 0):
        draw = np.random.default_rng(seed)
        self.targets = [-1, *draw.integers(0, 3, number - 1).tolist()]
        self.images = [(draw.integers(0, 80, (16, 16, 3)) + 60 * max(t, 0)).astype(np.uint8) for t in self.targets]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


TEST = Colours(30, seed=1)


def subject(network: nn.Module | None = None) -> Subject:
    torch.manual_seed(0)
    network = network or ViT(image_size=16, patch_size=8, dim=12, depth=4, num_heads=1, class_token=True)
    return Subject("toy", network.eval(), EvalView(16), (16, 16), MEAN, STD, network, digest="toy")


def convolutions() -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers)
    network(torch.rand(8, 3, 16, 16))  # running statistics of its own
    return network


def measure(protocol, what, out, **options):
    protocol = dataclasses.replace(protocol, whole_batch=None)
    options = {"size": "native", "batch_size": 8, **options}
    return protocol.measure(what, LabelledSet.of(Colours()), LabelledSet.of(TEST), 0, out, CPU, **options)


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that were set up, and the first values of their modules."""
    found = []
    for cls in (LinearProbeTrainer, FineTuningTrainer):

        def check_setup(self, own=cls.check_setup):
            own(self)
            found.append((self, {name: value.clone() for name, value in self.module.state_dict().items()}))

        monkeypatch.setattr(cls, "check_setup", check_setup)
    return found


# What the pages say ---------------------------------------------------------------------------------------------------

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
SGD = {"_target_": "torch.optim.SGD", "momentum": 0.9, "weight_decay": 0.0}
LINEAR = {
    "reports": ("last epoch",),
    "iterations": None,
    "apart": None,
    "decays": (None,),
    "norm": None,
    "falls": (),
    "warmup_epochs": 0,
}
PAGES = {
    "dinov2-linear": {
        **LINEAR, "features": ("class", "class+patches", "class:4", "class:4+patches"), "rates": tuple(RATES),
        "optimizer": SGD, "epochs": 10, "iterations": 1250, "batch_size": 128, "interpolation": "bicubic",
        "precision": "fp16", "std": 0.01, "chosen_on": "the reported split",
    },
    "dinov3-linear": {
        **LINEAR, "features": ("class+patches",), "rates": tuple(RATES), "optimizer": SGD, "epochs": 10,
        "iterations": 1250, "batch_size": 128, "interpolation": "bicubic", "std": 0.01,
        "chosen_on": "the reported split",
    },
    "capi": {
        "features": ("class", "patches", "class+patches"), "rates": tuple(RATES[:10]), "decays": (0.0005, 0.001, 0.05),
        "optimizer": {"_target_": "torch.optim.AdamW", "betas": (0.9, 0.95)}, "exclude_bias_norm": True,
        "epochs": 10, "iterations": 1250, "warmup_epochs": 1, "has_both_ends": True, "batch_size": 128, "falls": (),
        "interpolation": "bicubic", "precision": "fp32", "std": 0.02, "norm": None, "apart": 42, "seeds": 1,
        "reports": ("last epoch",), "chosen_on": "10 % of train",
    },
    "simclr-90": {
        **LINEAR, "rates": (0.1,), "optimizer": SGD, "epochs": 90, "interpolation": "bilinear", "precision": "fp16",
        "reports": ("last epoch", "best epoch"), "std": None,
    },
    "mae-linear": {
        **LINEAR, "rates": (0.1,), "epochs": 90, "warmup_epochs": 10, "norm": {"affine": False, "eps": 1e-6},
        "optimizer": {"_target_": "stable_ssl.optimizers.LARS", "momentum": 0.9, "eta": 1e-3, "weight_decay": 0.0},
        "exclude_bias_norm": True, "whole_batch": 16384, "interpolation": "bicubic", "std": 0.01,
    },
    "mae-finetune": {
        "rates": (5e-4,), "optimizer": {"_target_": "torch.optim.AdamW", "weight_decay": 0.05}, "epochs": 100,
        "warmup_epochs": 5, "layer_decay": 0.65, "drop_path": 0.1, "whole_batch": 1024, "exclude_bias_norm": True,
        "mix": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1}, "end_lr": 1e-6, "falls": (),
    },
    "solo-100": {**LINEAR, "rates": (0.1,), "optimizer": SGD, "epochs": 100, "falls": (60, 80), "batch_size": 256,
                 "precision": "fp16"},
    "vissl-28": {
        **LINEAR, "rates": (0.01,), "optimizer": {**SGD, "weight_decay": 5e-4, "nesterov": True}, "epochs": 28,
        "falls": (8, 16, 24), "norm": {},
    },
    "simclr-finetune-1": {"rates": (0.05,), "optimizer": {**SGD, "nesterov": True}, "epochs": 60, "labels": 0.01},
    "simclr-finetune-10": {"rates": (0.05,), "optimizer": {**SGD, "nesterov": True}, "epochs": 30, "labels": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_page_says(name):
    assert {key: getattr(PRESETS[name], key) for key in PAGES[name]} == PAGES[name]
    assert PRESETS[name].name == name


def test_training_images_are_cropped_and_flipped_and_test_images_cut_from_256_pixels():
    how, what = "bicubic", subject()
    preset = PRESETS["dinov2-linear"]
    crop = RandomResizedCrop(224, scale=(0.08, 1.0), interpolation=how)
    assert preset.train_view(what, 224) == View([crop, HorizontalFlip(0.5), Normalize(MEAN, STD)])
    assert preset.test_view(what, 224) == EvalView(224, 256, MEAN, STD, how)
    crop = RandomResizedCrop(224, interpolation="bilinear")
    assert PRESETS["simclr-90"].train_view(what, 224) == View([crop, HorizontalFlip(0.5), Normalize(MEAN, STD)])


def test_fine_tuning_augments_with_rand_augment_and_erases():
    view = PRESETS["mae-finetune"].plan(subject(), 3, 32, "fp32").view.transform
    kinds = [type(step).__name__ for step in view.transforms]
    assert kinds == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "MaybeToTensor",
                     "Normalize", "RandomErasing"]  # fmt: skip
    crop, erasing = view.transforms[0], view.transforms[-1]
    assert (crop.scale, erasing.probability, erasing.rand_color, erasing.per_pixel) == ((0.08, 1.0), 0.25, False, True)
    assert {step.magnitude for step in view.transforms[2].ops} == {9}
    assert {step.magnitude_std for step in view.transforms[2].ops} == {0.5}
    grey = dataclasses.replace(subject(), mean=(0.5,), std=(0.25,))
    with pytest.raises(ConfigError, match="images of 1 channels instead of 3"):
        PRESETS["mae-finetune"].plan(grey, 3, 16, "fp32")


@pytest.mark.parametrize("name", PRESETS)
def test_rates_follow_the_pages_schedule(name):
    preset, per_epoch = dataclasses.replace(PRESETS[name], has_both_ends=False), 7
    top, low = preset.rates[-1], preset.rates[0]
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (low, top / 2)])
    total = preset.epochs * per_epoch
    made = schedule(optimizer, total, preset.epochs, preset.warmup_epochs, preset.falls, preset.end_lr)
    largest = max(low, top / 2)
    for step in range(total):
        epoch = step / per_epoch
        if preset.falls:
            factor = 0.1 ** sum(epoch >= fall for fall in preset.falls)
        elif epoch < preset.warmup_epochs:
            factor = epoch / preset.warmup_epochs
        else:
            part = (epoch - preset.warmup_epochs) / (preset.epochs - preset.warmup_epochs)
            factor = preset.end_lr / largest + (1 - preset.end_lr / largest) * 0.5 * (1 + math.cos(math.pi * part))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor * low, factor * top / 2])
        optimizer.step()
        made.step()


def test_the_schedule_of_capi_has_both_ends_of_its_parts():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    made = schedule(optimizer, 12_500, epochs=10, warmup_epochs=1, has_both_ends=True)
    expected = [*np.linspace(0, 1, 1250), *(1 + np.cos(np.linspace(0, np.pi, 11_250))) / 2]
    assert [made.lr_lambdas[0](step) for step in range(12_500)] == pytest.approx(expected)


# Linear ---------------------------------------------------------------------------------------------------------------


def seen_batches(protocol, what, epochs, num_steps=6):
    """The batches that a run of seed 0 trains on, with so many steps per epoch."""
    order = EndlessOrder(48, num_steps * 8, seed=0)
    loader = Loader(LabelledSet.of(Colours()).dataset, 8, views=protocol.train_view(what, 16), sampler=order)
    loader.bind(0, "train", is_even=True)
    loader.prepare(CPU)
    return [batch for epoch in range(epochs) for _, batch in loader.batches(epoch)]


def test_all_heads_learn_in_one_pass_what_each_learns_alone(trainers, tmp_path):
    protocol = dataclasses.replace(PRESETS["dinov2-linear"], rates=(0.1, 3.0, 20.0), iterations=7)
    what = subject()
    (figure,) = measure(protocol, what, tmp_path, epochs=2)
    trainer, first = trainers[0]
    learned = trainer.module.state_dict()
    features = Features(what, protocol.features)
    for name in protocol.features:
        for number, rate in enumerate(protocol.rates):
            keys = [f"heads.linears.{name}.{number}.{part}" for part in ("weight", "bias")]
            head = nn.Linear(*reversed(first[keys[0]].shape))
            head.load_state_dict({"weight": first[keys[0]], "bias": first[keys[1]]})
            optimizer = torch.optim.SGD(head.parameters(), lr=rate * 8 / 256, momentum=0.9)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)
            for images, labels in seen_batches(protocol, what, 2, 7):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(features(images)[name]), labels).backward()
                optimizer.step()
                cosine.step()
            for key, value in zip(keys, head.parameters(), strict=True):
                torch.testing.assert_close(learned[key], value, rtol=1e-6, atol=1e-6, msg=key)
                assert not torch.equal(learned[key], first[key])
    by_head = figure.details["heads"]
    assert len(by_head) == 12
    assert figure.accuracy == max(by_head.values())
    assert figure.accuracy == by_head[f"{figure.features}_lr{figure.chosen['lr']:g}"]
    assert figure.details["departures"] == [
        "epochs: 2 instead of 10", "images per step: 8 instead of 128", "size: 16 instead of 224",
        "precision: fp32 instead of fp16",
    ]  # fmt: skip


def test_capi_chooses_on_a_tenth_of_train_among_heads_that_learn_what_each_learns_alone(trainers, tmp_path):
    protocol = dataclasses.replace(PRESETS["capi"], rates=(0.1, 3.0), decays=(0.0, 0.5), epochs=2, iterations=5)
    what, train = subject(), LabelledSet.of(Colours()).dataset
    figures = measure(protocol, what, tmp_path)
    order = np.random.default_rng(42).permutation(48).tolist()
    loader = Loader(Subset(train, order[:43]), 8, views=protocol.train_view(what, 16), sampler=EndlessOrder(43, 40, 0))
    loader.bind(0, "train", is_even=True)
    loader.prepare(CPU)
    batches = [batch for epoch in range(2) for _, batch in loader.batches(epoch)]
    features, view = Features(what, protocol.features), protocol.test_view(what, 16)

    def judged(head, name, dataset):
        images, labels = zip(*((view(image), label) for image, label in dataset), strict=True)
        return float((head(features(torch.stack(images))[name]).argmax(1) == torch.tensor(labels)).double().mean())

    factors = [*np.linspace(0, 1, 5), *(1 + np.cos(np.linspace(0, np.pi, 5))) / 2]
    trainer, first = trainers[0]
    for name, figure in zip(protocol.features, figures, strict=True):
        found = []
        for number, (rate, decay) in enumerate([(0.1, 0.0), (0.1, 0.5), (3.0, 0.0), (3.0, 0.5)]):
            keys = [f"heads.linears.{name}.{number}.{part}" for part in ("weight", "bias")]
            head = nn.Linear(*reversed(first[keys[0]].shape))
            head.load_state_dict({"weight": first[keys[0]], "bias": first[keys[1]]})
            groups = [{"params": [head.weight], "weight_decay": decay}, {"params": [head.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
            for (images, labels), factor in zip(batches, factors, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = factor * rate * 8 / 256
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(features(images)[name]), labels).backward()
                optimizer.step()
            for key, value in zip(keys, head.parameters(), strict=True):
                torch.testing.assert_close(trainer.module.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)
            on_tenth, on_test = (
                judged(head, name, Subset(train, order[43:])),
                judged(head, name, LabelledSet.of(TEST).dataset),
            )
            found.append((on_tenth, on_test, {"lr": rate, "weight_decay": decay}))
        _, accuracy, setting = max(found, key=lambda one: one[0])
        assert (figure.features, figure.accuracy, figure.chosen) == (name, pytest.approx(accuracy), setting)
        assert [*figure.details["heads"].values()] == pytest.approx([on_tenth for on_tenth, _, _ in found])
    few = LabelledSet.of(Colours(9))
    with pytest.raises(
        ConfigError, match="^A tenth of the labelled training images is kept .* at least 10; there are 8"
    ):
        protocol.measure(what, few, few, 0, tmp_path / "few", CPU)


def test_first_weights_have_a_hundredth_as_standard_deviation(trainers, tmp_path):
    measure(dataclasses.replace(PRESETS["dinov2-linear"], iterations=1), subject(), tmp_path, epochs=1)
    _, first = trainers[0]
    assert len(first) == 2 * 52
    weights = torch.cat([value.flatten() for name, value in first.items() if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.01, rel=0.03)
    assert not any(value.any() for name, value in first.items() if name.endswith("bias"))


def mae_lars(parameters, momenta, rate):
    """A step of LARS as MAE has it: momentum 0.9, trust coefficient 0.001, biases unscaled."""
    for p, momentum in zip(parameters, momenta, strict=True):
        step = p.grad if p.ndim == 1 else p.grad * (0.001 * p.norm() / p.grad.norm())
        momentum.mul_(0.9).add_(step)
        p.data -= rate * momentum


def test_maes_probe_normalises_and_steps_by_lars(trainers, tmp_path):
    protocol, what = PRESETS["mae-linear"], subject(convolutions())
    measure(protocol, what, tmp_path, epochs=9)  # of 6 steps, so that the first 6 warm up
    trainer, first = trainers[0]
    head = nn.Linear(6, 3)
    head.load_state_dict({name: first[f"heads.linears.representation.0.{name}"] for name in ("weight", "bias")})
    momenta = [torch.zeros_like(p) for p in head.parameters()]
    for step, (images, labels) in enumerate(seen_batches(protocol, what, 9)):
        with torch.no_grad():
            features = what.network(images)
            features = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
        head.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        factor = step / 6 if step < 6 else 0.5 * (1 + math.cos(math.pi * (step - 6) / 48))
        mae_lars(list(head.parameters()), momenta, 0.1 * 8 / 256 * factor)
    learned = trainer.module["heads"].linears["representation"][0]
    torch.testing.assert_close(learned.weight, head.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learned.bias, head.bias, rtol=1e-5, atol=1e-6)


def test_the_network_is_not_changed_by_a_bit_and_no_checkpoint_holds_it(trainers, tmp_path):
    what = subject(convolutions())
    before = {name: value.clone() for name, value in what.network.state_dict().items()}
    measure(PRESETS["vissl-28"], what, tmp_path, epochs=2)
    after = what.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not what.network.training
    of_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {*trainers[0][0].state_dict()} == {
        *(f"module.heads.linears.representation.0.{name}" for name in ("weight", "bias")),
        *(f"module.heads.norms.representation.{name}" for name in of_norm),
    }
    decays = [(group["params"][0].ndim, group["weight_decay"]) for group in optimizer_of(trainers).param_groups]
    assert decays == [(2, 5e-4), (1, 0.0)]


def optimizer_of(trainers):
    return trainers[0][0].optim["optimizer"]


def test_an_interrupted_probe_goes_on_to_the_same_bits_and_a_finished_one_only_tells(trainers, tmp_path, monkeypatch):
    protocol = dataclasses.replace(PRESETS["dinov2-linear"], rates=(0.1, 1.0), iterations=5)
    expected = measure(protocol, subject(), tmp_path / "whole", epochs=2)

    def stop(trainer):
        if trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(LinearProbeTrainer, "after_fit_step", stop)
        with pytest.raises(Preempted):
            measure(protocol, subject(), tmp_path / "cut", epochs=2)
    assert measure(protocol, subject(), tmp_path / "cut", epochs=2) == expected
    whole, cut, again = (trainer for trainer, _ in trainers)
    assert cut.global_step == 7
    ends = [trainer.module.state_dict() for trainer in (whole, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    monkeypatch.setattr(LinearProbeTrainer, "compute_loss", None)
    assert measure(protocol, subject(), tmp_path / "cut", epochs=2) == expected
    with pytest.raises(ConfigError, match="about.subject"):
        measure(protocol, dataclasses.replace(subject(), digest="other"), tmp_path / "cut", epochs=2)


def test_a_figure_of_the_best_epoch_says_so(tmp_path):
    last, best = measure(PRESETS["simclr-90"], subject(), tmp_path, epochs=3)
    assert (last.name, best.name) == ("simclr-90, last epoch", "simclr-90, best epoch")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    accuracies = [record[key] for record in records if (key := "test/accuracy_representation_lr0.1") in record]
    assert len(accuracies) == 3
    assert (last.accuracy, best.accuracy) == (accuracies[-1], max(accuracies))
    assert best.chosen == {"epoch": 1 + accuracies.index(max(accuracies))}
    assert round(29 * last.accuracy) == pytest.approx(29 * last.accuracy)  # of 30 images, one has no label


def probe(folder, batch_size):
    protocol = dataclasses.replace(PRESETS["dinov2-linear"], rates=(0.1, 1.0), iterations=5)
    (figure,) = measure(protocol, subject(), folder, epochs=2, batch_size=batch_size)
    return figure.accuracy, figure.details


def test_two_ranks_give_what_one_gives(start_ranks, tmp_path):
    (accuracy, details), _ = start_ranks(probe, tmp_path / "two", 4).results()
    expected_accuracy, expected = probe(tmp_path / "one", 8)
    assert accuracy == expected_accuracy
    assert details["heads"] == expected["heads"]
    assert details["images per step"] == expected["images per step"] == 8
    learned, expected = (newest(tmp_path / name) for name in ("two", "one"))
    for name, value in expected.items():
        torch.testing.assert_close(learned[name], value, rtol=1e-5, atol=1e-6, msg=name)


def newest(folder):
    """The values of the modules in a run's newest checkpoint."""
    (path,) = folder.glob("checkpoints/step_00000010/state.pt")
    return torch.load(path, weights_only=True)["modules"]


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def vision_transformer():
    import timm  # here, because the other rank of a test need not wait for it

    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 1, "num_classes": 0}
    return timm.models.VisionTransformer(**options)


def test_rates_and_decays_per_layer_are_those_of_mae():
    network = vision_transformer()
    groups = layer_groups(network, blocks_of(network), 0.65)
    found = {}
    for group in param_groups({"backbone": network}, exclude_bias_norm=True, groups=groups):
        scale = groups.get(group.get("name"), {}).get("lr_scale", 1.0)
        found.update((id(p), (scale, group.get("weight_decay", 0.05))) for p in group["params"])
    for name, parameter in network.named_parameters():
        at = 4  # of 3 blocks, with the embedding below as layer 0 and the rest above as layer 4
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            at = 0
        elif name.startswith("blocks"):
            at = int(name.split(".")[1]) + 1
        decay = 0.0 if parameter.ndim == 1 or name in network.no_weight_decay() else 0.05
        assert found[id(parameter)] == pytest.approx((0.65 ** (4 - at), decay)), name


def test_drop_paths_rise_from_block_to_block_where_timm_has_them():
    network = vision_transformer()
    assert set_drop_path(network.blocks, 0.1)
    assert [block.drop_path2.drop_prob for block in network.blocks] == pytest.approx([0.0, 0.05, 0.1])
    assert not set_drop_path(blocks_of(ViT(16, 8, 12, 2, 1)), 0.1)


def test_fine_tuning_mixes_images_lowers_the_loss_and_leaves_the_subject_alone(trainers, tmp_path):
    what = subject(vision_transformer())
    before = {name: value.clone() for name, value in what.network.state_dict().items()}
    protocol = dataclasses.replace(PRESETS["mae-finetune"], rates=(0.05,))
    (figure,) = measure(protocol, what, tmp_path, epochs=12)
    (trainer, first), *_ = trainers
    assert figure.accuracy > 0.6
    assert trainer.mix.label_smoothing == 0.1
    assert all(torch.equal(what.network.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(first[f"backbone.{name}"], value) for name, value in before.items())
    learned = trainer.module.state_dict()
    assert not any(torch.equal(learned[name], first[name]) for name in first if name.endswith("weight"))
    assert figure.details["departures"] == [
        "epochs: 12 instead of 100", "images per step: 8 instead of 32", "size: 16 instead of 224",
        "precision: fp32 instead of fp16",
    ]  # fmt: skip


def test_fine_tuning_goes_on_to_the_same_bits_with_another_number_of_workers(trainers, tmp_path, monkeypatch):
    def tune(folder, **options):
        return measure(PRESETS["mae-finetune"], subject(vision_transformer()), folder, epochs=1, **options)

    def stop(trainer):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    expected = tune(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(FineTuningTrainer, "after_fit_step", stop)
        with pytest.raises(Preempted):
            tune(tmp_path / "cut")
    assert tune(tmp_path / "cut", workers=1) == expected
    (whole, _), (cut, _), (again, _) = trainers
    assert cut.global_step == 3
    ends = [trainer.module.state_dict() for trainer in (whole, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_networks_without_blocks_are_told_to_have_neither_layer_decay_nor_drop_path(tmp_path):
    notes = PRESETS["mae-finetune"].plan(subject(convolutions()), 3, 16, "fp32").notes
    assert [note.partition(":")[0] for note in notes] == ["no layer decay", "no drop path"]


# Samples --------------------------------------------------------------------------------------------------------------


def test_an_endless_order_has_all_samples_once_before_any_again():
    order, seen = EndlessOrder(10, 7, seed=3), []
    for epoch in range(10):
        order.set_epoch(epoch)
        seen += list(order)
    passes = [seen[at : at + 10] for at in range(0, 70, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 7


def test_a_share_of_the_labels_has_the_same_share_of_each_class():
    known = LabelledSet.of(Colours(200))
    share = sampled(known, 0.1, seed=1)
    assert share.labels.bincount().tolist() == (known.labels.bincount() / 10).round().tolist()
    assert [share.dataset[i][1] for i in range(len(share))] == share.labels.tolist()
    assert sampled(known, 2, seed=1).labels.bincount().tolist() == [2, 2, 2]
    assert share.dataset.indices != sampled(known, 0.1, seed=2).dataset.indices
    with pytest.raises(
        ConfigError, match="^1% of each class can't be taken of the 29 labelled images: the smallest class has"
    ):
        sampled(LabelledSet.of(TEST), 0.01, seed=1)


def test_a_step_has_as_many_images_as_there_are_if_the_page_wants_more(trainers, tmp_path):
    """The 48 images are five mini-batches of 9 images, and no step has a smaller group of them."""
    train = LabelledSet.of(Colours())
    (figure,) = PRESETS["mae-linear"].measure(
        subject(convolutions()), train, train, 0, tmp_path, CPU, size="native", batch_size=9, epochs=4
    )
    assert figure.details["images per step"] == 45
    assert "images per step: 45 instead of 16384" in figure.details["departures"]
    assert trainers[0][0].global_step == 4
    assert trainers[0][0].optim["optimizer"].param_groups[0]["initial_lr"] == pytest.approx(0.1 * 45 / 256)
    for batch_size, name, told in ((49, "mae-linear", "takes 49 images per step and process, together 49, and there are 48"),
                                   (7, "mae-finetune", "it must be even, since images are mixed in pairs")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"^--batch.*{told}"):
            PRESETS[name].measure(
                subject(), train, train, 0, tmp_path, CPU, size="native", batch_size=batch_size, epochs=1
            )


def test_a_head_whose_scores_are_no_numbers_finds_nothing():
    metric = HeadAccuracy([Head("class", 0.1), Head("class", 1.0)])
    scores = torch.stack([torch.eye(2), torch.full((2, 2), torch.nan)], dim=1)
    metric.update(scores, torch.tensor([0, 1]))
    assert metric.compute() == {"class_lr0.1": 1.0, "class_lr1": 0.0}
