"""What features are worth: figures by named protocols, on features that are computed once."""

from .evaluate import evaluate
from .presets import PROTOCOLS
from .request import Request

__all__ = ["PROTOCOLS", "Request", "evaluate"]
