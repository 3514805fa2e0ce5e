"""Augmentations at the path that some files of early 2025 have."""

from ..augmentations import *  # noqa: F403
