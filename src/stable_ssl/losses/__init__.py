"""Losses: one a file, plain torch."""

from .barlow_twins import BarlowTwinsLoss
from .negative_cosine import NegativeCosineSimilarity
from .ntxent import NTXEntLoss
from .vicreg import VICRegLoss

__all__ = ["BarlowTwinsLoss", "NTXEntLoss", "NegativeCosineSimilarity", "VICRegLoss"]
