"""Names of early 2025: objects of other modules, and small functions."""

from . import utils
from .exceptions import BreakAllEpochs, BreakEpoch, BreakStep, NanError
from .utils import *  # noqa: F403

__all__ = ["BreakAllEpochs", "BreakEpoch", "BreakStep", "NanError", *utils.__all__]
