"""Training methods, one file a family."""

from .joint_embedding import JointEmbeddingTrainer
from .self_supervised import SelfSupervisedTrainer
from .supervised import SupervisedTrainer

__all__ = ["JointEmbeddingTrainer", "SelfSupervisedTrainer", "SupervisedTrainer"]
