"""Names that trainers of early 2025 use, for the classes that they derive from.

`docs/coming_from_2025.md` says what each of them is today.
"""

from .self_supervised import EarlySelfSupervised, LossesWithProbes, ViewList, counted_only
from .trainer import CountedSteps, EarlyTrainer, check_own_step, set_epoch

__all__ = [
    "CountedSteps",
    "EarlySelfSupervised",
    "EarlyTrainer",
    "LossesWithProbes",
    "ViewList",
    "check_own_step",
    "counted_only",
    "set_epoch",
]
