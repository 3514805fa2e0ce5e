"""Methods whose views all go through one network: SimCLR, Barlow Twins, VICReg, LeJEPA and SwAV."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly import loss as lightly_loss
from lightly.models.modules import heads
from lightly.models.modules.memory_bank import MemoryBankModule
from torch import Tensor, nn

from stable_ssl import losses, modules, trainers

from .sides import BATCH, BATCHES, DIM, Sides, by_size, convnet, newest_first, views


def two_views(
    ours: nn.Module,
    theirs: nn.Module,
    projector: nn.Module,
    head: nn.Module,
    scale: float = 1.0,
    batch_norm: bool = True,
    together: bool = False,
    **options: Any,
) -> Sides:
    """lightly's examples/pytorch/{simclr,vicreg,barlowtwins}.py, with a forward pass for each view.

    With `together`, both views go through the networks at once, as in benchmarks/imagenet/resnet50/simclr.py and in the
    authors' tf2/model.py.
    """
    backbone = convnet(batch_norm)
    reference = copy.deepcopy(backbone)
    head.double()

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        if together:
            return scale * theirs(*head(reference(torch.cat(batch))).chunk(2))
        return scale * theirs(*(head(reference(view)) for view in batch))

    return Sides(
        trainers.JointEmbeddingTrainer,
        {"backbone": backbone, "projector": projector},
        ours,
        views(),
        student={"backbone": reference, "projector": head},
        step_loss=step_loss,
        options=options,
    )


def simclr(**options: Any) -> Sides:
    return two_views(
        losses.NTXEntLoss(0.1),
        lightly_loss.NTXentLoss(temperature=0.1),
        modules.SimCLRProjector(DIM, 32, 8),
        heads.SimCLRProjectionHead(DIM, 32, 8, num_layers=2, batch_norm=False),
        **options,
    )


def three_layers(hidden_bias: bool) -> nn.Module:
    """The authors' heads of Barlow Twins and VICReg; lightly's have other biases."""
    hidden = [(width, 32, nn.BatchNorm1d(32), nn.ReLU(), hidden_bias) for width in (DIM, 32)]
    return heads.ProjectionHead([*hidden, (32, 24, None, None, False)])


def barlow_twins() -> Sides:
    return two_views(
        losses.BarlowTwinsLoss(lambd=5e-3, scale=0.1),
        lightly_loss.BarlowTwinsLoss(lambda_param=5e-3),
        modules.BarlowTwinsProjector(DIM, 32, 24),
        three_layers(hidden_bias=False),
        scale=0.1,
    )


def vicreg() -> Sides:
    return two_views(
        losses.VICRegLoss(),
        lightly_loss.VICRegLoss(),
        modules.VICRegProjector(DIM, 32, 24),
        three_layers(hidden_bias=True),
    )


def lejepa() -> Sides:
    """examples/pytorch/lejepa.py with two global and two local views, joined as in the authors' MINIMAL.md."""
    backbone, projector = convnet(), modules.VICRegProjector(DIM, 32, 8).double()
    reference, head = copy.deepcopy(backbone), copy.deepcopy(projector)
    theirs = lightly_loss.LeJEPALoss(lambda_param=0.05, sigreg_num_vectors=64).double()
    theirs.sigreg.phi = (-theirs.sigreg.t.square() / 2).exp()  # anew in float64: lightly rounded it to float32

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        projected = head(by_size(reference, batch)).chunk(len(batch))
        return theirs(global_proj=torch.stack(projected[:2]), local_proj=torch.stack(projected[2:]))

    return Sides(
        trainers.JointEmbeddingTrainer,
        {"backbone": backbone, "projector": projector},
        losses.LeJEPALoss(lambd=0.05, num_slices=64),
        views(num_local=2),
        student={"backbone": reference, "projector": head},
        step_loss=step_loss,
    )


def swav(num_queued: int = 0, fill_epoch: int = 1) -> Sides:
    """benchmarks/imagenet/resnet50/swav.py with two global and two local views, and a queue of `num_queued` batches.

    Views are joined as in the authors' src/resnet50.py. The prototypes are frozen in epoch 0. The queue begins to fill in epoch `fill_epoch` and is used from epoch 1 on,
    when it is full: 1 as in the authors' main_swav.py, 0 as in solo-learn. (lightly empties it in each epoch and waits for one batch more; its prototypes have biases.)
    """
    ours = losses.SwAVLoss(dim=8, num_prototypes=12, queue_size=num_queued * BATCH).double()
    backbone = convnet()
    reference = copy.deepcopy(backbone)
    head = heads.ProjectionHead([(DIM, 32, nn.BatchNorm1d(32), nn.ReLU(), True), (32, 8, None, None)]).double()
    prototypes = heads.SwaVPrototypes(8, 12, n_steps_frozen_prototypes=1)
    prototypes.heads[0] = copy.deepcopy(ours.prototypes)
    queues = [MemoryBankModule(size=(num_queued * BATCH, 8)).double() for _ in range(2)] if num_queued else []
    for queue in queues:
        queue.bank.zero_()  # as ours begins
    criterion = lightly_loss.SwaVLoss()

    def step_loss(batch: list[Tensor], step: int) -> Tensor:
        epoch = step // BATCHES
        prototypes.normalize()
        projected = nn.functional.normalize(head(by_size(reference, batch))).chunk(len(batch))
        queued = None
        if queues and epoch >= fill_epoch:
            with torch.no_grad():
                banks = [queue(z, update=True)[1].T for queue, z in zip(queues, projected, strict=False)]
                if epoch >= 1 and step - BATCHES * fill_epoch >= num_queued:
                    queued = [prototypes(bank, step=epoch) for bank in banks]
        logits = [prototypes(z, step=epoch) for z in projected]
        return criterion(logits[:2], logits[2:], queued).squeeze()

    def state(loss: Any) -> dict[str, tuple[Any, Any]]:
        ours = list(loss.queue) if queues else []
        return {
            "prototypes": (loss.prototypes, prototypes.heads[0]),
            "queue": (ours, [newest_first(queue) for queue in queues]),
        }

    return Sides(
        trainers.ClusteringTrainer,
        {"backbone": backbone, "projector": modules.SwAVProjector(DIM, 32, 8)},
        ours,
        views(num_local=2),
        student={"backbone": reference, "projector": head},
        prototypes=prototypes,
        step_loss=step_loss,
        state=state,
        options={"freeze_prototypes_epochs": 1, "queue_start_epoch": 1, "queue_fill_epoch": fill_epoch},
    )
