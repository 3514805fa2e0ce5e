"""Monitors: quantities computed from representations during training or evaluation. They change nothing."""

from .knn import KNN, knn_scores
from .lidar import LiDAR
from .monitor import Monitor
from .rankme import RankMe

__all__ = ["KNN", "LiDAR", "Monitor", "RankMe", "knn_scores"]
