"""The outputs of a run: metrics in `metrics.jsonl` and trackers, messages and progress on the console."""

from .collector import Collector
from .console import Console
from .jsonl import MetricsFile, read_metrics
from .run_log import RunLog
from .tracking import Tracker, open_trackers

__all__ = ["Collector", "Console", "MetricsFile", "RunLog", "Tracker", "open_trackers", "read_metrics"]
