"""Training methods, one file per family of methods."""

from .clustering import ClusteringTrainer
from .dino import DINOTrainer
from .joint_embedding import JointEmbeddingTrainer
from .masked import MaskedTrainer
from .predictive import IJEPATrainer, JointEmbeddingPredictiveTrainer
from .self_distillation import SelfDistillationTrainer
from .self_supervised import SelfSupervisedTrainer
from .supervised import SupervisedTrainer

__all__ = [
    "ClusteringTrainer",
    "DINOTrainer",
    "IJEPATrainer",
    "JointEmbeddingPredictiveTrainer",
    "JointEmbeddingTrainer",
    "MaskedTrainer",
    "SelfDistillationTrainer",
    "SelfSupervisedTrainer",
    "SupervisedTrainer",
]
