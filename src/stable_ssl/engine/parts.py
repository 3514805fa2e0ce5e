"""What a checkpoint holds: the modules, the parts beside them, and the facts that a resumed run must share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """An object beside the modules whose state a checkpoint holds.

    Parameters
    ----------
    name
        The key of its state.
    object
        Has `state_dict` and `load_state_dict`.
    is_shared
        Whether the state is the same on all processes. If not, the checkpoint holds each process's state.
    is_optional
        Whether a run may resume from a checkpoint that lacks this state. Its `state_dict` may return None for no state.
    """

    name: str
    object: Any
    is_shared: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class DataFacts:
    """The facts about the training data that a resumed run must share.

    The configuration does not show them if the loader is a live object.

    Parameters
    ----------
    batches_per_epoch
        Mini-batches per epoch, on each process.
    global_batch
        Samples per mini-batch over all processes; None if the loader has no `batch_size`.
    views
        The declared views, as text; None if there are none.
    """

    batches_per_epoch: int
    global_batch: int | None
    views: str | None

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """Return one sentence for each fact that differs from `before`, the facts in a checkpoint."""
        # Checkpoints of the first versions have these words as keys.
        words = {
            "batches_per_epoch": "mini-batches an epoch",
            "global_batch": "samples a mini-batch, over all processes",
            "views": "views",
        }
        now = asdict(self)
        known = {key: before.get(key, before.get(word, now[key])) for key, word in words.items()}
        return [
            f"data.train: {words[key]}: the run in the folder has {known[key]}, this one {value}."
            for key, value in now.items()
            if known[key] != value
        ]


@dataclass(frozen=True)
class Model:
    """How the saver reaches the modules' state: the methods of an `nn.Module` of the same names."""

    state_dict: Callable[..., dict[str, Any]]
    load_state_dict: Callable[[Mapping[str, Any]], Any]
    named_parameters: Callable[[], Iterator[tuple[str, nn.Parameter]]]
    named_buffers: Callable[[], Iterator[tuple[str, Tensor]]]

    @classmethod
    def of(cls, module: nn.Module) -> Model:
        """Return the methods of a module."""
        return cls(module.state_dict, module.load_state_dict, module.named_parameters, module.named_buffers)
