"""Linear classifiers: many at once, each with a learning rate and a weight decay of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.order import epoch_order
from ...runtime.seeding import Stream, derive_seed
from ..protocol import Labelled

MOST = 2**24  # numbers that a chunk of logits may have


class LinearHeads:
    """Linear classifiers on the same features, which are fitted in one pass: their weights are one matrix.

    All have the same first values, so that a head does not depend on the others. They are fitted by SGD with momentum
    0.9; biases decay like weights.

    Parameters
    ----------
    dim, num_classes
        Width of the features, and number of classes.
    rates, decays
        Learning rate and weight decay of each head, (heads,).
    batch_norm
        Whether to normalise the features as BatchNorm1d(affine=False) does: by the mean and variance of the batch while
        fitting, and by their running averages afterwards.
    seed
        What the first values are a function of.
    device
        Where to compute.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        rates: Sequence[float],
        decays: Sequence[float],
        batch_norm: bool,
        seed: int,
        device: torch.device,
    ):
        weight, bias = _first_values(dim, num_classes, seed)
        self.weight, self.bias = (
            value.to(device).repeat(len(rates), *[1] * value.ndim).requires_grad_() for value in (weight, bias)
        )  # (heads, classes, dim) and (heads, classes)
        self.rates, self.decays = (torch.tensor(values, device=device) for values in (rates, decays))
        self.norm = nn.BatchNorm1d(dim, affine=False, device=device) if batch_norm else nn.Identity()
        self._updates = [_SGD(self.weight, self.decays[:, None, None]), _SGD(self.bias, self.decays[:, None])]

    def step(self, features: Tensor, labels: Tensor, scale: float) -> None:
        """Make one optimizer step with each head's mean cross-entropy on a batch.

        Parameters
        ----------
        features, labels
            The batch, (batch, dim) and (batch,).
        scale
            What the learning rates are multiplied with, as the schedule says.
        """
        found = logits(self.weight, self.bias, self.norm.train()(features))
        losses = functional.cross_entropy(found, labels.expand(len(found), -1), reduction="sum") / len(labels)
        # The sum over heads gives each the gradient of its own loss.
        gradients = torch.autograd.grad(losses, [self.weight, self.bias])
        with torch.no_grad():
            for update, gradient in zip(self._updates, gradients, strict=True):
                update(gradient, self.rates * scale)

    def accuracies(self, test: Labelled) -> list[float]:
        """Return the share of the images whose class each head finds."""
        return accuracies(self.weight, self.bias, test, self.norm)


def fit_heads(
    train: Labelled,
    rates: Sequence[float],
    decays: Sequence[float],
    schedule: Sequence[float],
    seed: int,
    device: torch.device,
    batch_size: int = 256,
    batch_norm: bool = True,
) -> LinearHeads:
    """Return linear heads that are fitted in one pass. The same seed gives the same heads.

    All batches have the same size. The images that are left over at the end of an epoch are left out.

    Parameters
    ----------
    rates, decays
        Learning rate and weight decay of each head, (heads,).
    schedule
        What the learning rates are multiplied with in each iteration, (iterations,).
    seed
        What the first values, and the order of the images, are a function of.
    batch_size
        Number of images per iteration. All images are a batch if they are fewer.
    batch_norm
        As for `LinearHeads`.
    """
    heads = LinearHeads(train.features.shape[1], train.num_classes, rates, decays, batch_norm, seed, device)
    batches = _batches(len(train.labels), batch_size, seed)
    for scale, batch in zip(schedule, batches, strict=False):
        heads.step(train.features[batch].to(device), train.labels[batch].to(device), scale)
    return heads


def cosine(num_iterations: int) -> list[float]:
    """Return a schedule that falls from 1 towards 0 along half a cosine, (1 + cos(π t / iterations)) / 2."""
    return [(1 + math.cos(math.pi * t / num_iterations)) / 2 for t in range(num_iterations)]


@torch.no_grad()
def accuracies(weight: Tensor, bias: Tensor, test: Labelled, norm: nn.Module | None = None) -> list[float]:
    """Return the share of the images whose class each of some linear heads finds, (heads,).

    A head whose weights are no numbers, since it diverged, finds none.

    Parameters
    ----------
    weight, bias
        (heads, classes, dim) and (heads, classes).
    norm
        What the features pass first.
    """
    hits = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
    chunk = max(1, MOST // bias.numel())
    for features, labels in zip(test.features.split(chunk), test.labels.split(chunk), strict=True):
        features = features.to(weight)
        features = norm.eval()(features) if norm else features
        highest, found = logits(weight, bias, features).max(1)  # the highest is NaN if any is
        hits += ((found == labels.to(weight.device)) & ~highest.isnan()).sum(1)
    return [number / len(test.labels) for number in hits.tolist()]


def logits(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Return the logits of each head, (heads, classes, batch): softmax is fastest with the batch last."""
    return torch.addmm(bias.flatten()[:, None], weight.flatten(0, 1), features.T).view(*bias.shape, -1)


def _first_values(dim: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the first weights and biases of a head, (classes, dim) and (classes,): uniform, as torch.nn.Linear's."""
    generator = torch.Generator().manual_seed(derive_seed(seed, Stream.BUILD))
    weight, bias = torch.empty(num_classes, dim), torch.empty(num_classes)
    bound = dim**-0.5
    return weight.uniform_(-bound, bound, generator=generator), bias.uniform_(-bound, bound, generator=generator)


def _batches(num_samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Return the samples of each batch of one epoch after another, without end. All batches have the same size."""
    size = min(batch_size, num_samples)
    for epoch in count():
        order = torch.tensor(epoch_order(num_samples, shuffle=True, sampler=None, seed=seed, epoch=epoch))
        yield from islice(order.split(size), num_samples // size)


class _SGD:
    """The update of torch.optim.SGD with momentum 0.9, for a parameter (heads, …) and decays (heads, 1, …)."""

    momentum = 0.9

    def __init__(self, parameter: Tensor, decay: Tensor):
        self.parameter, self.decay, self.has_decay = parameter, decay, bool(decay.any())
        self.velocity = torch.zeros_like(parameter)

    def __call__(self, gradient: Tensor, rates: Tensor) -> None:
        if self.has_decay:
            gradient.addcmul_(self.parameter, self.decay)
        self.velocity.mul_(self.momentum).add_(gradient)
        self.parameter.addcmul_(self.velocity, rates.view_as(self.decay), value=-1)
