"""Losses, one per file, in plain PyTorch."""

from .barlow_twins import BarlowTwinsLoss
from .byol import BYOLLoss
from .dino import DINOLoss
from .lejepa import LeJEPALoss, SIGReg
from .moco import MoCoLoss
from .negative_cosine import NegativeCosineSimilarity
from .ntxent import NTXEntLoss
from .patches import IJEPALoss, MAELoss
from .swav import SwAVLoss
from .vicreg import VICRegLoss

__all__ = [
    "BYOLLoss",
    "BarlowTwinsLoss",
    "DINOLoss",
    "IJEPALoss",
    "LeJEPALoss",
    "MAELoss",
    "MoCoLoss",
    "NTXEntLoss",
    "NegativeCosineSimilarity",
    "SIGReg",
    "SwAVLoss",
    "VICRegLoss",
]
