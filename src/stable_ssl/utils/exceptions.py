"""The exceptions of early 2025, by the import path that they had."""

from ..exceptions import BreakAllEpochs, BreakEpoch, BreakStep, NanError

__all__ = ["BreakAllEpochs", "BreakEpoch", "BreakStep", "NanError"]
