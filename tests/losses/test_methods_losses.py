"""Losses with queues, centres, prototypes, random directions and masks: formulas, special cases, and over ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from stable_ssl.compose import compose
from stable_ssl.losses import DINOLoss, IJEPALoss, LeJEPALoss, MAELoss, MoCoLoss, SIGReg, SwAVLoss
from stable_ssl.losses.swav import sinkhorn


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(row):
    exps = [math.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


# MoCo -----------------------------------------------------------------------------------------------------------------


def test_moco_equals_the_plain_loop_before_and_after_the_queue_is_renewed():
    loss, (q, k) = MoCoLoss(4, 6, 0.3).double(), draw(2, 5, 4)
    for _ in range(2):
        queue, total = [row for row in loss.queue.tolist()], 0.0
        for query, key in zip(q.tolist(), k.tolist(), strict=True):
            scores = [dot(unit(query), unit(key)) / 0.3] + [dot(unit(query), n) / 0.3 for n in queue]
            total -= math.log(softmax(scores)[0])
        assert float(loss(q, k)) == pytest.approx(total / 5, abs=1e-6)
        loss.update(k)
        expected = [unit(row) for row in k.tolist()] + queue[:1]
        torch.testing.assert_close(loss.queue, torch.tensor(expected, dtype=torch.float64))


def test_moco_special_cases():
    loss = MoCoLoss(4, 2, 1.0).double()
    loss.queue = torch.eye(4, dtype=torch.float64)[2:]
    first = torch.eye(4, dtype=torch.float64)[:1]
    assert float(loss(first, first)) == pytest.approx(math.log(math.e + 2) - 1)  # identical views, orthogonal negatives
    loss.queue = first.repeat(2, 1)
    assert float(loss(first, first)) == pytest.approx(math.log(3))  # collapsed


def test_moco_equals_lightlys():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install '.[dev]'")
    theirs, ours, (q, k) = (
        lightly.NTXentLoss(0.2, memory_bank_size=(16, 4)),
        MoCoLoss(4, 16, 0.2),
        draw(2, 8, 4).float(),
    )
    theirs(q, k)  # fills its bank
    ours.queue = theirs.memory_bank.bank.clone()
    torch.testing.assert_close(ours(q, k), theirs(q, k))


def test_what_is_not_finite_does_not_enter_a_queue_or_a_centre():
    bad = torch.full((2, 4), float("nan"))
    for loss, name in ((MoCoLoss(4, 6), "queue"), (DINOLoss(4), "center")):
        before = getattr(loss, name).clone()
        loss.update(bad)
        assert torch.equal(getattr(loss, name), before)
    swav = SwAVLoss(4, 3, queue_size=4)
    swav(bad, bad)
    assert torch.equal(swav.queue, torch.zeros(2, 4, 4))


# DINO -----------------------------------------------------------------------------------------------------------------


def test_dino_equals_the_plain_loop_and_its_centre_follows_the_mean():
    loss, (student, teacher) = DINOLoss(6, 0.1, 0.05, 0.8).double(), draw(2, 5, 6)
    loss.center = draw(6, seed=1)
    centre, total = loss.center.tolist(), 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        target = softmax([(x - c) / 0.05 for x, c in zip(t, centre, strict=True)])
        total -= dot(target, map(math.log, softmax([x / 0.1 for x in s])))
    assert float(loss(student, teacher)) == pytest.approx(total / 5, abs=1e-6)
    loss.update(teacher)
    expected = [0.8 * c + 0.2 * sum(row[i] for row in teacher.tolist()) / 5 for i, c in enumerate(centre)]
    torch.testing.assert_close(loss.center, torch.tensor(expected, dtype=torch.float64))


def test_dino_special_cases():
    zeros = torch.zeros(3, 8, dtype=torch.float64)
    assert float(DINOLoss(8)(zeros, zeros)) == pytest.approx(math.log(8))  # collapsed to the uniform distribution
    sure = 100 * torch.eye(8, dtype=torch.float64)[:3]
    assert float(DINOLoss(8)(sure, sure)) == pytest.approx(0)  # one prototype, and the same


def test_dino_equals_lightlys():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install '.[dev]'")
    theirs = lightly.DINOLoss(6, warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=1)
    ours, (s, t) = DINOLoss(6), draw(2, 5, 6).float()
    torch.testing.assert_close(theirs([t], [t, s], epoch=0), ours(s, t))  # its first student's view is the teacher's


# SwAV -----------------------------------------------------------------------------------------------------------------


def plain_sinkhorn(scores, epsilon, iterations):
    q = [[math.exp(x / epsilon) for x in row] for row in scores]
    for _ in range(iterations):
        sums = [sum(row[k] for row in q) for k in range(len(q[0]))]
        q = [[x / s for x, s in zip(row, sums, strict=True)] for row in q]
        q = [[x / sum(row) for x in row] for row in q]
    return q


def test_sinkhorn_equals_the_plain_loop_and_shares_prototypes_out_equally():
    scores = draw(9, 3) / 4
    torch.testing.assert_close(sinkhorn(scores, 0.1, 3), torch.tensor(plain_sinkhorn(scores.tolist(), 0.1, 3)).double())
    many = sinkhorn(scores, 0.1, 500)
    torch.testing.assert_close(many.sum(0), torch.full((3,), 3.0).double())
    assert sinkhorn(scores * 1e4, 0.05, 3).isfinite().all()


def plain_swav(views, prototypes, temperature, epsilon, queues=((), ())):
    prototypes = [unit(c) for c in prototypes]
    scores = [[[dot(unit(z), c) for c in prototypes] for z in view] for view in views]
    total, terms = 0.0, 0
    for v in range(2):
        extra = [[dot(z, c) for c in prototypes] for z in queues[v]]
        q = plain_sinkhorn(scores[v] + extra, epsilon, 3)[: len(views[v])]
        for w in range(len(views)):
            if w != v:
                p = [softmax([x / temperature for x in row]) for row in scores[w]]
                total -= sum(dot(a, map(math.log, b)) for a, b in zip(q, p, strict=True)) / len(q)
                terms += 1
    return total / terms


@pytest.mark.parametrize("num_views", [2, 4])
def test_swav_equals_the_plain_loop_with_and_without_a_full_queue(num_views):
    loss = SwAVLoss(4, 3, 0.2, 0.1, queue_size=6).double()
    batches = [draw(num_views, 4, 4, seed=seed) for seed in range(4)]
    queues = [[], []]
    for views in batches:
        full = len(queues[0]) >= 6
        found = loss(*views)
        used = [queue[:6] for queue in queues] if full else ((), ())
        assert float(found) == pytest.approx(
            plain_swav(views.tolist(), loss.prototypes.weight.tolist(), 0.2, 0.1, used), abs=1e-6
        )
        queues = [[unit(z) for z in views[v].tolist()] + queues[v] for v in range(2)]
    torch.testing.assert_close(loss.queue, torch.tensor([queue[:6] for queue in queues], dtype=torch.float64))


def test_swav_keeps_its_queue_through_a_state_dict_and_leaves_it_alone_in_evaluation():
    loss, other = SwAVLoss(4, 3, queue_size=4), SwAVLoss(4, 3, queue_size=4)
    loss(*draw(2, 4, 4).float())
    other.load_state_dict(loss.state_dict())
    z = draw(2, 4, 4, seed=1).float()
    assert torch.equal(loss(*z), other(*z))
    before = loss.queue.clone()
    loss.eval()(*z)
    loss.train().uses_queue = False
    loss(*z)
    assert torch.equal(loss.queue, before)


def test_swav_equals_lightlys():
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install '.[dev]'")
    ours, views = SwAVLoss(4, 3, 0.1, 0.05), draw(3, 6, 4).float()
    weight = nn.functional.normalize(ours.prototypes.weight)
    scores = [nn.functional.normalize(view) @ weight.T for view in views]
    theirs = lightly.SwaVLoss(0.1, 3, 0.05)
    torch.testing.assert_close(ours(*views), theirs(scores[:2], scores[2:]).squeeze())


# LeJEPA ---------------------------------------------------------------------------------------------------------------


def plain_sigreg(z, directions, points, t_max):
    """Of (batch, dim) and unit directions (slices, dim): the integral from -t_max to t_max, point by point."""
    n, step, total = len(z), t_max / (points - 1), 0.0
    for a in directions:
        for k in range(-points + 1, points):
            t = k * step
            real = sum(math.cos(t * dot(a, row)) for row in z) / n - math.exp(-t * t / 2)
            imaginary = sum(math.sin(t * dot(a, row)) for row in z) / n
            ends = 0.5 if abs(k) == points - 1 else 1.0
            total += n * ends * step * (real**2 + imaginary**2) * math.exp(-t * t / 2)
    return total / len(directions)


def directions_of(seed, dim, slices):
    torch.manual_seed(seed)
    return nn.functional.normalize(torch.randn(dim, slices, dtype=torch.float64), dim=0).T.tolist()


def test_sigreg_equals_the_plain_loop():
    z = draw(7, 3)
    expected = plain_sigreg(z.tolist(), directions_of(5, 3, 4), 9, 2.5)
    torch.manual_seed(5)
    assert float(SIGReg(4, 9, 2.5).double()(z)) == pytest.approx(expected, abs=1e-6)


def test_sigreg_tells_a_standard_normal_from_others():
    torch.manual_seed(0)
    normal, sigreg = torch.randn(4096, 8), SIGReg(256)
    values = [float(sigreg(z)) for z in (normal, 2 * normal, normal + 1, normal.sign(), torch.zeros(4096, 8))]
    assert values[0] < 2 < 10 < min(values[1:])  # sign: each coordinate alone is far from normal, its sketches less so
    one_dimension = normal.clone()
    one_dimension[:, 1:] = 0
    assert float(sigreg(one_dimension)) > 100


def test_lejepa_equals_the_plain_loop_for_any_number_of_views():
    for num_views, num_global in ((2, 2), (4, 2), (3, 1)):
        views = draw(num_views, 5, 3)
        lists, directions = views.tolist(), directions_of(3, 3, 4)
        centre = [[sum(lists[g][i][d] for g in range(num_global)) / num_global for d in range(3)] for i in range(5)]
        invariance = sum(
            (centre[i][d] - lists[v][i][d]) ** 2 for v in range(num_views) for i in range(5) for d in range(3)
        ) / (num_views * 5 * 3)
        sketch = sum(plain_sigreg(view, directions, 17, 3.0) for view in lists) / num_views
        torch.manual_seed(3)
        found = LeJEPALoss(num_global, 0.1, num_slices=4).double()(*views)
        assert float(found) == pytest.approx(0.9 * invariance + 0.1 * sketch, abs=1e-6)


def test_the_recipe_for_cifar10_has_the_loss_of_eb_jepa():
    # eb_jepa/losses.py: mse + 10 (EP(z_1) + EP(z_2)) / 2 by 256 slices and a trapezium of 10 points on [-3, 3].
    z, t = 0.5 * draw(2, 256, 128), torch.linspace(-3, 3, 10, dtype=torch.float64)
    options = compose("lejepa_cifar10")["trainer"]["loss"]
    loss = LeJEPALoss(**{key: value for key, value in options.items() if key != "_target_"}).double()
    torch.manual_seed(0)
    found = loss(*z)
    torch.manual_seed(0)
    slices = z @ nn.functional.normalize(torch.randn(128, 256, dtype=torch.float64), dim=0)  # (views, batch, slices)
    normal, waves = (-t.square() / 2).exp(), torch.exp(1j * slices[..., None] * t).mean(1)  # (views, slices, points)
    statistic = torch.trapezoid(normal * (waves - normal).abs().square(), t).mean()
    expected = nn.functional.mse_loss(*z) + 10 * statistic
    assert float(found) == pytest.approx(float(expected), rel=0.01)  # the points of the integral differ
    assert 0.1 * expected < 10 * statistic < 0.9 * expected  # both terms count


def test_every_view_is_in_lejepas_loss():
    views = [z.requires_grad_() for z in draw(4, 5, 3)]
    LeJEPALoss(2, num_slices=8).double()(*views).backward()
    assert all(z.grad.abs().max() > 1e-4 for z in views)


# MAE and I-JEPA -------------------------------------------------------------------------------------------------------


def test_mae_equals_the_plain_loop():
    predicted, target = draw(2, 3, 4, 5)
    is_real = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    total = 0.0
    for i in range(3):
        errors = []
        for p in range(4):
            row = target[i, p].tolist()
            mean = sum(row) / 5
            deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 4 + 1e-6)
            error = (
                sum((y - (x - mean) / deviation) ** 2 for x, y in zip(row, predicted[i, p].tolist(), strict=True)) / 5
            )
            errors += [error] if is_real[i, p] else []
        total += sum(errors) / len(errors)
    assert float(MAELoss()(predicted, target, is_real)) == pytest.approx(total / 3, abs=1e-6)
    torch.testing.assert_close(MAELoss(normalize=False)(predicted, target), (predicted - target).square().mean())


def test_ijepa_equals_the_plain_loop():
    predicted, target = draw(2, 3, 4, 5)
    is_real = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    total = 0.0
    for i in range(3):
        distances = []
        for p in range(4):
            row = target[i, p].tolist()
            mean = sum(row) / 5
            deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 5 + 1e-5)
            gaps = [abs(y - (x - mean) / deviation) for x, y in zip(row, predicted[i, p].tolist(), strict=True)]
            distances += [sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / 5] if is_real[i, p] else []
        total += sum(distances) / len(distances)
    assert float(IJEPALoss()(predicted, target, is_real)) == pytest.approx(total / 3, abs=1e-6)


def test_a_right_prediction_costs_nothing():
    target = draw(2, 3, 8)
    standard = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert float(MAELoss()(standard, target)) == 0
    assert float(IJEPALoss()(nn.functional.layer_norm(target, (8,)), target)) == 0


# All of them ----------------------------------------------------------------------------------------------------------


class Seeded(nn.Module):
    """Draws the same at each call."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *inputs):
        torch.manual_seed(7)
        return self.loss(*inputs)


def all_losses():
    torch.manual_seed(1)
    return {
        "moco": MoCoLoss(6, 8, 0.2),
        "dino": DINOLoss(6),
        "swav": SwAVLoss(6, 4, queue_size=0),
        "swav with a queue": SwAVLoss(6, 4, queue_size=4),
        "lejepa": Seeded(LeJEPALoss(num_slices=8)),
        "mae": MAELoss(),
        "ijepa": IJEPALoss(),
    }


def inputs_of(name, dtype=torch.float64, batch=4):
    return list(draw(2, batch, 3, 6).to(dtype) if name in ("mae", "ijepa") else draw(2, batch, 6).to(dtype))


@pytest.mark.parametrize("name", all_losses())
def test_gradient_is_that_of_finite_differences(name):
    loss, (a, b) = all_losses()[name].double(), inputs_of(name)
    loss.eval()  # queues stay as they are
    if name.startswith("swav"):  # assignments have no gradient: with two views, they are those of the other input
        z = a.clone().requires_grad_()
        weight = nn.functional.normalize(loss.prototypes.weight.detach())
        fixed = sinkhorn(nn.functional.normalize(b) @ weight.T, 0.05, 3)
        own = sinkhorn(nn.functional.normalize(a) @ weight.T, 0.05, 3)

        def swapped(x):
            scores = [nn.functional.normalize(y) @ weight.T / 0.1 for y in (x, b)]
            return (nn.functional.cross_entropy(scores[0], fixed) + nn.functional.cross_entropy(scores[1], own)) / 2

        assert torch.autograd.gradcheck(swapped, (z,))
        torch.testing.assert_close(torch.autograd.grad(loss(z, b), z)[0], torch.autograd.grad(swapped(z), z)[0])
        return
    both = name == "lejepa"
    if both:
        assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))
    else:  # the second is a target
        assert torch.autograd.gradcheck(lambda x: loss(x, b), (a.requires_grad_(),))


@pytest.mark.parametrize("name", all_losses())
def test_is_finite_and_fp32_under_bf16_autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        loss = all_losses()[name](*(100 * x for x in inputs_of(name, torch.bfloat16)))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", ["moco", "dino", "mae", "ijepa", "lejepa"])
def test_inputs_of_two_shapes_are_refused(name):
    a, b = inputs_of(name, torch.float32)
    with pytest.raises(ValueError, match="of the same shape"):
        all_losses()[name](a, b[..., :3])


@pytest.mark.parametrize("name", ["moco", "dino", "swav"])
def test_another_width_is_refused(name):
    with pytest.raises(ValueError, match="was built for embeddings of width 6, but got width 5"):
        all_losses()[name](torch.randn(4, 5), torch.randn(4, 5))


def _on_a_rank(rank, init, out):
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    found = _gradients(lambda x: x[2 * rank : 2 * rank + 2], all_losses(), average=2)
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


def _gradients(share, losses, average=1):
    """Return gradients of three steps, and what the losses hold afterwards; `share` gives a rank's part of a batch."""
    found = {}
    for name, loss in losses.items():
        loss.double()
        a, b = inputs_of(name)
        weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
        for _ in range(3):
            loss(share(a) @ weight, share(b) @ weight).backward()
            if hasattr(loss, "update"):
                loss.update(share(b) @ weight.detach())
        grads = [weight.grad, *(p.grad for p in loss.parameters())]
        if average > 1:
            for grad in grads:
                torch.distributed.all_reduce(grad)
        found[name] = [grad / average for grad in grads], dict(loss.named_buffers())
    return found


def test_two_ranks_on_halves_have_the_gradients_and_state_of_one_on_the_whole_batch(tmp_path):
    mp.spawn(_on_a_rank, (f"file://{tmp_path}/init", tmp_path / "grad.pt"), nprocs=2)
    found = torch.load(tmp_path / "grad.pt")
    for name, (grads, buffers) in _gradients(lambda x: x, all_losses()).items():
        assert grads[0].abs().max() > 1e-3
        torch.testing.assert_close(found[name][0], grads, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found[name][1], buffers, rtol=1e-6, atol=1e-9)
