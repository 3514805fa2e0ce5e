"""The base class of all self-supervised methods. It adds probes, which do not influence the method."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base import BaseTrainer
from ..compat import EarlySelfSupervised, LossesWithProbes, counted_only
from ..config import build
from ..exceptions import ConfigError, DataError
from ..modules.multi_crop import forward_views, has_batch_norm
from ..runtime.batches import has_labels, images_of, labels_of, views_of
from ..runtime.device import describe_batch

log = logging.getLogger("stable_ssl")


class SelfSupervisedTrainer(EarlySelfSupervised, BaseTrainer):
    """Base class of self-supervised methods, with classifiers (probes) that are trained beside the method.

    The module `backbone_classifier` is a probe that learns the labels from the representations. `projector_classifier`
    learns them from the embeddings. No gradient flows from a probe into the method. The probes have losses, a backward
    pass and an optimizer of their own, in fp32, outside the method's gradient clipping and loss scaling. So the
    method's weights are the same bits with and without probes. Images with a label below 0 are left out of the probes'
    losses, because they have no label.

    A subclass implements `compute_loss`. It gets the views from `self.views()`, and gives representations and
    embeddings to probes and monitors by `self.watch(…)`. It may set the class attributes `num_masks`,
    `min_batch_size` and `usual_loss`.

    Parameters
    ----------
    probe_optimizer
        Function that makes the probes' optimizer from their parameters. Default: AdamW with a learning rate of 1e-3 and
        no weight decay.
    join_views
        Whether views of one size go through batch normalisation together, so that its statistics are those of all of
        them. None: as in the code of the loss's authors. A loss says so by its attribute `joins_views`; without it,
        each view goes alone.

    See `BaseTrainer` for the other parameters.

    Attributes
    ----------
    num_masks
        Number of masks that follow the views in a batch.
    min_batch_size
        2 if the loss compares images with each other, else 1.
    usual_loss
        Name of the loss that an error suggests if `loss` is missing. None if the method needs no loss.
    num_views
        Number of views per image in `latest_representations` and `latest_embeddings`. Both are
        (num_views × batch, dim): all images of the first view, then those of the second, and so on.
    """

    num_views: int = 1
    num_masks: int = 0
    min_batch_size: int = 1
    usual_loss: str | None = None
    _view_counts: tuple[int, int | None] = (1, None)
    join_views: bool | None = None
    _untrained: frozenset[str] | set[str] = frozenset()  # probes of which the log says that nothing trains them
    probe_optimizer: Any = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)

    _PROBES = ("backbone_classifier", "projector_classifier")

    @property
    def probes(self) -> dict[str, nn.Module]:
        """The modules that are probes, by name."""
        return {name: module for name, module in self.module.items() if name.endswith("_classifier")}

    def optimized_modules(self) -> dict[str, nn.Module]:
        """Return the modules that the method's optimizer trains: all modules except the probes, plus the loss."""
        probes = self.probes
        return {name: module for name, module in super().optimized_modules().items() if name not in probes}

    def side_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizer of the probes, if there are any."""
        unknown = [name for name in self.probes if name not in self._PROBES]
        if unknown:
            raise ConfigError(
                f"module: {unknown}: a name that ends in _classifier is for a probe, and the probes are "
                f"{list(self._PROBES)}. Rename the module."
            )
        parameters = [p for probe in self.probes.values() for p in probe.parameters()]
        return {"probe_optimizer": build(self.probe_optimizer, "probe_optimizer")(parameters)} if parameters else {}

    def check_setup(self) -> None:
        """Raise a ConfigError before the first step if modules, loss, metrics or data do not suit the method."""
        predicts = type(self).predict is SelfSupervisedTrainer.predict
        watched = [name for name in self.eval_sets if self.logger["metric"].get(name)]
        if predicts and watched and "backbone_classifier" not in self.probes:
            raise ConfigError(
                f"logger.metric.{watched[0]}: metrics need predictions, which come from module.backbone_classifier. "
                "Add it, or remove the metrics."
            )
        if "train" in self.data:
            if self.usual_loss is not None and self._needs_loss and not callable(self.loss):
                raise ConfigError(
                    f"loss: {type(self).__name__} needs one, such as {self.usual_loss}, or a compute_loss of its own."
                )
            self._check_views()

    def view_counts(self) -> tuple[int, int | None]:
        """Return the smallest and the largest number of views per image that the method can use.

        None as the largest means any number.
        """
        return 1, None

    def _check_views(self) -> None:
        """Raise a ConfigError if the number of views or the batch size does not suit the method.

        Only what the loader tells before the first batch is checked.
        """
        self._view_counts = self.view_counts()
        train = self.data["train"]
        declared = getattr(train, "views", None)
        if declared is not None:
            self._check_number(len(declared.views))
        batch_size = getattr(train, "batch_size", None)
        if not batch_size or getattr(train, "batch_sampler", None) is not None:
            return
        left_over = train.num_samples % (batch_size * self.world_size) // self.world_size  # in the last batch, per rank
        smallest = batch_size if train.drop_last or not left_over else left_over  # images in the smallest batch
        needs_more = smallest * self.world_size < self.min_batch_size or (smallest == 1 and has_batch_norm(self.module))
        if needs_more:
            raise ConfigError(
                f"data.train: {type(self).__name__}, or its batch normalisation, needs at least 2 images in a batch. "
                + ("Set a batch_size above 1." if batch_size == 1 else "The last one has 1: set drop_last: true.")
            )

    def _check_number(self, count: int) -> None:
        """Raise a ConfigError if the method can't use this number of views."""
        least, most = self._view_counts
        if count < least or (most is not None and count > most):
            wanted = f"{'at least ' if most != least else ''}{least} view{'s' if least > 1 else ''}"
            raise ConfigError(
                f"data.train: {type(self).__name__} needs {wanted} of each image, not {count}. Give the Loader as many "
                "views, or the data set a MultiViewSampler with as many transforms."
            )

    def views(self) -> list[Tensor]:
        """Return the views of the current batch, (batch, channels, height, width) each.

        The batch is `[[view_1, view_2, …], labels]`, or the list of views alone. Labels may be anything, and more parts
        may follow them. A dict has the views as its image.

        Raises
        ------
        DataError
            The batch has another form.
        ConfigError
            The method can't use this number of views (`view_counts`).
        """
        return self.views_and_masks()[0]

    def views_and_masks(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the views of the current batch, and the `num_masks` masks that follow them.

        See `views` for the batch and the errors.
        """
        if self._formats_views:
            return list(self.format_views_labels()[0]), []
        parts = views_of(self.batch, self.num_masks)
        if len(parts) < self._view_counts[0] or not all(isinstance(part, Tensor) for part in parts):
            raise self._unsuited(
                f"{self._view_counts[0]} views of each image, [[view_1, view_2], labels]",
                "Give the Loader views, or the data set a MultiViewSampler.",
            )
        views, masks = list(parts[: len(parts) - self.num_masks]), list(parts[len(parts) - self.num_masks :])
        if len(masks) < self.num_masks or not all(mask.dtype == torch.bool for mask in masks):
            number = f"{self.num_masks} mask{'s' if self.num_masks > 1 else ''}"
            raise self._unsuited(f"{number} of type bool after the view", "MAEViews and IJEPAViews make them.")
        self._check_number(len(views))
        return views, masks

    def forward_views(
        self, forward: Callable[[Tensor], Tensor], views: Sequence[Tensor], network: nn.Module | None = None
    ) -> list[Tensor]:
        """Return a network's output for each view, as `stable_ssl.modules.forward_views` does with `join_views`."""
        join = getattr(self.loss, "joins_views", False) if self.join_views is None else self.join_views
        return forward_views(forward, views, network, join)

    def _unsuited(self, needed: str, advice: str) -> DataError:
        batch = describe_batch(self.batch)
        return DataError(f"{type(self).__name__} needs {needed}, but the batch is {batch}. {advice}")

    def watch(self, representations: list[Tensor], embeddings: list[Tensor] | None = None) -> None:
        """Give representations and embeddings of the current batch to probes and monitors.

        Parameters
        ----------
        representations
            One tensor per view, (batch, dim) each.
        embeddings
            Likewise. If None, the representations are used as embeddings.
        """
        self.latest_representations = representations
        self.latest_embeddings = representations if embeddings is None else embeddings

    def predict(self) -> Tensor:
        """Return the class scores of the backbone's probe for the current batch, (batch, classes)."""
        scores: Tensor = self.module["backbone_classifier"](self.forward(images_of(self.batch)))
        return scores

    def format_views_labels(self) -> tuple[Any, Any]:
        """Return the views of the current batch, and its labels or None. A subclass may define it for other batches."""
        return views_of(self.batch, self.num_masks), labels_of(self.batch)

    def side_losses(self) -> dict[str, Tensor]:
        """Return the probes' losses for the current batch, by name, and log their accuracies."""
        self.detach_latest()
        if not self.probes:
            return {}
        labels = self.format_views_labels()[1] if self._formats_views else labels_of(self.batch)
        if labels is not None or self.has_probe_losses:
            return self.take_probe_losses(labels)
        if not self._formats_views and self._has_labels():
            raise DataError(
                f"{list(self.probes)} need labels, int64 (batch,), but the batch is {describe_batch(self.batch)}. "
                "Give [views, labels] or a dict with 'image' and 'label', with -1 for images without a label, or leave "
                "the probes out of module."
            )
        for name in self.probes:
            self._say_untrained(name, "the batch has no labels.")
        return {}

    def _has_labels(self) -> bool:
        """Return whether the current batch has labels, of whatever kind, beside its views and masks."""
        return has_labels(self.batch, self.num_masks)

    @counted_only
    def compute_loss_classifiers(self, representations: Any, embeddings: Any, labels: Any) -> dict[str, Any]:
        """Return the probes' losses, by name. What `compute_loss` gets of them are numbers without gradients.

        Parameters
        ----------
        representations, embeddings
            Lists with one tensor per view, (batch, dim) each, or tensors (views × batch, dim).
        labels
            The labels, (batch,). None: there are none, and all losses are 0.
        """
        features = dict(zip(self._PROBES, (representations, embeddings), strict=True))
        losses: dict[str, Any] = {}
        for name, probe in self.probes.items():
            if features[name] is not None:
                losses[f"loss_{name}"] = 0 if labels is None else self._probe_loss(name, probe, features[name], labels)
            else:
                self._say_untrained(name, "compute_loss must call self.watch(…).")
        return losses

    def _say_untrained(self, name: str, reason: str) -> None:
        """Log once that a probe is not trained."""
        if name not in self._untrained:
            vars(self)["_untrained"] = {*self._untrained, name}
            log.warning("module.%s has nothing to learn from and is not trained: %s", name, reason)

    def with_probes(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return losses as `compute_loss` returns them to a subclass, which may ask them for those of the probes."""
        if not self._extends_loss:
            return losses
        latest = self.latest_representations, self.latest_embeddings
        names = [f"loss_{name}" for name in self.probes]
        return LossesWithProbes(
            losses, names, lambda: self.compute_loss_classifiers(*latest, self.format_views_labels()[1])
        )

    def _probe_loss(self, name: str, probe: nn.Module, features: Any, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of a probe's scores over the labelled views, and log the accuracy."""
        if isinstance(features, list | tuple):
            features = torch.cat(list(features))  # (views × batch, dim)
        try:
            scores = probe(features.detach().float())  # (views × batch, classes)
            targets = labels.long().repeat(len(scores) // len(labels))  # (views × batch,)
            labelled = targets >= 0
            count = labelled.sum().clamp(min=1)
            losses = nn.functional.cross_entropy(scores, targets.clamp(min=0), reduction="none")
        except (RuntimeError, IndexError) as error:
            # The features have another width, or a label is not below the number of classes.
            error.add_note(f"module.{name} gets features {tuple(features.shape)}, and must give a score per class.")
            raise
        if self.is_logging:
            self.log(f"accuracy_{name}", ((scores.argmax(1) == targets) & labelled).sum() / count)
        return torch.where(labelled, losses, 0.0).sum() / count
