"""Multinomial logistic regression, fitted to its optimum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..protocol import Labelled
from .linear import MOST, logits


def fit_logistic(
    train: Labelled,
    inverse_penalties: Sequence[float],
    device: torch.device,
    max_iterations: int = 1000,
    tolerance: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Return the weights and biases of a logistic regression per C, (fits, classes, dim) and (fits, classes), float64.

    What is minimised is scikit-learn's objective, divided by C times the number of images: the mean cross-entropy plus
    |weights|² / (2 · C · images). Biases are free. Two classes share one vector, as there. Each fit begins where the
    one before ended, from the smallest C to the largest, so that a path of many C takes few iterations.

    Parameters
    ----------
    inverse_penalties
        The values of C. The larger C is, the less the weights are held back.
    device
        Where to compute, in float64. The CPU takes the place of devices that have none.
    max_iterations
        Iterations of L-BFGS per C.
    tolerance
        A fit ends when no entry of the gradient, or no change of the objective, is larger.
    """
    device = torch.device("cpu") if device.type == "mps" else device
    features, labels = train.features.to(device, torch.float64, copy=True), train.labels.to(device)
    centre = features.mean(0)
    features -= centre  # the optimum is the same, and is found sooner
    weight = features.new_zeros(train.num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(train.num_classes, requires_grad=True)
    num_classes, fits = len(train.labels.unique()), {}
    for inverse_penalty in sorted(inverse_penalties):
        # With two classes, scikit-learn's one vector is the difference of these two: |w|² is twice as much as theirs.
        penalty = (2 if num_classes == 2 else 1) / (2 * inverse_penalty * len(labels))
        _minimise(features, labels, weight, bias, penalty, max_iterations, tolerance)
        fits[inverse_penalty] = weight.detach().clone(), (bias - weight @ centre).detach()
    weights, biases = zip(*(fits[value] for value in inverse_penalties), strict=True)
    return torch.stack(weights), torch.stack(biases)


def _minimise(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    penalty: float,
    max_iterations: int,
    tolerance: float,
) -> None:
    """Change weight and bias to where the mean cross-entropy plus penalty · |weight|² is smallest."""
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=tolerance,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = penalty * weight.square().sum()
        value.backward()
        size = max(1, MOST // len(bias))
        for part, own in zip(features.split(size), labels.split(size), strict=True):
            found = logits(weight[None], bias[None], part)  # (1, classes, images)
            of_part = functional.cross_entropy(found, own[None], reduction="sum") / len(labels)
            of_part.backward()
            value = value.detach() + of_part.detach()
        return value

    optimizer.step(loss)
