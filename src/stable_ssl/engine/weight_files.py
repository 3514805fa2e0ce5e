"""The files in `weights/`: the values of all modules, for reading."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.distributed import whole
from ..weights.files import newest_weights, read_header, save_weights
from .parts import Model
from .session import Session

log = logging.getLogger("stable_ssl")


class WeightFiles:
    """Writes a run's files of weights, and reads their headers.

    Parameters
    ----------
    run
        The session.
    model
        Access to the state of all modules.
    config
        Returns the run's configuration, whose modules the headers hold too.

    Attributes
    ----------
    on_save
        A function that gets the name of each file before it is written, on all ranks. None: there is none.
    """

    on_save: Callable[[str], None] | None = None

    def __init__(self, run: Session, model: Model, config: Callable[[], Mapping[str, Any]]):
        self._run, self._model, self._config = run, model, config

    def save(self, name: str, **facts: Any) -> bool:
        """Write the weights of all modules to `weights/<name>.safetensors`, with further facts in its header.

        Returns
        -------
        bool
            Whether they are on disk. If not, an error is logged.
        """
        if self.on_save is not None:
            self.on_save(name)
        tensors = {}
        for key, value in self._model.state_dict().items():
            if key.startswith("module.") and isinstance(value, Tensor):
                full = whole(value)  # one after the other: all together may not fit on a device
                if self._run.ranks.is_main:
                    tensors[key.removeprefix("module.")] = full if full is value else full.cpu()
        if not self._run.ranks.is_main:
            return True
        header = {
            "module": self._config()["trainer"].get("module"),
            "global_step": self._run.progress.global_step,
            "epoch": self._run.progress.epoch,
            **facts,
        }
        try:
            save_weights(self._path(name), tensors, header)
        except OSError as error:
            log.error("'%s' could not be written: %s", self._path(name), error)
            return False
        return True

    def what_is_left(self) -> str:
        """Return what the folder of a run has whose end could not be written, and what to do."""
        step, newest = self._run.progress.global_step, self._run.checkpoints.newest_step()
        if newest == step:
            return "When the disk has room, start the run again: it does only what is missing."
        if newest is not None:
            return f"When the disk has room, start the run again: it goes on from its checkpoint of step {newest}."
        path, step_of_weights = newest_weights(self._run.folder.path)
        kept = f"'{path}' has the weights of step {step_of_weights}: copy it" if path else "Make room"
        return f"The run has no checkpoint, so started again it begins anew. {kept} first."

    def header_of(self, name: str) -> dict[str, Any]:
        """Return the header of the weights of this name, or an empty dict if there are none."""
        header: dict[str, Any] = self._run.ranks.from_main(lambda: read_header(self._path(name)))
        return header

    def _path(self, name: str) -> Path:
        return self._run.folder.path / "weights" / f"{name}.safetensors"
