"""Data sets, and loaders that give the same batches on every run."""

from .datasets import Digits, ImageFolder, Parquet
from .folder import Images
from .huggingface import HuggingFaceDataset
from .loader import Loader
from .multi_view import MultiViewSampler
from .prepared import Prepared
from .sources import IterableLoader, as_loader, length_of

__all__ = [
    "Digits",
    "HuggingFaceDataset",
    "ImageFolder",
    "Images",
    "IterableLoader",
    "Loader",
    "MultiViewSampler",
    "Parquet",
    "Prepared",
    "as_loader",
    "length_of",
]
