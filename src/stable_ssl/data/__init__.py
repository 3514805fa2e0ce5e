"""Data sets, and loaders that give the same batches on every run."""

from importlib import import_module
from typing import Any

from .datasets import Digits, ImageFolder, Parquet
from .folder import Images
from .huggingface import HuggingFaceDataset
from .huggingface_stream import HuggingFaceStream
from .loader import Loader
from .multi_view import MultiViewSampler
from .prepared import Prepared
from .sources import IterableLoader, as_loader, length_of
from .streams import StreamLoader
from .webdataset import WebDataset

__all__ = [
    "Digits",
    "HuggingFaceDataset",
    "HuggingFaceStream",
    "ImageFolder",
    "Images",
    "IterableLoader",
    "Loader",
    "MultiViewSampler",
    "Parquet",
    "Prepared",
    "StreamLoader",
    "WebDataset",
    "as_loader",
    "length_of",
]


def __getattr__(name: str) -> Any:
    """Return what was in this room in early 2025."""
    if name == "DistributedSamplerWrapper":
        return getattr(import_module("stable_ssl.compat.sampler"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
