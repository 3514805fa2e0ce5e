from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import CPU, labelled
from torch.nn import functional

from stable_ssl import ConfigError
from stable_ssl.evaluation.heads.means import nearest_mean_accuracy
from stable_ssl.evaluation.heads.nearest import knn_accuracies
from stable_ssl.evaluation.protocol import Labelled
from stable_ssl.monitors.knn import nearest_neighbours

KS = (200, 10, 20, 100)


BANK, QUERIES = labelled(800, 1), labelled(600, 2)


def test_one_search_gives_the_accuracies_of_scikit_learn_for_every_k():
    from sklearn.neighbors import KNeighborsClassifier

    found = knn_accuracies(BANK, QUERIES, KS, CPU)
    assert [*found] == [*KS]
    for k in KS:
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
        assert found[k] == theirs.fit(BANK.features, BANK.labels).score(QUERIES.features, QUERIES.labels)
    assert len({*found.values()}) > 1


def test_the_accuracies_are_those_of_lightly():
    knn = pytest.importorskip("lightly.utils.benchmarking.knn", reason="lightly is not installed: pip install '.[dev]'")
    bank, queries = (functional.normalize(own.features, dim=1) for own in (BANK, QUERIES))
    found = knn_accuracies(BANK, QUERIES, KS, CPU, temperature=0.2)
    for k in KS:
        classes = knn.knn_predict(queries, bank.T, BANK.labels, 5, knn_k=k, knn_t=0.2)[:, 0]
        assert found[k] == float((classes == QUERIES.labels).double().mean())


def test_the_smallest_of_classes_with_equal_votes_wins():
    bank = Labelled(torch.eye(2).repeat(2, 1), torch.tensor([2, 1, 1, 2]), 3)
    for label, share in ((1, 1.0), (2, 0.0)):
        assert knn_accuracies(bank, Labelled(torch.ones(1, 2), torch.tensor([label]), 3), [4], CPU) == {4: share}


def test_more_neighbours_than_images_are_refused_in_a_line():
    with pytest.raises(ConfigError, match=r"^k: 200 neighbours are more than the 150 labelled samples of the bank\.$"):
        knn_accuracies(labelled(150, 1), QUERIES, KS, CPU)


class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(("chunk", "bank_chunk"), [(7, 30), (25, 64), (1000, 1000)])
def test_chunks_bound_the_memory_and_change_nothing(chunk, bank_chunk):
    bank, queries = BANK.features, QUERIES.features[:50]
    with Sizes() as sizes:
        similarities, places = nearest_neighbours(bank, queries, 20, chunk, bank_chunk)
    # The results and the queries are (50, 20) and (50, 6); a chunk of the bank is (bank_chunk, 6).
    assert sizes.largest <= max(50 * 20, min(chunk, 50) * min(bank_chunk, 800), 6 * min(bank_chunk, 800))
    expected, order = functional.cosine_similarity(queries[:, None], bank[None], dim=2).sort(descending=True)
    torch.testing.assert_close(similarities, expected[:, :20])
    assert torch.equal(places, order[:, :20])


def test_the_nearest_mean_is_that_of_scikit_learn():
    from sklearn.neighbors import NearestCentroid

    centre = BANK.features.mean(0)
    bank, queries = (functional.normalize(own.features - centre, dim=1).numpy() for own in (BANK, QUERIES))
    expected = NearestCentroid().fit(bank, BANK.labels).score(queries, QUERIES.labels)
    assert nearest_mean_accuracy(BANK, QUERIES, CPU) == expected
    assert 0.3 < expected < 0.95
    with_an_empty_class = Labelled(BANK.features, BANK.labels, 6)
    assert nearest_mean_accuracy(with_an_empty_class, QUERIES, CPU) == expected
