"""Augmentation: views as declarations, drawn by a pure function and made by compiled loops."""

from .operations import (
    Affine,
    CenterCrop,
    ColorJitter,
    Erasing,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Normalize,
    Operation,
    RandomResizedCrop,
    Resize,
    Solarize,
    VerticalFlip,
)
from .recipes import (
    BarlowViews,
    BYOLViews,
    DINOViews,
    EvalView,
    MoCoViews,
    SimCLRViews,
    SwAVViews,
    VICRegViews,
)
from .views import MultiView, View

__all__ = [
    "Affine",
    "BYOLViews",
    "BarlowViews",
    "CenterCrop",
    "ColorJitter",
    "DINOViews",
    "Erasing",
    "EvalView",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "MoCoViews",
    "MultiView",
    "Normalize",
    "Operation",
    "RandomResizedCrop",
    "Resize",
    "SimCLRViews",
    "Solarize",
    "SwAVViews",
    "VICRegViews",
    "VerticalFlip",
    "View",
]
