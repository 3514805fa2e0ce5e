"""Where a run's numbers and words go."""

from .collector import Collector
from .console import Console
from .jsonl import MetricsFile, read_metrics
from .run_log import RunLog
from .tracking import Tracker, open_trackers

__all__ = ["Collector", "Console", "MetricsFile", "RunLog", "Tracker", "open_trackers", "read_metrics"]
