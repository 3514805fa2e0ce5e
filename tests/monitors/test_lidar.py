from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from stable_ssl import JointEmbeddingTrainer, NTXEntLoss
from stable_ssl.data import Loader
from stable_ssl.monitors import LiDAR


def embeddings(n, q, dim, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 1, dim, generator=generator) * torch.linspace(0.2, 2, dim)
    return means + noise * torch.randn(n, q, dim, generator=generator)


def looped(classes, epsilon, delta):
    """The formulas, sample by sample, with the inverse square root that they have."""
    classes = classes.double().numpy()
    n, q, dim = classes.shape
    between, within = np.zeros((dim, dim)), delta * np.eye(dim)
    mean = sum(classes[x].mean(0) for x in range(n)) / n
    for x in range(n):
        centre = classes[x].mean(0)
        between += np.outer(centre - mean, centre - mean) / (n - 1)
        for i in range(q):
            within += np.outer(classes[x, i] - centre, classes[x, i] - centre) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root).clip(0)
    entropy = 0.0
    for value in eigenvalues:
        p = value / eigenvalues.sum() + epsilon
        entropy -= p * math.log(p)
    return math.exp(entropy)


@pytest.mark.parametrize(("n", "q", "dim"), [(40, 2, 6), (40, 5, 6), (5, 3, 12), (2, 2, 3)])
@pytest.mark.parametrize("delta", [1e-4, 1e-2])
def test_equals_the_formulas_in_loops(n, q, dim, delta):
    classes = embeddings(n, q, dim)
    found = LiDAR(epsilon=1e-6, delta=delta).lidar(list(classes))
    assert isinstance(found, float)
    assert found == pytest.approx(looped(classes, 1e-6, delta), rel=1e-6)


def test_is_the_same_for_any_invertible_map_of_the_embeddings():
    classes = embeddings(60, 4, 5)
    shear = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    monitor = LiDAR(delta=1e-9)
    assert monitor.lidar(list(classes @ shear)) == pytest.approx(monitor.lidar(list(classes)), rel=1e-4)


def test_isotropic_means_have_full_rank_and_means_on_a_line_rank_one():
    dim = 8
    corners = torch.cat([torch.eye(dim), -torch.eye(dim)])[:, None].repeat(1, 2, 1)
    assert LiDAR().lidar(list(corners)) == pytest.approx(dim, rel=1e-4)
    line = torch.linspace(-1, 1, 32)[:, None, None] * torch.ones(1, 2, dim)
    assert LiDAR().lidar(list(line)) == pytest.approx(1, rel=1e-3)


def test_directions_that_views_disagree_in_count_for_little():
    """RankMe would take the noise of the views for information."""
    generator = torch.Generator().manual_seed(0)
    classes = 0.1 * torch.randn(4000, 2, 6, generator=generator)
    classes[..., 0] += torch.randn(4000, 1, generator=generator) * 3
    assert LiDAR().lidar(list(classes)) < 1.1


def test_images_that_are_all_the_same_have_rank_one():
    assert LiDAR().lidar(list(torch.zeros(5, 2, 16))) == pytest.approx(1, rel=1e-3)
    views = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0)).repeat(5, 1, 1)
    assert LiDAR().lidar(list(views)) == pytest.approx(1, rel=1e-3)
    assert LiDAR().lidar(list(views[:1])) == pytest.approx(1, rel=1e-3)


def test_embeddings_that_are_not_finite_or_far_too_large_do_not_end_the_run():
    classes = embeddings(6, 2, 4)
    assert np.isnan(LiDAR().lidar([*classes, torch.full((2, 4), float("inf"))]))
    assert np.isnan(LiDAR().lidar(list(1e12 * embeddings(3, 2, 12))))


def test_one_view_is_too_few():
    with pytest.raises(ValueError, match="2 embeddings of each image"):
        LiDAR().lidar(list(torch.zeros(5, 1, 4)))
    with pytest.raises(ValueError, match="at least 2 views of each image"):
        LiDAR().on_step(SimpleNamespace(latest_embeddings=torch.zeros(5, 4), num_views=1))
    with pytest.raises(ValueError, match="latest_embeddings"):
        LiDAR().on_step(SimpleNamespace(latest_embeddings=None))


def step(classes, as_list=False):
    views = list(classes.transpose(0, 1))
    return SimpleNamespace(latest_embeddings=views if as_list else torch.cat(views), num_views=len(views))


def test_looks_at_the_newest_images_and_resumes_with_them():
    batches = embeddings(28, 3, 4).split(4)
    monitor = LiDAR(n=10)
    assert monitor.compute(None) is None
    for number, batch in enumerate(batches):
        monitor.on_step(step(batch, as_list=number % 2))
    expected = LiDAR().lidar(list(torch.cat(batches)[-10:]))
    assert monitor.compute(None) == pytest.approx(expected)
    assert sum(map(len, monitor.state_dict()["held"])) <= 12
    again = LiDAR(n=10)
    again.load_state_dict(monitor.state_dict())
    assert again.compute(None) == monitor.compute(None)
    for one in (monitor, again):
        one.on_step(step(embeddings(4, 3, 4, seed=1)))
    assert again.compute(None) == monitor.compute(None) != expected


def on_ranks(n, sizes):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    monitor = LiDAR(n=n)
    for number, (first, second) in enumerate(sizes):
        classes = embeddings(first + second, 2, 4, seed=number)
        monitor.on_step(step(classes[first:] if rank else classes[:first]))
    found, share = monitor.compute(None), len(torch.cat(monitor.state_dict()["held"]))
    dist.destroy_process_group()
    return found, share


@pytest.mark.parametrize("sizes", [[(4, 4), (4, 4)], [(4, 4), (5, 4)]])
def test_two_ranks_look_at_what_one_does(start_ranks, sizes):
    first, second = start_ranks(on_ranks, 100, sizes).results()
    alone = LiDAR(n=100)
    for number, (a, b) in enumerate(sizes):
        alone.on_step(step(embeddings(a + b, 2, 4, seed=number)))
    assert first[0] == second[0] == pytest.approx(alone.compute(None), rel=1e-9)


def test_n_is_of_all_ranks_together(start_ranks):
    results = start_ranks(on_ranks, 4, [(4, 4), (2, 2)]).results()
    assert [share for _, share in results] == [2, 2]
    alone = LiDAR(n=4)
    alone.on_step(step(embeddings(4, 2, 4, seed=1)))
    assert results[0][0] == pytest.approx(alone.compute(None), rel=1e-9)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        x = torch.randn(8, generator=torch.Generator().manual_seed(index))
        return [x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)], int(x[0] > 0)


@pytest.fixture
def train(make_toy, tmp_path):
    def train(name, monitor, epochs=2, **options):
        torch.manual_seed(0)
        trainer = make_toy(
            JointEmbeddingTrainer, {"train": Loader(Pairs(), 8, shuffle=True)},
            {"backbone": nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2)), "projector": nn.Linear(16, 4)},
            loss=NTXEntLoss(), logger={"dump_path": tmp_path / name, "monitor": monitor}, epochs=epochs, **options,
        )  # fmt: skip
        trainer()
        return trainer

    return train


def test_weights_are_the_same_bits_with_and_without_it(train):
    without, watched = train("a", {}), train("b", {"train": {"lidar": LiDAR(n=20)}})
    assert watched.state_dict().keys() == without.state_dict().keys()
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in watched.state_dict().items())
    assert all(1 <= record["train/lidar"] <= 4.01 for record in watched.get_logs())


def test_a_run_that_goes_on_logs_the_same(train):
    whole = train("whole", {"train": {"lidar": LiDAR(n=20)}}, epochs=3)
    train("parts", {"train": {"lidar": LiDAR(n=20)}}, epochs=1)
    parts = train("parts", {"train": {"lidar": LiDAR(n=20)}}, epochs=3)
    logged = [[record["train/lidar"] for record in trainer.get_logs()] for trainer in (whole, parts)]
    assert logged[0] == logged[1]
    assert len(logged[0]) == 12


def test_bf16_embeddings_will_do(train):
    trainer = train("bf16", {"train": {"lidar": LiDAR(n=20)}}, hardware={"precision": "bf16"})
    assert trainer.latest_embeddings.dtype == torch.bfloat16
    assert trainer.get_logs()[-1]["train/lidar"] > 1
