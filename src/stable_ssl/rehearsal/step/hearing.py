"""What a run in the background says and changes: heard, and put back."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...runtime.seeding import preserved_generators

log = logging.getLogger("stable_ssl")

# What a run says because it has few samples, one step, and no GPU; and what the check says itself.
_LEFT_OUT = re.compile(
    r"The learning rate was 0 in every step|pin_memory|This DataLoader will create|samples in (preds|targets)|"
    r"no gradient reaches it in the first step|Got pickle error when|CAN'T BE RESUMED|lr_scheduler\.step\(\)"
)


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Restore torch's settings and the default generators after the block."""
    threads, is_benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    is_exact = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    kind = torch.get_default_dtype()
    with preserved_generators():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = is_benchmark
            torch.use_deterministic_algorithms(is_exact, warn_only=only_warns)
            torch.set_default_dtype(kind)


class Heard(logging.Filter):
    """What a run would log as a warning, and the warnings of Python. They are shown nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[tuple[int, str]] = []
        self._warnings: list[warnings.WarningMessage] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what is logged in the block."""
        log.addFilter(self)
        try:
            with warnings.catch_warnings(record=True) as self._warnings:
                yield
        finally:
            log.removeFilter(self)

    def forget(self) -> None:
        """Forget what was heard so far."""
        self._records.clear()
        self._warnings.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a message."""
        try:
            text = record.getMessage()
        except Exception:  # its arguments do not fit, which ends no run
            text = str(record.msg)
        self._records.append((record.levelno, text))
        return False

    def texts(self, is_whole: bool) -> list[str]:
        """Return the warnings, each once; errors too if the run came to its end, since they did not end it."""
        last = logging.ERROR if is_whole else logging.WARNING
        found = [text for level, text in self._records if logging.WARNING <= level <= last]
        first_lines = ((one.category.__name__, str(one.message).partition("\n")[0]) for one in self._warnings)
        found += [f"{kind}: {line}" for kind, line in first_lines]
        return [text for text in dict.fromkeys(found) if not _LEFT_OUT.search(text)]
