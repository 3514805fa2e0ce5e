"""Losses of two embeddings: their formulas, special cases, gradients, and the same over ranks."""

import math

import pytest
import torch
import torch.multiprocessing as mp

from stable_ssl.losses import BarlowTwinsLoss, BYOLLoss, NegativeCosineSimilarity, VICRegLoss

LOSSES = {
    "vicreg": VICRegLoss(),
    "vicreg, other": VICRegLoss(3.0, 5.0, 7.0, 1e-2),
    "barlow": BarlowTwinsLoss(0.3),
    "cosine": NegativeCosineSimilarity(),
    "byol": BYOLLoss(),
}


def plain_vicreg(a, b, sim, std, cov, epsilon):
    n, d = len(a), len(a[0])
    total = sim * sum((a[i][k] - b[i][k]) ** 2 for i in range(n) for k in range(d)) / (n * d)
    for z in (a, b):
        means = [sum(row[k] for row in z) / n for k in range(d)]

        def covariance(k, m, z=z, means=means):
            return sum((row[k] - means[k]) * (row[m] - means[m]) for row in z) / (n - 1)

        total += std / 2 * sum(max(0.0, 1 - math.sqrt(covariance(k, k) + epsilon)) for k in range(d)) / d
        total += cov * sum(covariance(k, m) ** 2 for k in range(d) for m in range(d) if k != m) / d
    return total


def plain_barlow(a, b, lambd):
    n, d = len(a), len(a[0])

    def standardised(z):
        columns = []
        for k in range(d):
            mean = sum(row[k] for row in z) / n
            variance = sum((row[k] - mean) ** 2 for row in z) / n
            columns.append([(row[k] - mean) / math.sqrt(variance + 1e-5) for row in z])
        return columns

    one, other = standardised(a), standardised(b)
    total = 0.0
    for k in range(d):
        for m in range(d):
            c = sum(x * y for x, y in zip(one[k], other[m], strict=True)) / n
            total += (1 - c) ** 2 if k == m else lambd * c**2
    return total


def plain_cosine(a, b):
    def length(row):
        return math.sqrt(sum(x * x for x in row))

    pairs = list(zip(a, b, strict=True))
    return -sum(sum(x * y for x, y in zip(p, z, strict=True)) / length(p) / length(z) for p, z in pairs) / len(pairs)


def plain_byol(a, b):
    def unit(row):
        return [x / math.sqrt(sum(y * y for y in row)) for x in row]

    return sum((x - y) ** 2 for p, z in zip(a, b, strict=True) for x, y in zip(unit(p), unit(z), strict=True)) / len(a)


PLAIN = {
    "vicreg": lambda a, b: plain_vicreg(a, b, 25, 25, 1, 1e-4),
    "vicreg, other": lambda a, b: plain_vicreg(a, b, 3, 5, 7, 1e-2),
    "barlow": lambda a, b: plain_barlow(a, b, 0.3),
    "cosine": plain_cosine,
    "byol": plain_byol,
}


def embeddings(n=6, d=4, seed=0):
    return 0.7 * torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(6, 4), (2, 3), (5, 9)])
def test_equals_the_plain_loops(name, shape):
    a, b = embeddings(*shape)
    assert float(LOSSES[name](a, b)) == pytest.approx(PLAIN[name](a.tolist(), b.tolist()), abs=1e-6)


@pytest.mark.parametrize("name", ["vicreg", "barlow", "cosine"])
def test_equals_lightlys(name):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install '.[dev]'")
    theirs = {
        "vicreg": lightly.VICRegLoss(),
        "barlow": lightly.BarlowTwinsLoss(0.3),
        "cosine": lightly.NegativeCosineSimilarity(),
    }
    a, b = embeddings(32, 8)
    torch.testing.assert_close(LOSSES[name](a, b), theirs[name](a, b))


def test_collapsed_embeddings_cost_their_missing_variance_only():
    z = torch.ones(8, 5, dtype=torch.float64)
    assert float(VICRegLoss(epsilon=1e-4)(z, z)) == pytest.approx(25 * (1 - 0.01))
    assert float(BarlowTwinsLoss()(z, z)) == pytest.approx(5)


def test_identical_decorrelated_views_cost_nothing():
    z = torch.linalg.qr(embeddings(64, 8)[0] - embeddings(64, 8)[0].mean(0))[0] * math.sqrt(63)  # of covariance 1
    z = z - z.mean(0)
    assert float(VICRegLoss()(z, z)) == pytest.approx(0, abs=1e-6)
    assert float(BarlowTwinsLoss()(z, z)) == pytest.approx(0, abs=1e-6)
    assert float(NegativeCosineSimilarity()(z, 3 * z)) == pytest.approx(-1)
    assert float(NegativeCosineSimilarity()(torch.eye(4), torch.eye(4).roll(1, 0))) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name):
    a, b = embeddings(5, 3)
    assert torch.autograd.gradcheck(LOSSES[name], (a.requires_grad_(), b.clone().requires_grad_()))


@pytest.mark.parametrize("name", LOSSES)
def test_is_finite_and_fp32_under_bf16_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](torch.randn(16, 8).bfloat16() * 100, torch.randn(16, 8).bfloat16())
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_of_other_shapes_are_refused(name):
    with pytest.raises(
        ValueError, match=r"needs two embeddings of the same shape \(batch, dim\), but got \(4, 3\) and \(4, 2\)"
    ):
        LOSSES[name](torch.randn(4, 3), torch.randn(4, 2))


@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_a_batch_of_one_is_refused(name):
    with pytest.raises(ValueError, match="at least 2 images"):
        LOSSES[name](torch.randn(1, 3), torch.randn(1, 3))


def _gradients_of_a_rank(rank, init, z, out):
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    found = {}
    for name, loss in LOSSES.items():
        weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
        half = z[:, 2 * rank : 2 * rank + 2]
        loss(half[0] @ weight, half[1] @ weight).backward()
        torch.distributed.all_reduce(weight.grad)
        found[name] = weight.grad / 2  # averaged, as data parallelism does
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


def test_two_ranks_on_halves_have_the_gradients_of_one_on_the_whole_batch(tmp_path):
    z = embeddings(4, 3)
    mp.spawn(_gradients_of_a_rank, (f"file://{tmp_path}/init", z, tmp_path / "grad.pt"), nprocs=2)
    found = torch.load(tmp_path / "grad.pt")
    for name, loss in LOSSES.items():
        weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
        loss(z[0] @ weight, z[1] @ weight).backward()
        assert weight.grad.abs().max() > 0.01
        torch.testing.assert_close(found[name], weight.grad)
