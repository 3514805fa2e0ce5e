"""The engine: the classes that the loop in `base.py` calls.

Each file owns one part of a run's state. None of them knows the trainer. They get its hooks as callables, and monitors
get it as an argument.
"""

from .building import Builder
from .evaluation import Evaluation
from .feeding import Feed
from .monitoring import Monitors
from .parts import Model, Part
from .progress import Progress
from .recording import NoRecorder, Recorder
from .saving import Saver
from .session import Session
from .stepping import Stepper
from .sweeps import tell, with_sweep_values
from .trained import TrainedParameters

__all__ = [
    "Builder",
    "Evaluation",
    "Feed",
    "Model",
    "Monitors",
    "NoRecorder",
    "Part",
    "Progress",
    "Recorder",
    "Saver",
    "Session",
    "Stepper",
    "TrainedParameters",
    "tell",
    "with_sweep_values",
]
