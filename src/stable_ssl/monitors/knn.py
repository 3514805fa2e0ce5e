"""Accuracy of the nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, DataError
from ..runtime.batches import labels_of
from ..runtime.device import describe_batch
from ..runtime.distributed import gather_rows
from ..runtime.seeding import preserved_generators
from .monitor import Monitor

if TYPE_CHECKING:
    from ..base import BaseTrainer


class KNN(Monitor):
    """Accuracy of the weighted nearest neighbours of an evaluation set, among a bank of labelled images (Wu et al.,
    "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section 3.4).

    It is a monitor of that set, `logger.monitor.test.knn`, and is logged with k and temperature in its name, as
    `test/knn_k20_t0.07`. Representations are the trainer's `forward`, both sets' with the weights at hand. A label
    below 0 means none, and is left out.

    Parameters
    ----------
    bank
        Name in `data` of the training images, as the evaluation set has them: without augmentations, each once. Like
        any set but `train`, it is also gone through by itself in each evaluation.
    k
        How many neighbours vote; the paper has 200.
    temperature
        A neighbour's vote counts exp(cosine similarity / temperature).
    """

    name = "knn"

    def __init__(self, bank: str, k: int = 20, temperature: float = 0.07):
        if k < 1 or temperature <= 0:
            raise ConfigError(f"KNN: k {k} must be at least 1, and temperature {temperature} above 0.")
        self.bank, self.k, self.temperature = bank, k, temperature
        self._held: list[tuple[Tensor, Tensor]] = []

    def check(self, trainer: BaseTrainer, path: str) -> None:
        """Refuse a bank that is no other evaluation set, or smaller than k, and being a monitor of training."""
        self._held = []  # an evaluation that was broken off may have left some
        name = path.split(".")[2]
        if name == "train":
            raise ConfigError(f"{path}: KNN is for evaluation sets; put it below logger.monitor.<set>.")
        if self.bank not in trainer.eval_sets or self.bank == name:
            raise ConfigError(
                f"{path}.bank: '{self.bank}' must be a set of data besides train and {name}; there are "
                f"{[known for known in trainer.eval_sets if known != name]}. Add one with the training images, made "
                f"like those of {name}, without augmentations."
            )
        size = getattr(trainer.data[self.bank], "num_samples", None)
        if size is not None and self.k > size:
            raise ConfigError(f"{path}.k: {self.k} neighbours are more than the {size} samples of data.{self.bank}.")

    def on_eval(self, trainer: BaseTrainer) -> None:
        """Keep the representations of the batch."""
        self._held.append(self._labelled(trainer.embed(trainer.batch), trainer.batch))

    def compute(self, trainer: BaseTrainer) -> dict[str, float]:
        """Return the accuracy on what was evaluated since the last time, over all ranks."""
        queries, labels = self._join(self._held, trainer.device)
        self._held = []
        with preserved_generators():
            parts = [self._labelled(*pair) for pair in trainer.representations(self.bank)]
        bank, bank_labels = (gather_rows(part) for part in self._join(parts, trainer.device))
        num_classes = len(bank_labels.bincount())
        scores = knn_scores(bank, bank_labels, queries, num_classes, self.k, self.temperature)
        hits = gather_rows((scores.argmax(1) == labels).float())
        return {f"k{self.k}_t{self.temperature}": float(hits.mean())} if len(hits) else {}

    def _labelled(self, representations: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the representations and labels of the images with a label, (samples, dim) and (samples,)."""
        labels = labels_of(batch)
        if labels is None:
            raise DataError(f"KNN needs batches [images, labels], but this one is {describe_batch(batch)}.")
        is_labelled = labels >= 0
        return representations[is_labelled].float(), labels[is_labelled].long()

    @staticmethod
    def _join(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
        if not parts:  # a rank may have no batch
            return torch.empty(0, device=device), torch.empty(0, dtype=torch.long, device=device)
        features, labels = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def knn_scores(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 256,
) -> Tensor:
    """Return what each class gets of the votes of the k nearest neighbours, (queries, num_classes).

    With the cosine similarities s of a query and its neighbours, each votes for its class with
    exp((s - max s) / temperature), so that none overflows (Wu et al., CVPR 2018, section 3.4, up to a factor for each
    query).

    Parameters
    ----------
    bank, bank_labels
        Features and their labels in [0, num_classes), (samples, dim) and (samples,).
    queries
        Features, (queries, dim).
    chunk
        Queries that are compared with the bank at a time; memory grows with chunk × samples.

    Raises
    ------
    ValueError
        The bank has less than k samples.
    """
    if k > len(bank):
        raise ValueError(f"k: {k} neighbours are more than the {len(bank)} labelled samples of the bank.")
    bank = nn.functional.normalize(bank.float(), dim=1)
    queries = nn.functional.normalize(queries.float().reshape(len(queries), bank.shape[1]), dim=1)
    scores = queries.new_zeros(len(queries), num_classes)
    for part, into in zip(queries.split(chunk), scores.split(chunk), strict=True):
        similarities, neighbours = (part @ bank.T).topk(k)
        votes = ((similarities - similarities[:, :1]) / temperature).exp()
        into.scatter_add_(1, bank_labels[neighbours], votes)
    return scores
