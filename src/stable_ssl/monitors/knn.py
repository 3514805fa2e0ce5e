"""Accuracy of a classifier by nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, DataError
from ..runtime.batches import labels_of, num_unlabelled
from ..runtime.device import describe_batch
from ..runtime.distributed import gather_rows
from ..runtime.seeding import preserved_generators
from .monitor import Monitor

if TYPE_CHECKING:
    from ..base import BaseTrainer


class KNN(Monitor):
    """Accuracy of a weighted nearest-neighbour classifier (Wu et al., "Unsupervised feature learning via non-parametric
    instance discrimination", CVPR 2018, section 3.4).

    Each image of an evaluation set is classified by its nearest neighbours in a bank of labelled images. Set the
    monitor for one evaluation set, as `logger.monitor.test.knn`. The logged name holds k and the temperature:
    `test/knn_k20_t0.07`. Both sets are embedded by the trainer's `forward` with the current weights. Images with a
    label below 0 are left out, because they have none.

    Parameters
    ----------
    bank
        Name of the bank, a set in `data`: the training images, each once and without augmentations. Each evaluation
        also evaluates the bank itself, like every set except `train`.
    k
        Number of neighbours that vote. The paper has 200.
    temperature
        The weight of a neighbour's vote is exp(cosine similarity / temperature).

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> import torch
    >>> from stable_ssl import SupervisedTrainer
    >>> from stable_ssl.data import Loader
    >>> from stable_ssl.monitors import KNN
    >>> images = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    >>> samples = [(image, int(image[0] > 0)) for image in images]
    >>> folder = tempfile.TemporaryDirectory()
    >>> trainer = SupervisedTrainer(
    ...     data={
    ...         "train": Loader(samples[:24], batch_size=8),
    ...         "bank": Loader(samples[:24], batch_size=8),
    ...         "test": Loader(samples[24:], batch_size=8),
    ...     },
    ...     module={"backbone": torch.nn.Linear(12, 2)},
    ...     hardware={"device": "cpu"},
    ...     optim={"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 1},
    ...     logger={"dump_path": folder.name, "level": 40, "monitor": {"test": {"knn": KNN("bank", k=5)}}},
    ... )
    >>> trainer()
    >>> 0 <= trainer.get_logs()[-1]["test/knn_k5_t0.07"] <= 1
    True
    """

    name = "knn"

    def __init__(self, bank: str, k: int = 20, temperature: float = 0.07):
        if k < 1 or temperature <= 0:
            raise ConfigError(f"KNN: k {k} must be at least 1, and temperature {temperature} above 0.")
        self.bank, self.k, self.temperature = bank, k, temperature
        self._held: list[tuple[Tensor, Tensor]] = []

    def check(self, trainer: BaseTrainer, path: str) -> None:
        """Raise a ConfigError if the bank is no other evaluation set or has fewer than k samples, or for `train`."""
        self._held = []  # an evaluation that ended early leaves its batches here
        name = path.split(".")[2]
        if name == "train":
            raise ConfigError(f"{path}: KNN is for evaluation sets; put it below logger.monitor.<set>.")
        if self.bank not in trainer.eval_sets or self.bank == name:
            raise ConfigError(
                f"{path}.bank: '{self.bank}' must be a set of data besides train and {name}; there are "
                f"{[known for known in trainer.eval_sets if known != name]}. Add one with the training images, made "
                f"like those of {name}, without augmentations."
            )
        bank = trainer.data[self.bank]
        size = getattr(bank, "num_samples", None)
        if size is not None and self.k > (size := size - num_unlabelled(getattr(bank, "dataset", None))):
            raise ConfigError(
                f"{path}.k: {self.k} neighbours are more than the {size} labelled samples of data.{self.bank}."
            )

    def on_eval(self, trainer: BaseTrainer) -> None:
        """Keep the representations and labels of the current batch."""
        self._held.append(self._labelled(trainer.embed(trainer.batch), trainer.batch))

    def compute(self, trainer: BaseTrainer) -> dict[str, float]:
        """Return the accuracy over all images since the last call, on all ranks. Empty if none of them has a label."""
        queries, labels = self._join(self._held, trainer.device)  # (queries, dim) and (queries,)
        self._held = []
        with preserved_generators():
            parts = [self._labelled(*pair) for pair in trainer.representations(self.bank)]
        bank, bank_labels = (gather_rows(part) for part in self._join(parts, trainer.device))
        num_classes = len(bank_labels.bincount())
        # bank (samples, dim), bank_labels (samples,), scores (queries, num_classes)
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
        """Join the batches of this rank to (samples, dim) and (samples,)."""
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
    """Return the sum of the votes of the k nearest neighbours per class, (queries, num_classes).

    s is the cosine similarity of a query and a neighbour. The neighbour's vote for its class weighs
    exp((s - max s) / temperature). Subtracting the query's largest s avoids overflow. It scales all votes of a query by
    the same factor, so the winner is that of the paper (Wu et al., CVPR 2018, section 3.4).

    Parameters
    ----------
    bank, bank_labels
        Features, (samples, dim), and their labels in [0, num_classes), (samples,).
    queries
        Features to classify, (queries, dim).
    num_classes
        Number of classes.
    k
        Number of neighbours that vote.
    temperature
        The lower it is, the more the nearest neighbours count.
    chunk
        Number of queries that are compared with the bank at a time.

    Raises
    ------
    ValueError
        The bank has fewer than k samples.

    Examples
    --------
    >>> import torch
    >>> from stable_ssl.monitors import knn_scores
    >>> bank, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    >>> knn_scores(bank, labels, torch.tensor([[1.0, 0.1]]), num_classes=2, k=2).argmax(1)
    tensor([0])
    """
    similarities, neighbours = nearest_neighbours(bank, queries.reshape(len(queries), bank.shape[1]), k, chunk)
    votes = ((similarities - similarities[:, :1]) / temperature).exp()  # (queries, k)
    scores = votes.new_zeros(len(queries), num_classes)
    return scores.scatter_add_(1, bank_labels[neighbours], votes)


@torch.no_grad()
def nearest_neighbours(
    bank: Tensor, queries: Tensor, k: int, chunk: int = 256, bank_chunk: int = 65536
) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities of each query's k nearest neighbours, in falling order, and their places in the
    bank, (queries, k) each.

    The memory needed is that of `chunk` × `bank_chunk` similarities and of a chunk of the bank, in float32, on the
    queries' device. The bank may be on another.

    Parameters
    ----------
    bank
        Features, (samples, dim), of any length.
    queries
        Features whose neighbours are searched, (queries, dim).
    k
        Number of neighbours.
    chunk, bank_chunk
        Number of queries and of samples that are compared at a time.

    Raises
    ------
    ValueError
        The bank has fewer than k samples.
    """
    if k > len(bank):
        raise ValueError(f"k: {k} neighbours are more than the {len(bank)} labelled samples of the bank.")
    queries = nn.functional.normalize(queries.float(), dim=1)
    nearest = queries.new_full((len(queries), k), -torch.inf)
    places = torch.zeros_like(nearest, dtype=torch.long)
    for first in range(0, len(bank), bank_chunk):
        part = bank[first : first + bank_chunk].to(queries.device).float()
        part = nn.functional.normalize(part, dim=1).T  # (dim, bank_chunk)
        for query, best, place in zip(queries.split(chunk), nearest.split(chunk), places.split(chunk), strict=True):
            found, where = (query @ part).topk(min(k, part.shape[1]))  # (chunk, k) each
            found, order = torch.cat((best, found), 1).topk(k)
            place.copy_(torch.cat((place, where + first), 1).gather(1, order))
            best.copy_(found)
    return nearest, places
