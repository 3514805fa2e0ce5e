"""Methods in which a student learns from a teacher: MoCo v2, BYOL, SimSiam and DINO."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from lightly import loss as lightly_loss
from lightly.models import utils
from lightly.models.modules import heads
from torch import Tensor, nn

from stable_ssl import losses, modules, trainers

from .sides import BATCH, BATCHES, DIM, SIZE, Sides, by_size, convnet, frozen_copy, momentum_at, newest_first, views

MOMENTUM = 0.9


def follow(students: dict[str, nn.Module], teachers: dict[str, nn.Module], momentum: float) -> None:
    """Have teachers follow right after the optimizer step (lightly: at the start of the next step)."""
    for name, teacher in teachers.items():
        utils.update_momentum(students[name], teacher, m=momentum)


def wrapped(final: float, **networks: nn.Module) -> dict[str, nn.Module]:
    """Return our networks, each with a teacher whose momentum goes from `MOMENTUM` to `final`."""
    wrap = functools.partial(modules.TeacherStudentModule, base_ema_coefficient=MOMENTUM, final_ema_coefficient=final)
    return {name: wrap(network.double()) for name, network in networks.items()}


def moco(symmetric: bool = False) -> Sides:
    """benchmarks/imagenet/resnet50/mocov2.py: the query of one view, the key of the other, a queue of four batches.

    If symmetric, as in the authors' moco_cifar10_demo.ipynb: both views are queries and keys, with one queue.
    """
    size, num_keys = 4 * BATCH, (1 + symmetric) * BATCH
    backbone, head = convnet(), heads.MoCoProjectionHead(DIM, 32, 8).double()
    student = {"backbone": copy.deepcopy(backbone), "projector": head}
    teacher = {name: frozen_copy(part) for name, part in student.items()}
    ours = losses.MoCoLoss(dim=8, queue_size=size, temperature=0.2).double()
    criterion = lightly_loss.NTXentLoss(temperature=0.2, memory_bank_size=(size, 8)).double()
    # The keys that ours drops first are those that lightly's ring overwrites first.
    criterion.memory_bank.bank = torch.cat(ours.queue.clone().split(num_keys)[::-1])

    def keys_of(view: Tensor) -> Tensor:
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(view)
            return utils.batch_unshuffle(teacher["projector"](teacher["backbone"](shuffled)), order)

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        if not symmetric:
            return criterion(head(student["backbone"](batch[0])), keys_of(batch[1]))
        queries = [nn.functional.normalize(head(student["backbone"](view))) for view in batch]
        keys = [nn.functional.normalize(keys_of(view)) for view in batch]
        negatives, _ = criterion.memory_bank.bank.clone(), criterion.memory_bank(torch.cat(keys), update=True)
        losses = []
        for query, key in zip(queries, reversed(keys), strict=True):
            scores = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], dim=1) / 0.2
            losses.append(nn.functional.cross_entropy(scores, torch.zeros(BATCH, dtype=torch.long)))
        return sum(losses) / 2

    return Sides(
        trainers.SelfDistillationTrainer,
        wrapped(MOMENTUM, backbone=backbone, projector=modules.MoCoProjector(DIM, 32, 8)),
        ours,
        views(),
        student=student,
        teacher=teacher,
        step_loss=step_loss,
        state=lambda loss: {"queue": (loss.queue, newest_first(criterion.memory_bank, num_keys))},
        after_step=lambda step: follow(student, teacher, MOMENTUM),
        options={"symmetric": symmetric},
    )


def byol() -> Sides:
    """benchmarks/imagenet/resnet50/byol.py with the paper's momentum and loss, and the authors' heads.

    The authors' heads have a bias before the batch normalisation and none at the end; lightly's are the other way
    round. lightly's momentum reaches its final value one step earlier, and its loss is four less than the authors'.
    """

    def head(width: int) -> nn.Module:
        return heads.ProjectionHead([(width, 32, nn.BatchNorm1d(32), nn.ReLU(), True), (32, 8, None, None, False)])

    backbone, projection, prediction = convnet(), head(DIM).double(), head(8).double()
    student = {"backbone": copy.deepcopy(backbone), "projector": projection, "predictor": prediction}
    teacher = {name: frozen_copy(student[name]) for name in ("backbone", "projector")}
    criterion = lightly_loss.NegativeCosineSimilarity()

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        with torch.no_grad():
            t0, t1 = (teacher["projector"](teacher["backbone"](view)) for view in batch)
        s0, s1 = (prediction(projection(student["backbone"](view))) for view in batch)
        return 2 + 2 * criterion(t0, s1) + 2 + 2 * criterion(t1, s0)

    ours = wrapped(1.0, backbone=backbone, projector=modules.BYOLProjector(DIM, 32, 8))
    return Sides(
        trainers.SelfDistillationTrainer,
        {**ours, "predictor": modules.BYOLPredictor(8, 32, 8)},
        losses.BYOLLoss(),
        views(),
        student=student,
        teacher=teacher,
        step_loss=step_loss,
        after_step=lambda step: follow(student, teacher, momentum_at(step, MOMENTUM)),
    )


def simsiam() -> Sides:
    """examples/pytorch/simsiam.py: the mean of both directions, without a teacher."""
    backbone = convnet()
    hidden = [(width, 32, nn.BatchNorm1d(32), nn.ReLU()) for width in (DIM, 32)]
    projection = heads.ProjectionHead([*hidden, (32, 8, nn.BatchNorm1d(8, affine=False), None)]).double()
    prediction = heads.SimSiamPredictionHead(8, 4, 8).double()
    reference = copy.deepcopy(backbone)
    criterion = lightly_loss.NegativeCosineSimilarity()

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        z0, z1 = (projection(reference(view)) for view in batch)
        p0, p1 = prediction(z0), prediction(z1)
        return 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))

    return Sides(
        trainers.SelfDistillationTrainer,
        {
            "backbone": backbone,
            "projector": modules.SimSiamProjector(DIM, 32, 8),
            "predictor": modules.SimSiamPredictor(8, 4),
        },
        losses.NegativeCosineSimilarity(),
        views(),
        student={"backbone": reference, "projector": projection, "predictor": prediction},
        step_loss=step_loss,
    )


def dino(with_vit: bool = True) -> Sides:
    """benchmarks/imagenet/{vitb16,resnet50}/dino.py with two global and two local views, and BYOL's momentum.

    Views are joined as in the authors' utils.py. The last layer is frozen in epoch 0. The loss warms up the teacher's temperature, as in examples/pytorch/dino.py.
    """
    warm, last, warm_epochs = 0.03125, 0.0625, 3  # lightly rounds temperatures to float32; these are exact there
    backbone = modules.ViT(SIZE, 4, DIM, depth=2, num_heads=2).double() if with_vit else convnet()
    projector = modules.DINOHead(DIM, out_dim=20, hidden_dim=32, bottleneck_dim=8)
    projection = heads.DINOProjectionHead(DIM, 32, 8, 20, batch_norm=False, freeze_last_layer=1).double()
    student = {"backbone": copy.deepcopy(backbone), "projector": projection}
    # `deepcopy` can't copy the head: its last layer's weight is computed.
    teacher = {"backbone": frozen_copy(backbone), "projector": heads.DINOProjectionHead(DIM, 32, 8, 20).double()}
    teacher["projector"].requires_grad_(False)
    criterion = lightly_loss.DINOLoss(
        output_dim=20, warmup_teacher_temp=warm, teacher_temp=last, warmup_teacher_temp_epochs=warm_epochs
    ).double()

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        with torch.no_grad():
            targets = teacher["projector"](by_size(teacher["backbone"], batch[:2])).chunk(2)
        scores = projection(by_size(student["backbone"], batch)).chunk(len(batch))
        return criterion(list(targets), list(scores), epoch=step // BATCHES)

    def state(loss: Any) -> dict[str, tuple[Any, Any]]:
        return {"centre": (loss.center, criterion.center)}

    return Sides(
        trainers.DINOTrainer,
        wrapped(1.0, backbone=backbone, projector=projector),
        None,
        views(num_local=2),
        student=student,
        teacher=teacher,
        step_loss=step_loss,
        state=state,
        before_step=lambda step: projection.cancel_last_layer_gradients(step // BATCHES),
        after_step=lambda step: follow(student, teacher, momentum_at(step, MOMENTUM)),
        options={
            "warmup_temperature_teacher": warm,
            "temperature_teacher": last,
            "warmup_epochs_temperature_teacher": warm_epochs,
            "freeze_prototypes_epochs": 1,
        },
    )
