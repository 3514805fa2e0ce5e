from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing as mp

from stable_ssl.losses import NTXEntLoss


def plain_ntxent(z_i, z_j, temperature):
    """Equation 1 of the SimCLR paper, pair by pair."""
    z = [v / v.norm() for v in torch.cat([z_i, z_j])]
    n, total = len(z_i), 0.0
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        denominator = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        total += -math.log(math.exp(float(z[i] @ z[positive]) / temperature) / denominator)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_plain_loop(temperature):
    z_i, z_j = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(NTXEntLoss(temperature)(z_i, z_j)) == pytest.approx(plain_ntxent(z_i, z_j, temperature), abs=1e-9)


@pytest.mark.parametrize("chunk_size", [2048, 3])
def test_twice_the_scale_is_the_sum_of_both_directions(chunk_size):
    # The authors' tf2/objective.py: the mean over images of both directions' cross-entropies, added up.
    z_i, z_j = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (torch.nn.functional.normalize(z) for z in (z_i, z_j))
    alone, places = -1e9 * torch.eye(7, dtype=torch.float64), torch.arange(7)
    directions = [torch.cat([a @ b.T, a @ a.T + alone], 1), torch.cat([b @ a.T, b @ b.T + alone], 1)]
    both = sum(torch.nn.functional.cross_entropy(scores / 0.3, places) for scores in directions)
    assert float(NTXEntLoss(0.3, chunk_size, scale=2.0)(z_i, z_j)) == pytest.approx(float(both))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 13, 14, 15])
def test_chunks_change_neither_value_nor_gradient(chunk_size):
    z = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for size in (chunk_size, 100):
        z_i, z_j = (part.clone().requires_grad_() for part in z)
        loss = NTXEntLoss(0.3, chunk_size=size)(z_i, z_j)
        loss.backward()
        found.append((loss.detach(), z_i.grad, z_j.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert float(found[0][0]) == pytest.approx(plain_ntxent(*z, 0.3), abs=1e-9)


def test_chunks_keep_no_similarities():
    z_i, z_j = (torch.randn(512, 8, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        NTXEntLoss(0.5, chunk_size=64)(z_i, z_j)
    assert max(kept) < 2 * 512 * 64


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chunk_size: 0"):
        NTXEntLoss(chunk_size=0)


def test_collapsed_embeddings_are_as_good_as_chance():
    z = torch.ones(8, 4, dtype=torch.float64)
    assert float(NTXEntLoss(0.3)(z, z)) == pytest.approx(math.log(15))


def test_identical_views_of_orthogonal_images():
    z = torch.eye(6, dtype=torch.float64)
    expected = math.log(math.exp(2.0) + 10) - 2.0  # one positive at similarity 1, ten negatives at 0
    assert float(NTXEntLoss(0.5)(z, z)) == pytest.approx(expected)


def test_gradient_is_that_of_finite_differences():
    z_i, z_j = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(NTXEntLoss(0.5), (z_i.detach().requires_grad_(), z_j.detach().requires_grad_()))


def test_is_finite_and_fp32_under_bf16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        loss = NTXEntLoss(0.01)(torch.randn(16, 8).bfloat16() * 100, torch.randn(16, 8).bfloat16())
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4,), (4,)), ((1, 3), (1, 3))])
def test_embeddings_that_make_no_contrast_are_refused(shapes):
    with pytest.raises(ValueError, match="NTXEntLoss needs"):
        NTXEntLoss()(torch.randn(shapes[0]), torch.randn(shapes[1]))


def _gradient_of_a_rank(rank, init, z, out):
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
    half = z[:, 2 * rank : 2 * rank + 2]
    NTXEntLoss(0.5)(half[0] @ weight, half[1] @ weight).backward()
    torch.distributed.all_reduce(weight.grad)
    if rank == 0:
        torch.save(weight.grad / 2, out)  # averaged, as data parallelism does
    torch.distributed.destroy_process_group()


def test_two_ranks_on_halves_have_the_gradient_of_one_on_the_whole_batch(tmp_path):
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
    NTXEntLoss(0.5)(z[0] @ weight, z[1] @ weight).backward()
    mp.spawn(_gradient_of_a_rank, (f"file://{tmp_path}/init", z, tmp_path / "grad.pt"), nprocs=2)
    torch.testing.assert_close(torch.load(tmp_path / "grad.pt"), weight.grad)


def test_equals_lightlys():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install '.[dev]'")
    z = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(NTXEntLoss(0.2)(*z), lightly.NTXentLoss(0.2)(*z))
