"""Networks: backbones, projectors and predictors, teachers, and vision transformers that can hide patches."""

from .backbones import load_backbone
from .convmixer import ConvMixer
from .heads import (
    BarlowTwinsProjector,
    BYOLPredictor,
    BYOLProjector,
    DINOHead,
    LeJEPAProjector,
    MoCoProjector,
    SimCLRProjector,
    SimSiamPredictor,
    SimSiamProjector,
    SwAVProjector,
    VICRegProjector,
)
from .mlp import MLP
from .multi_crop import forward_views
from .resnet9 import Resnet9
from .teacher_student import TeacherStudentModule
from .vit import PatchPredictor, ViT

__all__ = [
    "MLP",
    "BYOLPredictor",
    "BYOLProjector",
    "BarlowTwinsProjector",
    "ConvMixer",
    "DINOHead",
    "LeJEPAProjector",
    "MoCoProjector",
    "PatchPredictor",
    "Resnet9",
    "SimCLRProjector",
    "SimSiamPredictor",
    "SimSiamProjector",
    "SwAVProjector",
    "TeacherStudentModule",
    "VICRegProjector",
    "ViT",
    "forward_views",
    "load_backbone",
]
