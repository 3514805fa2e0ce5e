from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stable_ssl.monitors import RankMe


def test_equals_the_formula_in_numpy():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    s = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert RankMe.rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)


def test_orthogonal_embeddings_have_full_rank_and_collapsed_ones_rank_one():
    assert RankMe.rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert RankMe.rankme(torch.ones(32, 16)) == pytest.approx(1, rel=1e-4)


def test_looks_at_the_newest_and_resumes_with_them():
    batches = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))
    monitor = RankMe(limit=10)
    for batch in batches:
        monitor.on_step(SimpleNamespace(latest_embeddings=batch))
    expected = RankMe.rankme(batches.reshape(-1, 3)[-10:])
    assert monitor.compute(None) == pytest.approx(expected)
    again = RankMe(limit=10)
    again.load_state_dict(monitor.state_dict())
    assert again.compute(None) == monitor.compute(None)


def test_a_trainer_without_embeddings_is_told():
    with pytest.raises(ValueError, match="latest_embeddings"):
        RankMe().on_step(SimpleNamespace(latest_embeddings=None))


def test_before_the_first_step_there_is_nothing_to_compute():
    assert RankMe().compute(None) is None


def test_views_may_come_as_a_list_and_zeros_have_rank_one():
    monitor = RankMe()
    monitor.on_step(SimpleNamespace(latest_embeddings=[torch.zeros(3, 4), torch.zeros(3, 4)]))
    assert monitor.compute(None) == pytest.approx(1, rel=1e-3)


def test_embeddings_that_are_not_finite_do_not_end_the_run():
    assert np.isnan(RankMe.rankme(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])))
