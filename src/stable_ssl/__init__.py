"""Self-supervised learning around one class, `BaseTrainer`.

Importing this package is quick: torch and other heavy packages are imported when a public name is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

if sys.platform == "win32":
    raise ImportError("stable_ssl does not support Windows. It runs on Linux and macOS, and in WSL on Windows.")

_HOME = {
    "BaseTrainer": "base",
    "SupervisedTrainer": "trainers",
    "JointEmbeddingTrainer": "trainers",
    "SelfDistillationTrainer": "trainers",
    "DINOTrainer": "trainers",
    "ClusteringTrainer": "trainers",
    "JointEmbeddingPredictiveTrainer": "trainers",
    "IJEPATrainer": "trainers",
    "MaskedTrainer": "trainers",
    "BarlowTwinsLoss": "losses",
    "BYOLLoss": "losses",
    "DINOLoss": "losses",
    "IJEPALoss": "losses",
    "LeJEPALoss": "losses",
    "MAELoss": "losses",
    "MoCoLoss": "losses",
    "NegativeCosineSimilarity": "losses",
    "NTXEntLoss": "losses",
    "SwAVLoss": "losses",
    "VICRegLoss": "losses",
    "load_backbone": "modules",
    "MLP": "modules",
    "TeacherStudentModule": "modules",
    "ViT": "modules",
    "HardwareConfig": "config",
    "OptimConfig": "config",
    "LoggerConfig": "config",
    "instanciate_config": "instantiate",
    "pretrain": "api",
    "load": "loading",
    "full_state_dict": "runtime.distributed",
    "check": "api",
    "branch": "api",
    "export": "exporting",
    "Loader": "data",
    "BreakAllEpochs": "exceptions",
    "BreakEpoch": "exceptions",
    "BreakStep": "exceptions",
    "CheckpointError": "exceptions",
    "ConfigError": "exceptions",
    "DataError": "exceptions",
    "NanError": "exceptions",
    "PeerError": "exceptions",
    "Preempted": "exceptions",
}
_ROOMS = (
    "augmentations", "base", "config", "data", "evaluation", "exceptions", "loggers", "losses", "modules", "monitors",
    "optimizers", "reader", "runtime", "schedulers", "trainers", "utils",
)  # fmt: skip

__all__ = list(_HOME)
__version__ = "1.0.0.dev0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in ("__title__", "__summary__", "__license__"):
        return getattr(import_module(f"{__name__}.__about__"), name)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_ROOMS])
