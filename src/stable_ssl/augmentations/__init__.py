"""Augmentation: views as declarations, drawn by a pure function and made by compiled loops."""

from . import operations
from .by_name import TransformConfig, TransformsConfig, get_interpolation_mode
from .corruptions import (
    Contrast,
    CustomGaussianNoise,
    Fog,
    JPEGCompression,
    Pixelate,
    ShotNoise,
    SpeckleNoise,
    ZoomBlur,
    clipped_zoom,
    plasma_fractal,
)
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
    "Contrast",
    "CustomGaussianNoise",
    "DINOViews",
    "EvalView",
    "Fog",
    "IJEPAViews",
    "JPEGCompression",
    "MAEViews",
    "Mask",
    "MoCoViews",
    "MultiView",
    "Pixelate",
    "RandomMask",
    "ShotNoise",
    "SimCLRViews",
    "SpeckleNoise",
    "SwAVViews",
    "TransformConfig",
    "TransformsConfig",
    "VICRegViews",
    "View",
    "ZoomBlur",
    "clipped_zoom",
    "get_interpolation_mode",
    "plasma_fractal",
]
