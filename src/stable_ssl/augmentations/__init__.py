"""Augmentation: views as declarations, drawn by a pure function and made by compiled loops."""

from . import operations
from .masks import BlockMasks, Mask, RandomMask
from .operations import *  # noqa: F403
from .recipes import (
    BarlowViews,
    BYOLViews,
    DINOViews,
    EvalView,
    IJEPAViews,
    MAEViews,
    MoCoViews,
    SimCLRViews,
    SwAVViews,
    VICRegViews,
)
from .views import MultiView, View

__all__ = [
    *(name for name, value in vars(operations).items() if isinstance(value, type)),
    "BYOLViews",
    "BarlowViews",
    "BlockMasks",
    "DINOViews",
    "EvalView",
    "IJEPAViews",
    "MAEViews",
    "Mask",
    "MoCoViews",
    "MultiView",
    "RandomMask",
    "SimCLRViews",
    "SwAVViews",
    "VICRegViews",
    "View",
]
