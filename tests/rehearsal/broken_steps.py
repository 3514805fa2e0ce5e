"""Configurations that are sound to look at, but whose first step, evaluation or checkpoint shows that they are broken.

`STEPS` has, by a name, what is changed in one of the two healthy configurations, and the beginning of the one line that
the check must print for it: an error, unless the name ends in "(warning)".
"""

from __future__ import annotations

import copy
import sys
import threading
import urllib.request
from pathlib import Path

import torch
from torch import nn

from stable_ssl import BaseTrainer, BreakAllEpochs, BreakStep, JointEmbeddingTrainer, SupervisedTrainer
from stable_ssl.monitors import Monitor

HERE = Path(__file__).name


def pictures(number=12, channels=1, size=8, classes=10, kind="float32", labels="int64", copies=1, dark=0, step=0.01):
    """Noise with labels, the largest among the last samples; with `copies`, that many views of each, brighter by a step.

    The last `dark` images are 0 everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    images = (255 * torch.rand(number, channels, size, size, generator=generator)).to(getattr(torch, kind))
    images = images / 255 if images.is_floating_point() else images
    images[number - dark :] = 0
    targets = torch.arange(number) * classes // number
    if labels == "one-hot":
        targets = nn.functional.one_hot(targets, classes)
    elif labels == "unknown":
        targets = torch.where(targets == classes - 1, -1, targets)
    else:
        targets = targets.to(getattr(torch, labels))
    pairs = list(zip(images, targets, strict=True))
    if copies == 1:
        return [(image, target if target.ndim else target.numpy()[()]) for image, target in pairs]
    return [([image + step * view for view in range(copies)], int(target)) for image, target in pairs]


def node(target, *args, **kwargs):
    return {"_target_": target, **({"_args_": list(args)} if args else {}), **kwargs}


def linear(width_in, width_out):
    return node("torch.nn.Linear", in_features=width_in, out_features=width_out)


def flat(*layers):
    return node("torch.nn.Sequential", node("torch.nn.Flatten"), *layers)


def loader(**options):
    return node("stable_ssl.data.Loader", dataset=node("broken_steps.pictures", **options), batch_size=12)


def taught(student):
    return node("stable_ssl.modules.TeacherStudentModule", student=student)


def accuracy(classes, kind="MulticlassAccuracy"):
    return node(f"torchmetrics.classification.{kind}", **({"num_classes": classes} if classes else {}))


OPTIM = {"optimizer": node("torch.optim.SGD", lr=0.1), "epochs": 3}
VIT = node("stable_ssl.ViT", image_size=8, patch_size=4, dim=16, depth=1, num_heads=2, in_channels=1)
NARROW = node("stable_ssl.load_backbone", name="resnet9", in_channels=1, widths=[4, 4, 4, 4])


def supervised():
    return {
        "_target_": "stable_ssl.SupervisedTrainer",
        "data": {"train": loader(), "test": loader()},
        "module": {"backbone": flat(linear(64, 10))},
        "hardware": {"seed": 0},
        "optim": copy.deepcopy(OPTIM),
        "logger": {"metric": {"test": {"accuracy": accuracy(10)}}},
    }


def joint():
    return {
        "_target_": "stable_ssl.JointEmbeddingTrainer",
        "data": {"train": loader(copies=2), "test": loader(), "bank": loader()},
        "module": {
            "backbone": flat(linear(64, 12)),
            "projector": node("stable_ssl.MLP", sizes=[12, 16, 8]),
            "backbone_classifier": linear(12, 10),
            "projector_classifier": linear(8, 10),
        },
        "loss": node("stable_ssl.NTXEntLoss"),
        "hardware": {"seed": 0},
        "optim": copy.deepcopy(OPTIM),
        "logger": {
            "metric": {"test": {"accuracy": accuracy(10)}},
            "monitor": {
                "train": {"rankme": node("stable_ssl.monitors.RankMe")},
                "test": {"knn": node("stable_ssl.monitors.KNN", bank="bank", k=10)},
            },
        },
    }


def changed(config, changes):
    """Return a trainer's configuration with some keys set; a value of None removes its key."""
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = config
        for name in parents:
            part = part.setdefault(name, {})
        if value is None:
            part.pop(last, None)
        else:
            part[last] = copy.deepcopy(value)
    return config


# Trainers of a user's own, each with one fault -----------------------------------------------------------------------


class Unbounded(SupervisedTrainer):
    def compute_loss(self):
        return {"good": super().compute_loss()["loss"], "bad": self.predict().sum() * float("inf")}


class Decomposes(SupervisedTrainer):
    def compute_loss(self):
        return super().compute_loss()["loss"] + torch.linalg.svdvals(self.predict()).sum()


class Enqueues(SupervisedTrainer):
    """On CUDA, autocast gives these operations, and so the queue, the numbers that they have in fp32."""

    queue = torch.zeros(12, 10)

    def compute_loss(self):
        unit = nn.functional.normalize(self.predict())
        with torch.autocast("cuda", enabled=False):
            torch.linalg.svdvals(unit @ unit.T)
        self.queue.index_copy_(0, torch.arange(len(unit)), unit.detach())
        return nn.functional.mse_loss(unit.softmax(1).pow(2), torch.zeros_like(unit))


class Rooted(SupervisedTrainer):
    def compute_loss(self):  # the root of 0 has no finite slope
        return super().compute_loss()["loss"] + (self.module["backbone"][1].weight * 0).sum().sqrt()


class Contrasts(SupervisedTrainer):
    def compute_loss(self):
        return (super().compute_loss()["loss"] / self.batch[0].flatten(1).std(1)).mean()


class Detached(SupervisedTrainer):
    def compute_loss(self):
        return {"loss": super().compute_loss()["loss"].detach()}


class PerSample(SupervisedTrainer):
    def compute_loss(self):
        return self.predict().mean(1)


class Empty(SupervisedTrainer):
    def compute_loss(self):
        super().compute_loss()


class InPlace(SupervisedTrainer):
    def compute_loss(self):
        scores = self.predict().exp()
        squares = scores * scores
        scores += 1
        return squares.sum()


class Remembers(SupervisedTrainer):
    last = 0

    def compute_loss(self):
        self.last = 0.9 * self.last + super().compute_loss()["loss"]
        return self.last


class Misspelled(SupervisedTrainer):
    def compute_loss(self):
        return self.module["backbon"](self.batch[0]).sum()


class Flat(SupervisedTrainer):
    def compute_loss(self):
        return {"loss": 0 * self.predict().sum()}


class Speechless(BaseTrainer):
    def compute_loss(self):
        return self.module["backbone"](self.batch[0]).square().mean()


class Maps(SupervisedTrainer):
    def predict(self):
        return super().predict()[:, :, None, None].expand(-1, -1, 2, 2)

    def compute_loss(self):
        return nn.functional.cross_entropy(super().predict(), self.batch[1])


class AtFit(SupervisedTrainer):
    def before_fit(self):
        self.logger["path"].mkdir()


class AfterEpoch(SupervisedTrainer):
    def after_fit_epoch(self):
        self.log("ratio", 1 / self.batch_idx)


class AfterEval(SupervisedTrainer):
    def after_eval(self):
        self.best = max(self.best, 0.0)


class AtEnd(SupervisedTrainer):
    def after_fit(self):
        super().after_fit()
        open("/nonexistent/results.txt")


class Stops(SupervisedTrainer):
    def before_fit_step(self):
        raise BreakStep


class Ends(SupervisedTrainer):
    def after_fit_step(self):
        if self.stepped:
            raise BreakAllEpochs


class Exits(SupervisedTrainer):
    def after_fit_step(self):
        if self.stepped:
            sys.exit()


class Reports(SupervisedTrainer):
    def before_fit(self):
        urllib.request.urlopen("http://192.0.2.1/begun", timeout=1)


class Gathers(SupervisedTrainer):
    """Needs the whole evaluation set, which is larger than a batch."""

    def after_eval_step(self):
        self.seen = [*(getattr(self, "seen", [])), len(self.batch[1])]

    def after_eval(self):
        assert sum(self.seen) == 24, "some are missing"


class Halves(JointEmbeddingTrainer):
    """Takes the loader's batch size for that of each batch, which is no fault of the run."""

    def compute_loss(self):
        size, views = self.data["train"].batch_size, torch.cat(self.views()).flatten(1)
        return super().compute_loss() | {"loss_views": self.loss(views[:size], views[size:])}


class Skips(SupervisedTrainer):
    def before_eval(self):
        raise BreakStep


class Optimizes(SupervisedTrainer):
    def before_fit(self):
        self.optim["optimizer"] = torch.optim.SGD(self.module.parameters(), lr=1)


class Forgets(SupervisedTrainer):
    seen = 0

    def after_fit_step(self):
        self.seen += 1

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.sen = state["seen"]


class Unsaved(SupervisedTrainer):
    def get_extra_state(self):
        return {"kind": Unsaved}

    def set_extra_state(self, state):
        pass


class Locked(SupervisedTrainer):
    def get_extra_state(self):
        return {"lock": threading.Lock()}

    def set_extra_state(self, state):
        pass


class Late(SupervisedTrainer):
    def before_fit(self):
        self.module["head"] = nn.Linear(2, 2).requires_grad_(False)


class Attribute(SupervisedTrainer):
    def _instanciate(self):
        self.mean = 0.0

    def after_fit_step(self):
        self.mean = 0.9 * self.mean + 0.1


class Centres(SupervisedTrainer):
    """The last scores are no state, since each step sets them before it reads them."""

    def _instanciate(self):
        self.centre, self.scores, self.queue = None, None, []

    def compute_loss(self):
        self.scores = self.predict().detach()
        self.queue.append(self.scores)
        mean = self.scores.mean(0)
        self.centre = mean if self.centre is None else 0.9 * self.centre + 0.1 * mean
        return super().compute_loss()


class PlainLoss:
    count = torch.zeros(1)

    def __call__(self, scores, labels):
        self.count = self.count + 1
        return nn.functional.cross_entropy(scores, labels)


class Freezes(SupervisedTrainer):
    def before_eval(self):
        self.module["backbone"].requires_grad_(False)


class Teaches(SupervisedTrainer):
    def prepare_modules(self, modules):
        modules["teacher"] = modules["backbone"]


class Alone(SupervisedTrainer):
    """It trains a module by an optimizer of its own."""

    def before_fit(self):
        self.other = torch.optim.Adam(self.module["head"].parameters())

    def after_fit_step(self):
        with torch.enable_grad():
            self.module["head"](torch.ones(1, 4)).sum().backward()
        self.other.step()


class Schedules(SupervisedTrainer):
    def after_fit_step(self):
        self.optim["scheduler"].step()


class Evaluates(SupervisedTrainer):
    def before_fit_epoch(self):
        self.module["backbone"].eval()


class Trains(SupervisedTrainer):
    def before_eval(self):
        self.train()


class Collapsed(JointEmbeddingTrainer):
    def initialize_modules(self):
        for parameter in self.module["backbone"].parameters():
            nn.init.zeros_(parameter)


class Greedy(nn.Module):
    """A loss that needs many samples."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, scores, labels):
        if len(scores) < self.least:
            raise ValueError(f"Needs at least {self.least} samples, not {len(scores)}.")
        return nn.functional.cross_entropy(scores, labels)


class Means(SupervisedTrainer):
    """Its loss needs a sample of each class."""

    def compute_loss(self):
        images, labels = self.batch
        outputs = self.module["backbone"](images)
        return torch.stack([outputs[labels == label].mean() for label in range(10)]).square().mean()


class Synchronizes(SupervisedTrainer):
    def before_fit_step(self):
        torch.cuda.synchronize()


class Many(Monitor):
    def compute(self, trainer):
        raise ValueError("20 samples are needed.")


class Typo(Monitor):
    def compute(self, trainer):
        return trainer.latest_embedding.mean()


class Falling:
    """The factors of a schedule, which are too few."""

    def __call__(self, step):
        return [1.0][step]


class Positions(nn.Module):
    """A layer with position embeddings for another number of patches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 4, 4, 4)
        self.positions = nn.Parameter(torch.zeros(1, 16, 4))
        self.head = nn.Linear(4, 10)

    def forward(self, images):
        return self.head((self.embed(images).flatten(2).mT + self.positions).mean(1))


def own(name, **changes):
    """Return changes that take a trainer of this file, in a healthy supervised run."""
    return supervised, {"_target_": f"broken_steps.{name}", **changes}


def place(text):
    """Return where a line of this file is, as the check names it."""
    number = next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)
    return f"{HERE}:{number}."


BYOL = {
    "_target_": "stable_ssl.SelfDistillationTrainer",
    "loss": node("stable_ssl.losses.NegativeCosineSimilarity"),
    "module.backbone": taught(flat(linear(64, 12))),
    "module.projector": taught(linear(12, 8)),
    "module.predictor": linear(8, 8),
}
MASKED = {
    "_target_": "stable_ssl.trainers.MaskedTrainer",
    "loss": node("stable_ssl.losses.MAELoss"),
    "data.train": node(
        "stable_ssl.data.Loader",
        dataset=node("broken_steps.pictures", kind="uint8"),
        batch_size=12,
        views=node("stable_ssl.augmentations.MAEViews", size=8, patch_size=4, mean=[0.5], std=[0.5]),
    ),
    "module.projector": None,
    "module.projector_classifier": None,
    "module.backbone": VIT,
    "module.backbone_classifier": linear(16, 10),
    "module.decoder": node(
        "stable_ssl.modules.PatchPredictor", grid=[2, 2], dim=16, out_dim=16, hidden_dim=8, num_heads=2
    ),
}
SWAV = {
    "_target_": "stable_ssl.trainers.ClusteringTrainer",
    "loss": node("stable_ssl.losses.SwAVLoss", dim=8, num_prototypes=6),
}

STEPS = {
    # Widths between modules
    "a head is wider than its input": (
        supervised, {"module.backbone": flat(linear(100, 10))},
        "module.backbone.1 (Linear) takes 100 values per sample, but gets 64: float32 (2, 64). "
        "Set module.backbone._args_[1].in_features to 64.",
    ),
    "a projector is wider than the backbone's output": (
        joint, {"module.projector.sizes": [512, 16, 8]},
        "module.projector.0 (Linear) takes 512 values per sample, but gets 12 from module.backbone: float32 (4, 12). "
        "Set module.projector.sizes[0] to 12.",
    ),
    "a probe is wider than the representations": (
        joint, {"module.backbone_classifier": linear(16, 10)},
        "module.backbone_classifier (Linear) takes 16 values per sample, but gets 12",
    ),
    "a probe is wider than the embeddings": (
        joint, {"module.projector_classifier": linear(16, 10)},
        "module.projector_classifier (Linear) takes 16 values per sample, but gets 8",
    ),
    "a predictor is wider than the embeddings": (
        joint, {**BYOL, "module.predictor": linear(9, 8)},
        "module.predictor (Linear) takes 9 values per sample, but gets 8: float32 (4, 8). "
        "Set module.predictor.in_features to 8.",
    ),
    "a predictor's output is not as wide as the teacher's": (
        joint, {**BYOL, "module.predictor": linear(8, 7)},
        "NegativeCosineSimilarity needs two embeddings of the same shape (batch, dim), but got (2, 7) and (2, 8).",
    ),
    "a student's projector is wider than its backbone's output": (
        joint, {**BYOL, "module.projector": taught(linear(13, 8))},
        "module.projector.student (Linear) takes 13 values per sample, but gets 12",
    ),
    "a loss is for other embeddings": (
        joint, {**SWAV, "loss.dim": 128}, "SwAVLoss was built for embeddings of width 128, but got width 8: set loss.dim to 8",
    ),
    "a queue is for other embeddings": (
        joint, {**BYOL, "module.predictor": None, "loss": node("stable_ssl.losses.MoCoLoss", dim=128, queue_size=32)},
        "MoCoLoss was built for embeddings of width 128, but got width 8: set loss.dim to 8",
    ),
    "a decoder is for other tokens": (
        joint, {**MASKED, "module.decoder.dim": 24},
        "module.decoder.embed (Linear) takes 24 values per sample, but gets 16",
    ),
    "a decoder predicts patches of another size": (
        joint, {**MASKED, "module.decoder.out_dim": 48}, "MAELoss",
    ),
    "a normalisation is for another width": (
        supervised, {"module.backbone": flat(linear(64, 32), node("torch.nn.BatchNorm1d", num_features=16))},
        "module.backbone.2 (BatchNorm1d) takes 16 values, but gets 32: float32 (2, 32). "
        "Set module.backbone._args_[2].num_features to 32.",
    ),
    "a layer normalisation is for another width": (
        supervised, {"module.backbone": flat(node("torch.nn.LayerNorm", normalized_shape=32), linear(64, 10))},
        "module.backbone.1 (LayerNorm) takes 32 values, but gets 64",
    ),
    # Channels, sizes and kinds of images
    "images have other channels": (
        supervised, {"module.backbone": {**NARROW, "in_channels": 3, "num_classes": 10}},
        "module.backbone.features.0.0 (Conv2d) takes 3 channels, but gets 1: float32 (2, 1, 8, 8). Set module.backbone.in_channels to 1.",
    ),
    "images of a transformer have other channels": (
        supervised, {"module.backbone": {**VIT, "in_channels": 3, "num_classes": 10}},
        "module.backbone.embed (Conv2d) takes 3 channels, but gets 1: float32 (2, 1, 8, 8). Set module.backbone.in_channels to 1.",
    ),
    "a test set has other channels": (
        supervised, {"module.backbone": {**NARROW, "num_classes": 10}, "data.test": loader(channels=3)},
        "data.test: its images have 3 channels, but those of data.train have 1, as module.backbone.features.0.0 (Conv2d) takes.",
    ),
    "patches do not divide the images": (
        supervised, {"module.backbone": {**VIT, "num_classes": 10}, "data.train": loader(size=10)},
        "module.backbone: patch_size: 4 does not divide the size of views of 10 × 10 pixels.",
    ),
    "positions are for other images": (
        supervised, {"module.backbone": node("broken_steps.Positions")},
        "compute_loss(): RuntimeError: The size of tensor a (4) must match the size of tensor b (16) at non-singleton "
        "dimension 1. In module.backbone (Positions), which got float32 (12, 1, 8, 8). At " + place("self.positions).mean"),
    ),
    "images are too small": (
        supervised, {"module.backbone": node("torch.nn.Sequential", node("torch.nn.Conv2d", 1, 4, 9), node("torch.nn.Flatten"))},
        "module.backbone.0 (Conv2d) gets float32 (2, 1, 8, 8), which are fewer pixels than it needs.",
    ),
    "a head gets maps of features": (
        joint, {"module.backbone": node("torch.nn.Conv2d", 1, 12, 3), "module.projector": node("torch.nn.BatchNorm1d", 12)},
        "module.projector (BatchNorm1d) got float32 (4, 12, 6, 6) from module.backbone, which has another number of dimensions",
    ),
    "a linear head gets maps of features": (
        supervised,
        {"module.backbone": node("torch.nn.Sequential", node("torch.nn.Conv2d", 1, 12, 3), linear(12, 10))},
        "module.backbone.1 (Linear) got float32 (2, 12, 6, 6), which has another number of dimensions than it takes.",
    ),
    "a loss gets maps of features": (
        joint, {"module.backbone": node("torch.nn.Conv2d", 1, 12, 3), "module.projector": node("torch.nn.Identity")},
        "NTXEntLoss needs two embeddings of the same shape (batch, dim), but got (2, 12, 6, 6)",
    ),
    "a convolution gets vectors": (
        supervised, {"module.backbone": flat(node("torch.nn.Conv2d", 1, 4, 3))},
        "module.backbone.1 (Conv2d) got float32 (2, 64), which has another number of dimensions than it takes.",
    ),
    "images are not floating point": (
        supervised, {"data.train": loader(kind="uint8")}, "module.backbone.1 (Linear) takes float32, but gets uint8.",
    ),
    "images are of double precision": (
        supervised, {"data.train": loader(kind="float64")}, "module.backbone.1 (Linear) takes float32, but gets float64.",
    ),
    "a training set has one view": (
        joint, {"data.train": loader()}, "JointEmbeddingTrainer needs 2 views of each image",
    ),
    "a training set has a list of views": (
        supervised,
        {"data.train": loader(copies=2)},
        "module.backbone.0 (Flatten) takes one tensor, but gets a list: [float32 (2, 1, 8, 8), float32 (2, 1, 8, 8)].",
    ),
    # Classes
    "a network has too few classes": (
        supervised, {"module.backbone": flat(linear(64, 5))},
        "module.backbone: the labels go up to 9, but it gives 5 scores, for labels from 0 to 4. "
        "Set module.backbone._args_[1].out_features to 10 or more",
    ),
    "a probe has too few classes": (
        joint, {"module.projector_classifier.out_features": 3},
        "module.projector_classifier: the labels go up to 9, but it gives 3 scores, for labels from 0 to 2. "
        "Set module.projector_classifier.out_features to 10 or more",
    ),
    "a metric has too few classes": (
        supervised, {"logger.metric.test.accuracy.num_classes": 5},
        "logger.metric.test.accuracy: num_classes is 5, but predict() gives 10 scores. Make the two equal.",
    ),
    "a metric is for two classes": (
        supervised, {"logger.metric.test.accuracy": accuracy(None, "BinaryAccuracy")},
        "logger.metric.test.accuracy: it can't take predictions float32 (2, 10) and labels int64 (2,)",
    ),
    "a metric gets maps": (
        *own("Maps"), "logger.metric.test.accuracy: it can't take predictions float32 (2, 10, 2, 2)",
    ),
    "some labels are unknown": (
        supervised, {"data.train": loader(labels="unknown"), "loss": node("torch.nn.NLLLoss")},
        "compute_loss(): a label is -1, which stands for no label.",
    ),
    "labels are floating point": (
        supervised, {"data.train": loader(labels="float32")},
        "compute_loss(): the loss takes labels int64 (batch,), but they are",
    ),
    "labels are of one hot": (
        supervised, {"data.train": loader(labels="one-hot")},
        "compute_loss(): the loss takes labels int64 (batch,), but they are int64 (2, 10).",
    ),
    # The loss
    "a part of the loss is infinite": (*own("Unbounded"), "compute_loss(): not finite in step 1: bad "),
    "a rate is too large": (
        supervised,
        {"data.train": loader(number=24), "optim.optimizer.lr": 1e38},
        "compute_loss(): not finite in step 2: loss nan. Step 1 was finite: is optim.optimizer.lr too large?",
    ),
    "a gradient is not finite": (*own("Rooted"), "The loss of the first step is finite, but not the gradients of module.backbone.1.weight."),
    "the loss is detached": (*own("Detached"), "Detached.compute_loss() returned"),
    "there is a loss per sample": (*own("PerSample"), "PerSample.compute_loss() returned float32 (2,)"),
    "the loss is not returned": (*own("Empty"), "Empty.compute_loss() returned None"),
    "the loss is constant (warning)": (*own("Flat"), "All gradients are 0 in the first step"),
    "an operation changes what the backward pass needs": (*own("InPlace"), "The backward pass: RuntimeError: one of the variables needed for gradient"),
    "a loss keeps the graph of the step before": (
        *own("Remembers", **{"data.train": loader(number=24)}),
        "The backward pass: RuntimeError: Trying to backward through the graph a second time",
    ),
    "a module's name is misspelled": (
        *own("Misspelled"), "compute_loss(): KeyError: 'backbon'. At " + place('["backbon"]'),
    ),
    # Samples after those of the first step
    "a later label is too large": (
        supervised,
        {"module.backbone": flat(linear(64, 9)), "data.train": loader(number=24), "logger.metric": {}},
        "module.backbone: the labels go up to 9, but it gives 9 scores, for labels from 0 to 8. "
        "Set module.backbone._args_[1].out_features to 10 or more, or count the labels from 0. "
        "So it is with sample 22 of data.train, and not with those of the first step.",
    ),
    "a later image has no contrast": (
        *own("Contrasts", **{"data.train": loader(number=24, dark=1)}),
        "compute_loss(): not finite: loss inf. Mend the sample or leave it out, or have the loss be finite for it. "
        "So it is with sample 23 of data.train",
    ),
    # Half precision
    "a decomposition is asked for in half precision (warning)": (
        *own("Decomposes", **{"hardware.precision": "bf16"}),
        "hardware.precision: bf16: compute_loss() fails if it is tried in bf16 on the CPU, and not in fp32: "
        "NotImplementedError: \"linalg_svd_cpu\" not implemented for 'BFloat16'. At " + place("svdvals("),
    ),
    # Hooks
    "before_fit": (*own("AtFit"), "before_fit(): LoggerConfig has no field 'path'. Did you mean 'dump_path'? At " + place("mkdir()")),
    "after_fit_epoch (warning)": (*own("AfterEpoch"), "after_fit_epoch(): ZeroDivisionError: division by zero. At " + place("1 / self.batch_idx")),
    "after_eval": (*own("AfterEval"), "after_eval(): AttributeError: 'AfterEval' object has no attribute 'best'. At " + place("self.best, 0.0")),
    "a hook needs the whole evaluation (warning)": (
        *own("Gathers", **{"data.test": loader(number=24)}),
        "after_eval(): AssertionError: some are missing. At " + place('"some are missing"') + " With all mini-batches of an epoch it may work.",
    ),
    "after_fit": (*own("AtEnd"), "after_fit(): FileNotFoundError: [Errno 2] No such file or directory: '/nonexistent/results.txt'. At " + place("open(")),
    "a hook breaks each step (warning)": (*own("Stops"), "No optimizer step was taken, since hooks have broken off"),
    "a hook ends training (warning)": (
        *own("Ends"), "A hook ends the whole training by BreakAllEpochs after 1 step, at " + place("raise BreakAllEpochs"),
    ),
    "a hook ends the process": (*own("Exits"), "after_fit_step(): SystemExit"),
    "a hook reaches another machine (warning)": (*own("Reports"), "before_fit(): it reaches another machine, which a check doesn't"),
    "a hook breaks what it can't": (*own("Skips"), "BreakStep was raised in a hook that can't use it"),
    "a hook replaces the optimizer": (*own("Optimizes"), "optim.optimizer: a hook replaced it after the set-up."),
    "a hook freezes for good (warning)": (*own("Freezes"), "Trained in the first step, but frozen after the evaluation: module.backbone.*."),
    "a hook evaluates while it trains (warning)": (
        *own("Evaluates", **{"module.backbone": flat(linear(64, 10), node("torch.nn.BatchNorm1d", 10))}),
        "In training mode of the run, these are in evaluation mode: module.backbone.2.",
    ),
    "a hook trains while it evaluates (warning)": (
        *own("Trains", **{"module.backbone": flat(node("torch.nn.Dropout"), linear(64, 10))}), "In evaluation mode of the run",
    ),
    # Evaluation
    "nothing represents": (
        *own("Speechless", **{"logger.metric": {}, "data.bank": loader(), "logger.monitor.test.knn": node("stable_ssl.monitors.KNN", bank="bank", k=3)}),
        "logger.monitor.test.knn: Speechless does not implement forward().",
    ),
    "a monitor asks for what is not there": (
        joint, {"logger.monitor.test.typo": node("broken_steps.Typo")},
        "logger.monitor.test.typo: AttributeError",
    ),
    "a monitor needs many samples (warning)": (
        supervised,
        {"logger.monitor.test.many": node("broken_steps.Many")},
        "logger.monitor.test.many: ValueError: 20 samples are needed. At "
        + place('ValueError("20')
        + " With more than 12 samples it may work.",
    ),
    "RankMe has nothing to look at": (
        supervised, {"logger.monitor.train.rankme": node("stable_ssl.monitors.RankMe")}, "logger.monitor.train.rankme: ",
    ),
    "nearest neighbours have no labels": (
        joint, {"data.test": loader(labels="float32"), "logger.metric": {}}, "logger.monitor.test.knn: KNN needs batches [images, labels]",
    ),
    # Gradients
    "a module is not used (warning)": (
        supervised, {"module.head": linear(4, 4)}, "No gradient reaches module.head.* in the first step",
    ),
    "a network is constant (warning)": (
        joint, {"_target_": "broken_steps.Collapsed"}, "self.latest_representations are the same for all samples",
    ),
    # What no figure shows
    "views are equal (warning)": (
        joint, {"data.train": loader(copies=2, step=0)}, "data.train: views 1 and 2 are equal for all images of the first batch",
    ),
    "a teacher is the student (warning)": (
        *own("Teaches"), "module.teacher: it has the parameters of another module, such as module.backbone.1.weight",
    ),
    # The schedule, and the checkpoint
    "a schedule has no such step": (
        supervised, {"optim.scheduler": node("torch.optim.lr_scheduler.LambdaLR", lr_lambda=node("broken_steps.Falling"))},
        "optim.scheduler: IndexError: list index out of range. At " + place("return [1.0][step]"),
    ),
    "a hook moves the schedule on (warning)": (
        *own("Schedules", **{"optim.scheduler": node("torch.optim.lr_scheduler.StepLR", step_size=9)}),
        "optim.scheduler: it has moved on 2 times in 1 step.",
    ),
    "a schedule is over too early (warning)": (
        supervised, {"optim.epochs": 50, "optim.scheduler": node("torch.optim.lr_scheduler.MultiStepLR", milestones=[5, 8])},
        "optim.scheduler: after 8 of 50 steps the rate is 0.001 for good.",
    ),
    "a schedule is far too long (warning)": (
        supervised, {"optim.scheduler": node("stable_ssl.schedulers.LinearWarmupCosineAnnealing", total_steps=6)},
        "optim.scheduler.total_steps: 6, but the run has 3 optimizer steps, so it ends long before its schedule.",
    ),
    "a state is not restored (warning)": (*own("Forgets"), "A resumed run would not go on as it was: modules._extra_state.seen"),
    "a state is no number": (*own("Unsaved"), "No checkpoint can hold modules._extra_state.kind (type)."),
    "a state can't be written": (*own("Locked"), "No checkpoint can hold modules._extra_state.lock (lock)."),
    "a module is made late (warning)": (*own("Late"), "The run can't be resumed, since its checkpoint can't be read back: Unexpected key(s) in state_dict: "
        '"module.head.weight", "module.head.bias". Make modules, parameters and buffers in prepare_modules(modules), or in the trainer\'s constructor. A run that nothing interrupts ends'),
    "a number is not saved (warning)": (*own("Attribute"), "A resumed run begins with the first value of self.mean again"),
    "tensors are not saved (warning)": (
        *own("Centres", loss=node("broken_steps.PlainLoss")),
        "A resumed run begins with the first value of self.centre, self.queue, self.loss.count again",
    ),
    "an optimizer is not saved (warning)": (
        *own("Alone", **{"module.head": linear(4, 1)}), "A resumed run begins self.other anew",
    ),
    # The number of samples
    "a loss needs more samples than a batch has": (
        supervised, {"loss": node("broken_steps.Greedy", least=13)}, "compute_loss(): ValueError: Needs at least 13 samples, not 12. In loss (Greedy), which got float32 (12, 10), int64 (12,). At ",
    ),
}  # fmt: skip
