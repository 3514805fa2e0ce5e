"""The behaviour of this version: a number that rises when a default or the meaning of a setting changes.

A run that was begun under one behaviour can't go on under another, because it would be half of each.
"""

from __future__ import annotations

from collections.abc import Iterable

# What changed with each behaviour. A folder that names none is of the first. Whoever adds one adds a small run folder
# of the behaviour before it to tests/data, too: tests/data/write_run.py writes it.
CHANGES: dict[int, str] = {
    1: "This is the first behaviour.",
    2: "A teacher computes running statistics of its own, and only its parameters follow the student's.",
    3: "SimCLR, SwAV, DINO and LeJEPA send the views of one size through batch normalisation together. Before, each "
    "view went alone, as it does with join_views: false.",
    4: "I-JEPA's target momentum rises linearly. Before, it rose along half a cosine, as with ema_schedule: cosine.",
    5: "Blurs of ready-made views have at least 13 taps, which cover 3 standard deviations. Views below 110 pixels had "
    "fewer, those of 32 pixels 5.",
    6: "RankMe looks at 12.5 embeddings per dimension of all processes together, not at 2,048 of each process. A limit "
    "is of all processes, too; one of 64 or less counts batches of representations.",
    7: "With exclude_bias_norm, a mask token decays, as in the code of MAE and I-JEPA, and LARS scales it.",
    8: "LiDAR's delta is 0.001 by default, as in early 2025. Before, it was 0.0001, as in the paper.",
    9: "Schedules have the defaults of early 2025. LinearWarmupCosineAnnealing: peak_step 0.01, not 0.1. "
    "LinearWarmupCyclicAnnealing: 3 cycles, not 4. LinearWarmupThreeStepsAnnealing: start_factor 0.001, peak_step "
    "0.05, and falls at 40, 60 and 80 % of the steps after the peak, not at quarters. A peak_step below 1 is rounded "
    "down to a whole step.",
    10: "Networks are those of early 2025. resnet9 without widths has eleven convolutions, and its arguments are "
    "(in_channels, num_classes). ConvMixer has kernel_size 9 and patch_size 7, ReLU after batch normalisation, and "
    "max-pooling; as_in_paper makes it what it was. low_resolution adapts both.",
}


def behaviour() -> int:
    """Return the behaviour of this version."""
    return max(CHANGES)


def behaviour_problems(found: Iterable[int]) -> list[str]:
    """Return why runs of these behaviours can't go on here: one sentence per change; empty if they can."""
    now = behaviour()
    others = {number for number in found if number != now}
    if not others:
        return []
    first = min(others)
    if max(others) > now:
        return [
            f"It has behaviour {max(others)}, and this version of stable-ssl knows {now} at most; update stable-ssl."
        ]
    changed = [f"Behaviour {number}: {CHANGES[number]}" for number in sorted(CHANGES) if number > first]
    return [f"It has behaviour {first}, and this version of stable-ssl has behaviour {now}.", *changed]
