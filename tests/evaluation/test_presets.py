from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import CPU, labelled
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from stable_ssl import ConfigError
from stable_ssl.evaluation.presets import PROTOCOLS, held_out, low_shot, published
from stable_ssl.evaluation.protocol import Labelled, OnFeatures
from stable_ssl.evaluation.splits import places_in_class, tenth

TRAIN, TEST = labelled(400, 1), labelled(300, 2)
# The second kind of features is worth less.
TRAINS = {"b": replace(TRAIN, features=TRAIN.features[:, :2]), "a": TRAIN}
TESTS = {"b": replace(TEST, features=TEST.features[:, :2]), "a": TEST}


ON_FEATURES = {name: protocol for name, protocol in PROTOCOLS.items() if isinstance(protocol, OnFeatures)}


def measure(name, train=None, test=None, seed=0):
    return PROTOCOLS[name].measure(train or {"a": TRAIN}, test or {"a": TEST}, seed, CPU)


@pytest.fixture
def quick(monkeypatch):
    """Shorten what takes long; the values themselves have a test of their own."""
    monkeypatch.setattr(held_out, "EPOCHS", 3)
    monkeypatch.setattr(published, "INVERSE_PENALTIES", published.INVERSE_PENALTIES[::11])


def test_the_settings_are_those_of_the_papers_and_of_the_default():
    pairs = [(lr, decay) for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3) for decay in (0, 0.0001)]
    assert [(one["lr"], one["weight_decay"]) for one in held_out.GRID] == pairs
    assert (held_out.KS, held_out.BATCH, held_out.EPOCHS) == ((10, 20, 100, 200), 256, 100)
    penalties = [one["C"] for one in published.INVERSE_PENALTIES]
    assert len(penalties) == 45
    assert penalties == pytest.approx([10 ** (-6 + 0.25 * number) for number in range(45)])
    assert published.KS == (10, 20, 100, 200)
    assert {name: (p.features, p.view, p.chosen_on, p.seeds) for name, p in ON_FEATURES.items()} == {
        "held-out": (("representation",), "own", "10 % of train", 3),
        "knn": (("representation",), "own", "10 % of train", 3),
        "linear": (("representation",), "own", "10 % of train", 3),
        "dino-knn": (("class",), "224", "nothing", 1),
        "dinov2-logreg": (("class",), "224", "10 % of train", 1),
        "simpleshot": (("representation",), "own", "nothing", 1),
        "low-shot": (("representation",), "own", "nothing", 5),
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ON_FEATURES)
def test_test_labels_never_change_what_is_chosen(name):
    shuffled = TEST.labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    others = {key: replace(own, labels=shuffled) for key, own in TESTS.items()}
    mine, theirs = measure(name, TRAINS, TESTS), measure(name, TRAINS, others)
    assert [(one.chosen, one.details, one.features) for one in mine] == [
        (one.chosen, one.details, one.features) for one in theirs
    ]
    assert [one.accuracy for one in mine] != [one.accuracy for one in theirs]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_seed_gives_the_same_figures_and_their_names_are_unique(name):
    figures = measure(name, TRAINS, TESTS, 1)
    assert figures == measure(name, TRAINS, TESTS, 1)
    assert len({(one.name, one.features) for one in figures}) == len(figures)
    again = measure(name, TRAINS, TESTS, 2)
    assert (figures == again) == (PROTOCOLS[name].seeds == 1)


@pytest.mark.usefixtures("quick")
def test_held_out_is_its_halves_and_chooses_the_best_of_the_tenth_with_its_features():
    figures = measure("held-out", TRAINS, TESTS)
    assert figures == measure("knn", TRAINS, TESTS) + measure("linear", TRAINS, TESTS)
    for one, number in zip(figures, (4, 16), strict=True):
        choices = one.details["choices"]
        assert len(choices) == 2 * number
        best = max(choices, key=lambda choice: choice["accuracy"])
        assert {**one.chosen, "accuracy": best["accuracy"]} == best
        assert one.features == one.chosen["features"] == "a"
    assert "features" not in measure("knn")[0].chosen


def neighbours(k):
    return KNeighborsClassifier(k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))


def test_k_is_chosen_on_the_tenth_and_the_bank_is_then_all_of_train():
    apart = tenth(TRAIN.labels, 5)
    found = {
        k: neighbours(k)
        .fit(TRAIN.features[~apart], TRAIN.labels[~apart])
        .score(TRAIN.features[apart], TRAIN.labels[apart])
        for k in (10, 20, 100, 200)
    }
    (figure,) = measure("knn", seed=5)
    assert [choice["accuracy"] for choice in figure.details["choices"]] == [*found.values()]
    best = max(found, key=found.get)
    assert figure.chosen == {"k": best}
    assert figure.accuracy == neighbours(best).fit(TRAIN.features, TRAIN.labels).score(TEST.features, TEST.labels)


def test_published_protocols_give_what_scikit_learn_does(monkeypatch):
    figures = measure("dino-knn")
    assert [one.name for one in figures] == ["knn-10", "knn-20", "knn-100", "knn-200"]
    for one, k in zip(figures, (10, 20, 100, 200), strict=True):
        assert one.accuracy == neighbours(k).fit(TRAIN.features, TRAIN.labels).score(TEST.features, TEST.labels)

    monkeypatch.setattr(published, "INVERSE_PENALTIES", [{"C": 10.0**power} for power in (-5, -3, -1, 1)])
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    chooser, rest = order[:40], order[40:]
    x, y = TRAIN.features.double(), TRAIN.labels
    scores = {
        c: LogisticRegression(C=c, tol=1e-12, max_iter=1000).fit(x[rest], y[rest]).score(x[chooser], y[chooser])
        for c in (1e-5, 1e-3, 0.1, 10.0)
    }
    (figure,) = measure("dinov2-logreg")
    assert [choice["accuracy"] for choice in figure.details["choices"]] == [*scores.values()]
    best = max(scores, key=scores.get)
    assert figure.chosen == {"C": best}
    theirs = LogisticRegression(C=best, tol=1e-12, max_iter=1000).fit(x, y)
    assert figure.accuracy == theirs.score(TEST.features.double(), TEST.labels)

    means = make_pipeline(StandardScaler(with_std=False), Normalizer(), NearestCentroid()).fit(TRAIN.features, y)
    assert measure("simpleshot")[0].accuracy == means.score(TEST.features, TEST.labels)


def test_low_shot_takes_each_share_of_each_class_and_every_sample_is_a_part_of_the_larger_ones():
    labels = torch.tensor([0] * 130 + [1] * 90 + [2] * 60)
    labels = labels[torch.randperm(280, generator=torch.Generator().manual_seed(0))]
    taken = low_shot.samples(labels, 3)
    counts = {name: labels[images].bincount().tolist() for name, images in taken.items()}
    assert counts == {
        "1%": [1, 1, 1], "10%": [13, 9, 6],
        **{f"{shots}-shot": [shots] * 3 for shots in (1, 2, 4, 8, 16)},
    }  # fmt: skip
    for smaller, larger in itertools.pairwise(taken[f"{shots}-shot"] for shots in (1, 2, 4, 8, 16)):
        assert bool((larger | ~smaller).all())
    assert bool((taken["10%"] | ~taken["4-shot"]).all())
    assert not torch.equal(taken["16-shot"], low_shot.samples(labels, 4)["16-shot"])
    few = torch.tensor([0] * 49 + [1] * 7)
    assert [*low_shot.samples(few, 0)] == ["10%", "1-shot", "2-shot", "4-shot"]
    figures = measure("low-shot", {"a": Labelled(torch.randn(56, 6), few, 2)}, {"a": TEST})
    told = {text for figure in figures for text in figure.details["departures"]}
    assert told == {"1%, 8-shot, 16-shot: left out, since a class has too few images"}


def test_the_heads_of_low_shot_are_those_of_scikit_learn():
    figures = {one.name: one for one in measure("low-shot", seed=3)}
    for amount, images in low_shot.samples(TRAIN.labels, 3).items():
        x, y = TRAIN.features[images].double(), TRAIN.labels[images]
        logistic = make_pipeline(StandardScaler(), LogisticRegression(C=1, tol=1e-10, max_iter=10_000)).fit(x, y)
        means = make_pipeline(StandardScaler(with_std=False), Normalizer(), NearestCentroid()).fit(x, y)
        for head, theirs in (("logistic", logistic), ("nearest-mean", means)):
            assert figures[f"{amount} {head}"].accuracy == theirs.score(TEST.features.double(), TEST.labels)
            assert figures[f"{amount} {head}"].details["images"] == len(y)


def test_the_tenth_is_stratified_and_leaves_an_image_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 54 + [2] * 3 + [3])
    apart = tenth(labels, 0)
    assert labels[apart].bincount().tolist() == [10, 5, 1]
    assert torch.equal(apart, tenth(labels, 0))
    assert not torch.equal(apart, tenth(labels, 1))
    assert sorted(places_in_class(labels, 0)[labels == 1].tolist()) == [*range(54)]
    with pytest.raises(ConfigError, match="No class has two labelled training images"):
        tenth(torch.arange(4), 0)


def test_held_out_takes_the_k_that_fit_and_refuses_a_bank_for_none():
    small = labelled(60, 1)
    assert [choice["k"] for choice in measure("knn", {"a": small})[0].details["choices"]] == [10, 20]
    tiny = Labelled(small.features[:8], torch.arange(8) % 2, 2)
    with pytest.raises(ConfigError, match=r"^k: 10 neighbours are more than the 6 labelled images in nine tenths"):
        measure("knn", {"a": tiny})
    with pytest.raises(
        ConfigError, match="^200 neighbours are more than the 60 labelled training images. The protocol knn"
    ):
        measure("dino-knn", {"a": small})
    with pytest.raises(ConfigError, match="^A tenth of the 8 labelled training images chooses, but that is none"):
        measure("dinov2-logreg", {"a": tiny})
