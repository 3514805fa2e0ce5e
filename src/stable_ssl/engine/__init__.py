"""The engine: what the page in `base.py` calls.

Each file owns one part of a run's state. None of them knows the trainer: hooks and monitors reach them as callables.
"""

from .agreement import does_nothing
from .building import Builder
from .evaluation import Evaluation
from .progress import Progress
from .recording import Recorder
from .saving import Model, Part, Saver
from .session import Session
from .stepping import Stepper

__all__ = [
    "Builder",
    "Evaluation",
    "Model",
    "Part",
    "Progress",
    "Recorder",
    "Saver",
    "Session",
    "Stepper",
    "does_nothing",
]
