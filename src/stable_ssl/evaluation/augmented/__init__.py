"""Protocols that train on augmented images. Each is a run of this package, so it can be interrupted and goes on."""

from .presets import PRESETS
from .protocols import Augmented, FineTuning, LinearProbe
from .running import Options

__all__ = ["PRESETS", "Augmented", "FineTuning", "LinearProbe", "Options"]
