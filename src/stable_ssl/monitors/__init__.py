"""What is watched during training."""

from .monitor import Monitor
from .rankme import RankMe

__all__ = ["Monitor", "RankMe"]
