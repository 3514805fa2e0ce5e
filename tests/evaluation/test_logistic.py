from __future__ import annotations

import numpy as np
import pytest
import torch
from blobs import CPU, labelled
from sklearn.linear_model import LogisticRegression

from stable_ssl.evaluation.heads import logistic
from stable_ssl.evaluation.heads.linear import accuracies
from stable_ssl.evaluation.heads.logistic import fit_logistic
from stable_ssl.evaluation.protocol import Labelled

PATH = (100.0, 1e-4, 0.01, 1.0)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_optima_of_a_path_are_those_of_scikit_learn_fitted_alone(num_classes):
    train, test = labelled(150, 1, num_classes), labelled(300, 2, num_classes)
    shifted = Labelled(train.features + 7, train.labels, num_classes)  # its mean is far from 0
    test = Labelled(test.features + 7, test.labels, num_classes)
    weights, biases = fit_logistic(shifted, PATH, CPU)
    assert weights.dtype == torch.float64
    found = accuracies(weights, biases, test)
    for number, inverse_penalty in enumerate(PATH):
        theirs = LogisticRegression(C=inverse_penalty, tol=1e-12, max_iter=100_000)
        theirs.fit(shifted.features.double(), shifted.labels)
        logits = test.features.double() @ weights[number].T + biases[number]
        np.testing.assert_allclose(logits.softmax(1), theirs.predict_proba(test.features.double()), atol=1e-5)
        assert found[number] == theirs.score(test.features.double(), test.labels)
    assert len({*found}) > 1


def test_fewer_iterations_end_earlier():
    train = labelled(150, 1)
    fits = [fit_logistic(train, [10.0], CPU, max_iterations=number)[0] for number in (3, 1000)]
    assert float((fits[0] - fits[1]).abs().max()) > 0.01


def test_images_in_chunks_have_the_optimum_of_all(monkeypatch):
    train = labelled(150, 1)
    whole = fit_logistic(train, [1.0], CPU)
    monkeypatch.setattr(logistic, "MOST", 200)  # 40 images of five classes
    for mine, theirs in zip(fit_logistic(train, [1.0], CPU), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert not torch.equal(mine, theirs)
