"""The processes of one run, as they write and read checkpoints and check the set-up together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from ..exceptions import CheckpointError, PeerError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Peers:
    """This process among those of the run, for checkpoints and for checks in the set-up. One alone agrees with itself.

    Parameters
    ----------
    rank, size
        The number of this process, and the number of processes.
    group
        A process group of the CPU. It is for checkpoints, whose exchanges a thread makes, and for checks in the set-up.
        None: this process is alone.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank. A value is anything that can be pickled.

        Raises
        ------
        PeerError
            Another process is gone.
        """
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise PeerError("another process of the run is gone, or does something else") from error
        return values

    def agree(self, function: Callable[[], Result]) -> Result:
        """Call a function on all processes, and return this process's result.

        Raises
        ------
        OSError, CheckpointError
            The function failed on some process. All raise the error of the first one: an OSError if it was one.
        """
        own: Exception | None = None
        try:
            result = function()
        except Exception as error:
            own = error
        failures = self.gather(own and (isinstance(own, OSError), _in_words(own)))
        first = next((rank for rank, failure in enumerate(failures) if failure), None)
        if first is None:
            return result
        if own and first == self.rank:
            raise own
        is_of_disk, words = failures[first]
        raise OSError(f"rank {first}: {words}") if is_of_disk else CheckpointError(words)

    def from_first(self, function: Callable[[], Result]) -> Result:
        """Call a function on rank 0 only, and return its result on all processes. Its error is raised on all."""
        own = self.agree(lambda: function() if self.rank == 0 else None)
        result: Result = self.gather(own)[0]
        return result


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | CheckpointError) else f"{type(error).__name__}: {error}"
