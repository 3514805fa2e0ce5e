"""One run of the command line: the task that `train`, `resume` and `branch` call here, and submit with `--slurm`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compose import importable

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


def say_once(text: str) -> None:
    """Print a line, in the first process only if a launcher started several."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("SLURM_PROCID", "0") == "0":
        print(text, flush=True)


@contextmanager
def job_of(hydra: Any) -> Iterator[None]:
    """Have the environment and the working folder that Hydra's settings of a job ask for, in the `with` block."""
    from hydra.core.utils import env_override

    from ..runtime import launchers  # noqa: F401 (notes where this command line began, before the folder changes)

    with ExitStack() as stack:
        stack.enter_context(env_override({str(key): str(value) for key, value in hydra.job.env_set.items()}))
        if hydra.job.chdir:
            folder = Path(hydra.runtime.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(chdir(folder))
        yield


class Run:
    """A task that makes the trainer of a configuration and runs it.

    It keeps no progress: a run's progress is in its folder, and a requeued job finds the same folder again.

    Parameters
    ----------
    config
        The configuration, `{"trainer": {...}}`.
    folders
        Folders whose modules a `_target_` may name.
    """

    def __init__(self, config: dict[str, Any], folders: Iterable[Path]):
        self.config = config
        self.folders = [*folders]

    def __call__(self) -> None:
        """Make the trainer and run it."""
        from ..instantiate import instanciate_config

        with importable(*self.folders):
            instanciate_config(self.config)()

    def checkpoint(self) -> DelayedSubmission:
        """Return the task that goes on with this run. submitit calls this method when Slurm preempts the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
