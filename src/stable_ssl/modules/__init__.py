"""Networks: backbones and heads."""

from .backbones import load_backbone
from .convmixer import ConvMixer
from .mlp import MLP
from .resnet9 import Resnet9

__all__ = ["MLP", "ConvMixer", "Resnet9", "load_backbone"]
