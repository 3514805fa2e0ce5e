"""Whether this machine has the memory and the disk for a step."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from torch import nn
from torch.nn.parameter import is_lazy

from ...data.in_memory import free_memory
from ..stage import Stage

# In fp32, a parameter has 12 bytes of state: its value, and two values of an optimizer. When a checkpoint is written,
# there is a copy of them.
BYTES_PER_PARAMETER = 24


def has_room(stage: Stage, modules: Iterable[nn.Module], is_there: bool = False) -> bool:
    """Return whether memory and disk of this machine suffice for a step and its checkpoints.

    If they do not, there is a warning, and `stage.lacks_room` is true.

    Parameters
    ----------
    is_there
        Whether the modules are those of the trainer.
    """
    count = count_parameters(modules)
    free = {"memory": free_memory(), "disk": shutil.disk_usage(stage.folder).free}
    needed = {"memory": (BYTES_PER_PARAMETER - 4 * is_there) * count, "disk": BYTES_PER_PARAMETER * count}
    for kind in free:
        if needed[kind] > free[kind]:
            where = "Run the check on a larger machine." if kind == "memory" else "Let TMPDIR name a larger disk."
            stage.report.warn(
                "step",
                f"No step was tried: with {count / 1e6:,.0f} million parameters it needs {needed[kind] / 2**30:,.1f} "
                f"GiB of {kind}, and {free[kind] / 2**30:,.1f} are free. {where}",
            )
            stage.lacks_room = True
            return False
    return True


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters of modules, without those of layers that get their size from the first batch."""
    tensors = {id(p): p for module in modules for p in module.parameters() if not is_lazy(p)}
    return sum(tensor.numel() for tensor in tensors.values())
