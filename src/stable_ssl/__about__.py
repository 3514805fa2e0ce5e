"""What the package says of itself, by the names of early 2025."""

from . import __version__

__all__ = ["__license__", "__summary__", "__title__", "__version__"]

__title__ = "stable-ssl"
__summary__ = "Train self-supervised models: one trainer class, exact resume, preemptible on SLURM."
__license__ = "Apache-2.0"
