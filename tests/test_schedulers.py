from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stable_ssl import schedulers

BASE = 0.8


def rates(name, steps=100, **kwargs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE)
    schedule = getattr(schedulers, name)(optimizer, **kwargs)
    values = []
    for _ in range(steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


ALL = [
    "LinearWarmup",
    "LinearWarmupCosineAnnealing",
    "LinearWarmupCyclicAnnealing",
    "LinearWarmupThreeStepsAnnealing",
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("peak_step", [0.1, 10])
def test_the_warm_up_is_a_line_to_the_base_rate_and_nothing_is_above_it(name, peak_step):
    values = rates(name, total_steps=100, start_factor=0.1, peak_step=peak_step)
    for step in range(11):
        assert values[step] == pytest.approx(BASE * (0.1 + 0.9 * step / 10))
    assert max(values) == pytest.approx(BASE)


@pytest.mark.parametrize("name", ALL[1:])
def test_the_end_is_end_lr(name):
    assert rates(name, total_steps=100, end_lr=0.05)[100] == pytest.approx(0.05)


def test_cosine_is_the_formula_of_its_paper():
    values = rates("LinearWarmupCosineAnnealing", total_steps=100, end_lr=0.05, peak_step=0.1)
    for step in range(10, 101):
        expected = 0.05 + (BASE - 0.05) * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert values[step] == pytest.approx(expected)


def test_three_steps_decay_three_times():
    values = rates("LinearWarmupThreeStepsAnnealing", total_steps=100, peak_step=0, gamma=0.3)
    expected = [BASE * 0.3 ** ((step >= 40) + (step >= 60) + (step >= 80)) for step in range(101)]
    assert values == pytest.approx(expected)


def of_early_2025(total, name, start=0.01, peak_step=0.1, end_lr=0.0, gamma=0.3):
    """Return the rates of torch's own schedules, put together as stable-ssl did in February 2025."""
    from torch.optim import lr_scheduler as torchs

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE)
    peak = int(peak_step * total) if peak_step < 1 else peak_step
    rest = total - peak
    schedule = torchs.LinearLR(optimizer, start, total_iters=peak)
    if name != "LinearWarmup":
        after = (
            torchs.CosineAnnealingLR(optimizer, T_max=rest, eta_min=end_lr)
            if name == "LinearWarmupCosineAnnealing"
            else torchs.MultiStepLR(optimizer, [math.ceil(rest * part) for part in (0.4, 0.6, 0.8)], gamma)
        )
        schedule = torchs.SequentialLR(optimizer, [schedule, after], milestones=[peak])
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize(
    ("name", "given", "then"),
    [
        ("LinearWarmup", {}, {}),
        ("LinearWarmupCosineAnnealing", {}, {"peak_step": 0.01}),
        ("LinearWarmupCosineAnnealing", {"peak_step": 0.29, "end_lr": 0.05}, {"peak_step": 0.29, "end_lr": 0.05}),
        ("LinearWarmupThreeStepsAnnealing", {}, {"start": 0.001, "peak_step": 0.05}),
    ],
)
@pytest.mark.parametrize("total", [60, 137, 1000])
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_the_defaults_are_those_of_early_2025(name, given, then, total):
    values = rates(name, total_steps=total, steps=total - 1, **given)
    assert values == pytest.approx(of_early_2025(total, name, **then), rel=1e-9, abs=1e-12)


def test_a_schedule_that_was_wrong_in_early_2025_says_once_what_differs(caplog):
    caplog.set_level("INFO", "stable_ssl")
    values = rates("LinearWarmupCyclicAnnealing", total_steps=120)
    rates("LinearWarmupThreeStepsAnnealing", total_steps=137)
    said = [record.getMessage() for record in caplog.records]
    assert max(values) == pytest.approx(BASE)
    assert len(said) == 2
    assert "38 % above the peak" in said[0]
    assert "due between two steps" in said[1]
    caplog.clear()
    rates("LinearWarmupThreeStepsAnnealing", total_steps=100)  # 95 steps after the peak: falls at 38, 57 and 76
    assert not caplog.records


def test_cosine_decayer_begins_each_cycle_lower():
    decay = schedulers.CosineDecayer(total_steps=90, n_cycles=3, gamma=0.2)
    assert [decay(step) for step in (0, 30, 60)] == pytest.approx([1, 0.2, 0.04])
    assert decay(90) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_schedule_goes_on_exactly(name):
    def make():
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.8, 0.1)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, getattr(schedulers, name)(optimizer, total_steps=20)

    def advance(optimizer, schedule, steps):
        values = []
        for _ in range(steps):
            optimizer.step()
            schedule.step()
            values.append([group["lr"] for group in optimizer.param_groups])
        return values

    alone = make()
    expected = advance(*alone, 20)
    first = make()
    advance(*first, 7)
    again = make()
    again[0].load_state_dict(first[0].state_dict())
    again[1].load_state_dict(first[1].state_dict())
    assert advance(*again, 13) == expected[7:]
    assert expected[5][0] / expected[5][1] == pytest.approx(8)  # each group keeps its own base rate


def test_a_peak_after_the_end_is_refused():
    with pytest.raises(ValueError, match="peak_step: 30"):
        rates("LinearWarmup", total_steps=20, peak_step=30)


def test_a_group_with_rate_zero_stays_there():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    schedule = schedulers.LinearWarmupCosineAnnealing(optimizer, total_steps=4, end_lr=0.1)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.0]


def test_cycles_begin_where_they_are_due():
    decay = schedulers.CosineDecayer(total_steps=100, n_cycles=100, gamma=0.9)
    assert [decay(step) for step in range(100)] == pytest.approx([0.9**step for step in range(100)])
