"""What features are worth: figures by named protocols, on features that are computed once."""

from .evaluate import Request, evaluate
from .presets import PROTOCOLS

__all__ = ["PROTOCOLS", "Request", "evaluate"]
