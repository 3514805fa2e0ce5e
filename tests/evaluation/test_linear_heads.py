from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from blobs import CPU, labelled
from torch.nn import functional

from stable_ssl.data.order import epoch_order
from stable_ssl.evaluation.heads.linear import cosine, fit_heads
from stable_ssl.evaluation.protocol import Labelled

TRAIN, TEST = labelled(90, 1), labelled(200, 2)
RATES, DECAYS = (1e-3, 0.03, 0.3, 0.3), (0.0, 0.1, 0.0, 0.01)
EPOCHS, BATCH = 3, 20


def reference(rate, decay, batch_norm, seed=0):
    """One head of the grid, by torch's own layers, optimizer and schedule."""
    linear = torch.nn.Linear(6, 5)
    heads = fit_heads(TRAIN, [rate], [decay], [], seed, CPU)
    linear.load_state_dict({"weight": heads.weight[0], "bias": heads.bias[0]})
    norm = torch.nn.BatchNorm1d(6, affine=False) if batch_norm else torch.nn.Identity()
    made = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    iterations = EPOCHS * (90 // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, iterations, eta_min=0)
    for epoch in range(EPOCHS):
        order = epoch_order(90, shuffle=True, sampler=None, seed=seed, epoch=epoch)
        for first in range(0, 80, BATCH):
            batch = order[first : first + BATCH]
            made.zero_grad()
            functional.cross_entropy(linear(norm(TRAIN.features[batch])), TRAIN.labels[batch]).backward()
            made.step()
            schedule.step()
    classes = linear(norm.eval()(TEST.features)).argmax(1)
    return linear, float((classes == TEST.labels).double().mean())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_each_head_of_a_grid_is_what_torch_fits_alone(batch_norm):
    schedule = cosine(EPOCHS * (90 // BATCH))
    heads = fit_heads(TRAIN, RATES, DECAYS, schedule, 0, CPU, BATCH, batch_norm)
    accuracies = heads.accuracies(TEST)
    for number, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        expected, accuracy = reference(rate, decay, batch_norm)
        torch.testing.assert_close(heads.weight[number], expected.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias[number], expected.bias, rtol=1e-5, atol=1e-6)
        assert accuracies[number] == pytest.approx(accuracy, abs=1e-9)
    assert len({*accuracies}) > 1


@pytest.mark.parametrize("num_classes", [2, 5])
def test_a_head_ends_at_the_optimum_that_scikit_learn_finds(num_classes):
    """With all images in a batch and weight decay 1 / (C · images). Biases decay too, so they are a column there."""
    from sklearn.linear_model import LogisticRegression

    train, decay = labelled(120, 1, num_classes), 0.02
    heads = fit_heads(train, [0.5], [decay], [1.0] * 1500, 0, CPU, batch_norm=False)
    # Two vectors that differ by scikit-learn's one have half its penalty.
    inverse = (2 if num_classes == 2 else 1) / (decay * 120)
    with_ones = np.hstack([train.features.double(), np.ones((120, 1))])
    theirs = LogisticRegression(C=inverse, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(with_ones, train.labels)
    found = torch.cat([heads.weight[0], heads.bias[0][:, None]], 1).detach()
    found = found[1:] - found[:1] if num_classes == 2 else found
    torch.testing.assert_close(found.double(), torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)


def test_first_values_are_those_of_a_linear_layer():
    wide = Labelled(torch.zeros(1, 400), torch.zeros(1, dtype=torch.long), 50)
    uniform = fit_heads(wide, [1.0, 2.0], [0.0, 0.0], [], 0, CPU)
    assert torch.equal(uniform.weight[0], uniform.weight[1])
    bound = 1 / math.sqrt(400)
    assert bound * 0.99 < float(uniform.weight.detach().abs().max()) <= bound
    assert bound * 0.8 < float(uniform.bias.detach().abs().max()) <= bound


def test_a_seed_gives_the_same_bits_and_another_does_not():
    def fit(seed):
        return fit_heads(TRAIN, RATES, DECAYS, cosine(12), seed, CPU, BATCH).weight

    torch.manual_seed(1)
    first = fit(0)
    torch.manual_seed(2)
    assert torch.equal(first, fit(0))
    assert not torch.equal(first, fit(1))


def test_every_batch_is_whole_so_that_batch_norm_never_sees_one_image():
    train = labelled(41, 1)
    heads = fit_heads(train, [0.1], [0.0], cosine(6), 0, CPU, 20)
    assert heads.weight.isfinite().all()
    assert int(heads.norm.num_batches_tracked) == 6


def test_a_head_that_diverged_finds_nothing():
    train = Labelled(TRAIN.features, torch.zeros_like(TRAIN.labels), 5)  # which a head of NaN would find
    heads = fit_heads(train, [0.1, torch.inf], [0.0, 0.0], cosine(12), 0, CPU, BATCH)
    assert not heads.weight[1].isfinite().all()
    assert heads.accuracies(train) == [1.0, 0.0]
