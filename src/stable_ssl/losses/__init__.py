"""Losses: one a file, plain torch."""

from .ntxent import NTXEntLoss

__all__ = ["NTXEntLoss"]
