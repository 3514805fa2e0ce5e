"""Monitors: quantities computed from representations during training or evaluation. They change nothing."""

from ..runtime.distributed import world_size as get_num_devices
from .knn import KNN, knn_scores
from .lidar import LiDAR
from .monitor import Monitor
from .rankme import RankMe

__all__ = ["KNN", "LiDAR", "Monitor", "RankMe", "get_num_devices", "knn_scores"]
