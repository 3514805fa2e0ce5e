from __future__ import annotations

import pytest
import torch
from torch import nn

from stable_ssl.optimizers import LARS, param_groups


def plain_lars(w, grads, lr, momentum, eta, weight_decay, nesterov, decay_in_norm):
    """Algorithm 1 of the LARS paper for one parameter, with SGD's momentum, or as Barlow Twins' main.py changes it."""
    buffer = None
    for g in grads:
        measured = g + weight_decay * w if decay_in_norm else g
        norm = measured.norm() + (0 if decay_in_norm else weight_decay * w.norm())
        trust = eta * w.norm() / norm if measured.norm() > 0 and w.norm() > 0 else 1.0
        step = (g + weight_decay * w) * trust
        buffer = step if buffer is None else momentum * buffer + step
        w = w - lr * (step + momentum * buffer if nesterov else buffer)
    return w


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_in_norm", [False, True])
def test_lars_equals_the_plain_algorithm(nesterov, decay_in_norm):
    torch.manual_seed(0)
    start, grads = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 4, 3, dtype=torch.float64)
    grads[2] = 0
    w = nn.Parameter(start.clone())
    options = {"momentum": 0.9, "eta": 0.01, "weight_decay": 0.1, "nesterov": nesterov, "decay_in_norm": decay_in_norm}
    optimizer = LARS([w], lr=0.5, **options)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(w.detach(), plain_lars(start, grads, 0.5, **options))


@pytest.mark.parametrize(("decay_in_norm", "factor"), [(False, 1 - 0.1), (True, 1 - 0.01)])
def test_a_weight_whose_gradient_is_zero_decays_by_eta_if_the_decay_is_measured_too(decay_in_norm, factor):
    w = nn.Parameter(torch.full((4, 3), 2.0))
    w.grad = torch.zeros_like(w)
    LARS([w], eta=0.01, weight_decay=0.1, decay_in_norm=decay_in_norm).step()  # without lr it is 1, as in early 2025
    torch.testing.assert_close(w.detach(), torch.full((4, 3), 2.0 * factor))


def test_a_clipped_rate_is_that_of_lars_up_to_the_learning_rate():
    big, small = nn.Parameter(torch.full((4,), 100.0)), nn.Parameter(torch.full((4,), 0.01))
    optimizer = LARS([big, small], lr=0.5, eta=0.02, clip_lr=True)
    for p in (big, small):
        p.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(big.detach(), torch.full((4,), 100 - 0.5))  # its ratio, 2, would be more than lr
    torch.testing.assert_close(small.detach(), torch.full((4,), 0.01 - 0.02 * 0.01))  # η ‖w‖ / ‖g‖, whatever lr is


def test_an_excluded_group_is_plain_sgd():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    pair = LARS([{"params": [ours], "lars_exclude": True}], **options), torch.optim.SGD([theirs], **options)
    for g in torch.randn(4, 3):
        ours.grad, theirs.grad = g.clone(), g.clone()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_state_from_before_there_was_a_choice_is_taken_over():
    w = nn.Parameter(torch.ones(3))
    early = LARS([w]).state_dict()
    del early["param_groups"][0]["decay_in_norm"]
    for decay_in_norm in (False, True):
        optimizer = LARS([w], decay_in_norm=decay_in_norm)
        optimizer.load_state_dict(early)
        assert optimizer.param_groups[0]["decay_in_norm"] == decay_in_norm


def test_a_parameter_of_zeros_still_moves():
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.ones(3)
    LARS([w], lr=0.1).step()
    torch.testing.assert_close(w.detach(), torch.full((3,), -0.1))


def test_groups_hold_each_trainable_parameter_once():
    shared = nn.Linear(4, 4)
    frozen = nn.Linear(4, 4).requires_grad_(False)
    modules = {"a": nn.Sequential(shared, nn.BatchNorm1d(4)), "b": shared, "c": frozen}
    (group,) = param_groups(modules)
    assert {id(p) for p in group["params"]} == {id(p) for p in modules["a"].parameters()}
    weights, others = param_groups(modules, exclude_bias_norm=True)
    assert [p.ndim for p in weights["params"]] == [2]
    assert [p.ndim for p in others["params"]] == [1, 1, 1]
    assert others["weight_decay"] == 0
    assert torch.optim.AdamW([weights, others], weight_decay=0.1).param_groups[0]["weight_decay"] == 0.1


def test_tokens_decay_though_biases_and_norms_do_not():
    """A mask token of one dimension is treated as one of three is by MAE's main_pretrain.py, and by lightly."""
    from lightly.models.utils import get_weight_decay_parameters

    from stable_ssl.modules import PatchPredictor

    decoder = PatchPredictor((2, 2), dim=4, out_dim=4, hidden_dim=12, depth=1)
    expected = [{id(p) for p in group} for group in get_weight_decay_parameters([decoder])]
    # lightly takes the joint bias of attention's three maps, in_proj_bias, for a bias too.
    for found in (param_groups({"d": decoder}, True), param_groups({"d": decoder}, True, {"d": {"lr": 0.1}})):
        assert [{id(p) for p in group["params"]} for group in found] == expected
    assert id(decoder.mask_token) in expected[0]
