"""Classification by nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...exceptions import as_config_error
from ...monitors.knn import nearest_neighbours
from ..protocol import Labelled

CHUNK = 1024  # queries whose votes are counted at a time


@torch.no_grad()
def knn_accuracies(
    bank: Labelled, queries: Labelled, ks: Sequence[int], device: torch.device, temperature: float = 0.07
) -> dict[int, float]:
    """Return the share of the queries whose class is found, by number of neighbours.

    As in DINO's evaluation (Caron et al., ICCV 2021, section 4.1, after Wu et al., CVPR 2018): features have unit
    length, in float32. A neighbour's vote weighs softmax(cosine similarity / temperature) over the largest k. A smaller
    k counts the first votes of the same. The smallest of the classes with the most votes wins.

    Parameters
    ----------
    bank
        The images that vote.
    queries
        The images that are classified.
    ks
        Numbers of neighbours. One search, for the largest, serves all.
    device
        Where to compute.
    temperature
        The lower it is, the more the nearest neighbours count.

    Raises
    ------
    ConfigError
        The bank has fewer images than the largest k.
    """
    with as_config_error():
        similarities, places = nearest_neighbours(bank.features, queries.features.to(device), max(ks))
    weights = (similarities / temperature).softmax(1)  # (queries, largest k)
    classes = bank.labels.to(device)[places]  # (queries, largest k)
    hits = dict.fromkeys(sorted(ks), 0)
    for weight, voted, label in zip(
        weights.split(CHUNK), classes.split(CHUNK), queries.labels.to(device).split(CHUNK), strict=True
    ):
        votes, counted = weight.new_zeros(len(weight), bank.num_classes), 0
        for k in hits:
            votes.scatter_add_(1, voted[:, counted:k], weight[:, counted:k])
            hits[k], counted = hits[k] + int((votes.argmax(1) == label).sum()), k
    return {k: hits[k] / len(queries.labels) for k in ks}
