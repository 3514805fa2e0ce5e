"""What all self-supervised methods share: linear probes that watch without being noticed."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseTrainer
from ..config import build
from ..exceptions import ConfigError


class SelfSupervisedTrainer(BaseTrainer):
    """A self-supervised method, with online probes.

    Modules named `*_classifier` are probes: `backbone_classifier` learns to tell the labels from the representation,
    `projector_classifier` from the embedding. Each sees detached features, and has its own loss and backward pass; one
    optimizer of their own trains them, in fp32, outside the method's optimizer, gradient clipping and loss scaling. So
    the method's weights are the same to the bit with and without them. A label below 0 means none, and is left out.

    A subclass's `compute_loss` sets `latest_representations` and `latest_embeddings`, each (n × batch, dim) with the n
    views one after the other, and the first view first; both are detached where they are used.

    Parameters
    ----------
    probe_optimizer
        Called with the probes' parameters; AdamW with a learning rate of 1e-3 and no weight decay by default.

    See `BaseTrainer` for the others.
    """

    _probe_optimizer: torch.optim.Optimizer | None = None
    probe_optimizer: Any = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)

    _FEATURES = {"backbone_classifier": "latest_representations", "projector_classifier": "latest_embeddings"}

    @property
    def probes(self) -> dict[str, nn.Module]:
        """The modules that are probes, by name."""
        return {name: module for name, module in self.module.items() if name.endswith("_classifier")}

    def optimized_modules(self) -> dict[str, nn.Module]:
        """Return all modules but the probes, and the loss."""
        probes = self.probes
        return {name: module for name, module in super().optimized_modules().items() if name not in probes}

    def _build_optimization(self) -> None:
        super()._build_optimization()
        unknown = [name for name in self.probes if name not in self._FEATURES]
        if unknown:
            raise ConfigError(f"module: {unknown} are named like probes; known are {list(self._FEATURES)}.")
        parameters = [p for probe in self.probes.values() for p in probe.parameters()]
        if parameters:
            optimizer = build(self.probe_optimizer, "probe_optimizer")
            self._stateful["probe_optimizer"] = self._probe_optimizer = optimizer(parameters)

    def _build(self) -> None:
        super()._build()
        predicts = type(self).predict is SelfSupervisedTrainer.predict
        watched = [name for name, metrics in self._metrics.items() if metrics]
        if predicts and watched and "backbone_classifier" not in self.probes:
            raise ConfigError(
                f"logger.metric.{watched[0]}: metrics need predictions, which come from module.backbone_classifier; "
                "there is none."
            )

    def predict(self) -> Tensor:
        """Return the backbone probe's class scores for the batch at hand, (batch, classes)."""
        images = self.batch[0]
        images = images[0] if isinstance(images, list | tuple) else images
        return self.module["backbone_classifier"](self.forward(images))

    def _backward(self, loss: Tensor) -> None:
        """Add the method's gradients, then the probes'."""
        super()._backward(loss)
        if self._probe_optimizer is not None and self._labels is not None:
            (self._probe_loss(self._labels) / self._group_size).backward()

    def _apply_gradients(self, scale: float) -> None:
        """Take the probes' step, unless the method's loss was not finite, then the method's."""
        if self._probe_optimizer is not None and not self._bad_group:
            gradients = [p.grad for p in self._probe_parameters() if p.grad is not None]
            if scale != 1.0 and gradients:
                torch._foreach_mul_(gradients, scale)
            self._probe_optimizer.step()
        super()._apply_gradients(scale)

    def _clear_gradients(self) -> None:
        super()._clear_gradients()
        for parameter in self._probe_parameters():
            parameter.grad = None

    def _probe_parameters(self) -> list[nn.Parameter]:
        return (
            [p for group in self._probe_optimizer.param_groups for p in group["params"]]
            if self._probe_optimizer
            else []
        )

    @property
    def _labels(self) -> Tensor | None:
        """The labels of the batch at hand, (batch,), where it has any."""
        labelled = isinstance(self.batch, list | tuple) and len(self.batch) == 2
        labels = self.batch[1] if labelled else None
        return labels if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() else None

    def _probe_loss(self, labels: Tensor) -> Tensor:
        """Return the sum of the probes' losses for the batch at hand, and log each."""
        total: Any = 0.0
        for name, probe in self.probes.items():
            features = getattr(self, self._FEATURES[name])
            scores = probe(features.detach().float())
            targets = labels.repeat(len(scores) // len(labels))
            labelled = targets >= 0
            count = labelled.sum().clamp(min=1)
            losses = nn.functional.cross_entropy(scores, targets.clamp(min=0), reduction="none")
            loss = torch.where(labelled, losses, 0.0).sum() / count
            self.log(f"loss_{name}", loss)
            if self._logging:
                self.log(f"accuracy_{name}", ((scores.argmax(1) == targets) & labelled).sum() / count)
            total = total + loss
        return total
