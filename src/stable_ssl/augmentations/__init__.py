"""Augmentation: views as declarations, drawn by a pure function and made by compiled loops."""

from .masks import BlockMasks, Mask, RandomMask
from .operations import *  # noqa: F403
from .operations import __all__ as _operations
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
    *_operations,
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
