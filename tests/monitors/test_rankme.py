from __future__ import annotations

import logging
from collections import deque
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


def step(embeddings=None, representations=None, num_views=1):
    return SimpleNamespace(latest_embeddings=embeddings, latest_representations=representations, num_views=num_views)


@pytest.mark.parametrize(("limit", "kept"), [(70, 70), (None, 100)])
def test_looks_at_the_newest_and_resumes_with_them(limit, kept):
    """Without a limit it looks at 12.5 of each dimension."""
    batches = torch.randn(7, 30, 8, generator=torch.Generator().manual_seed(0))
    monitor = RankMe(limit)
    for batch in batches:
        monitor.on_step(step(batch, representations=torch.ones(30, 8)))
    expected = RankMe.rankme(batches.reshape(-1, 8)[-kept:])
    assert monitor.compute(None) == pytest.approx(expected)
    assert RankMe.rankme(batches.reshape(-1, 8)[-kept - 1 :]) != pytest.approx(expected)
    again = RankMe(limit)
    again.load_state_dict(monitor.state_dict())
    assert again.compute(None) == monitor.compute(None)


def test_without_a_limit_standard_normals_score_99_percent_of_their_dimensions():
    monitor = RankMe()
    for seed in range(9):
        monitor.on_step(step(torch.randn(400, 256, generator=torch.Generator().manual_seed(seed))))
    assert monitor.compute(None) == pytest.approx(0.99 * 256, rel=2e-3)


@pytest.mark.parametrize(("dim", "limit"), [(128, 1_600), (2_048, 25_600), (4_096, 12_800), (50_000_000, 1)])
def test_the_memory_of_the_papers_25600_embeddings_is_never_exceeded(dim, limit):
    monitor = RankMe()
    batch = torch.zeros(1, 1).expand(25_700, dim)  # takes no memory
    monitor.on_step(step(batch))
    assert [held.shape for held in monitor.state_dict()["held"]] == [(limit, dim)]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_limit_of_64_or_less_counts_batches_of_representations_as_in_early_2025(as_list, caplog):
    views = (
        torch.randn(9, 2, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 10)[:, None, None, None]
    )
    monitor, newest = RankMe(limit=8), deque(maxlen=8)
    with caplog.at_level(logging.WARNING, "stable_ssl"):
        monitor.check(None, "logger.monitor.train.rankme")
        RankMe(limit=65).check(None, "")
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "logger.monitor.train.rankme: limit: 8 is read as 8 batches of representations"
    ]
    for first, second in views:
        newest += [first, second]
        pair = [first, second] if as_list else torch.cat([first, second])
        monitor.on_step(step(torch.ones(10, 3), pair, num_views=2))
    s = torch.linalg.svdvals(torch.cat(list(newest)))
    p = s / s.sum() + 1e-7
    assert monitor.compute(None) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)


def test_looks_at_what_there_is():
    only = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for limit, features in ((None, {"representations": only}), (8, {"embeddings": only})):
        monitor = RankMe(limit)
        monitor.on_step(step(**features))
        assert monitor.compute(None) == pytest.approx(RankMe.rankme(only))
    with pytest.raises(ValueError, match="latest_embeddings or latest_representations"):
        RankMe().on_step(step())
    with pytest.raises(ValueError, match="limit must be at least 1, or null, not 0"):
        RankMe(0)


def test_before_the_first_step_there_is_nothing_to_compute():
    assert RankMe().compute(None) is None


def test_views_may_come_as_a_list_and_zeros_have_rank_one():
    monitor = RankMe()
    monitor.on_step(step([torch.zeros(3, 4), torch.zeros(3, 4)]))
    assert monitor.compute(None) == pytest.approx(1, rel=1e-3)


def test_embeddings_that_are_not_finite_do_not_end_the_run():
    assert np.isnan(RankMe.rankme(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])))
