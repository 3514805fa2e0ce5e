from __future__ import annotations

import pytest
import torch

from stable_ssl.runtime.precision import FiniteWatch, Precision, all_finite


def take_step(precision, grad_max_norm, loss_factor=1.0):
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([w], lr=1.0)
    maker = Precision(precision, torch.device("cpu"), grad_max_norm)
    maker.backward((w**2).sum() / 2 * loss_factor)
    maker.unscale(optimizer)
    maker.step(optimizer)
    return w.detach(), maker


@pytest.mark.parametrize("grad_max_norm", [None, 1.0, 10.0])
def test_a_scaled_loss_gives_the_step_of_an_unscaled_one_clipping_included(grad_max_norm):
    expected, _ = take_step("fp32", grad_max_norm)
    w, maker = take_step("fp16", grad_max_norm)
    torch.testing.assert_close(w, expected)
    assert maker.scaler.get_scale() == 65536


@pytest.mark.parametrize("grad_max_norm", [None, 1.0])
def test_a_scaled_loss_that_overflows_changes_nothing_but_the_scale(grad_max_norm):
    w, maker = take_step("fp16", grad_max_norm, loss_factor=1e38)
    assert w.tolist() == [3.0, 4.0]
    assert maker.scaler.get_scale() == 32768


def test_a_step_that_is_left_out_does_not_disturb_the_next():
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer, maker = torch.optim.SGD([w], lr=1.0), Precision("fp16", torch.device("cpu"))
    for is_left_out in (True, False):
        optimizer.zero_grad()
        maker.backward((w**2).sum() / 2)
        maker.unscale(optimizer)
        maker.leave_out() if is_left_out else maker.step(optimizer)
    assert w.tolist() == [0.0, 0.0]


def test_the_watch_names_the_first_bad_step_across_its_chunks():
    watch = FiniteWatch()
    for step in range(3000):
        watch.add(torch.tensor(float("inf") if step in (2100, 2500) else 1.0), step)
    assert watch.first_bad() == (2100, float("inf"))
    assert watch.first_bad() is None


def test_a_sum_that_overflows_is_not_taken_for_a_bad_value():
    assert all_finite([torch.full((10,), 3e38)])
    assert not all_finite([torch.ones(3), torch.tensor([1.0, float("nan")])])
