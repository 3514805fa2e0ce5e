"""What ruins a run in silence: views that are equal, and a teacher that is the student."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ...exceptions import DataError
from ...runtime.batches import image_key

_TEACHER = re.compile(r"teacher|target|momentum|(^|_)ema(_|$)")


def silent_ruin(trainer: Any, first: Any, trained_on: Any) -> Iterator[str]:
    """Yield a sentence or two for each thing that no figure of a run would show.

    Parameters
    ----------
    trainer
        A trainer that has taken a step.
    first, trained_on
        The first batch as the data give it, and one as the hooks of a step have left it.
    """
    if (pair := _equal_views(first)) and pair == _equal_views(trained_on):
        yield (
            f"data.train: views {pair[0] + 1} and {pair[1] + 1} are equal for all images of the first batch, so there "
            "is nothing to learn from comparing them. Draw each view anew, instead of using one twice."
        )
    yield from _of_teachers(trainer.module)


def _equal_views(batch: Any) -> tuple[int, int] | None:
    """Return the places of the first two views in a batch with the same values. None: there are no such views."""
    try:
        views = batch[image_key(batch)] if isinstance(batch, Mapping) else batch[0]
    except (DataError, TypeError, IndexError):  # a batch of another kind
        return None
    numbered = enumerate(views) if isinstance(views, list | tuple) else ()
    images = [(place, view) for place, view in numbered if isinstance(view, Tensor) and view.dtype != torch.bool]
    same = ((i, j) for (i, one), (j, other) in combinations(images, 2) if torch.equal(one, other))
    return next(same, None)


def _of_teachers(modules: nn.Module) -> Iterator[str]:
    """Yield a sentence for each module that is called a teacher, and has trainable parameters of another one."""
    everywhere = [*modules.named_parameters(remove_duplicate=False)]
    told: list[str] = []
    for name, part in modules.named_modules(remove_duplicate=False):
        if not _TEACHER.search(name.rpartition(".")[2]) or any(name.startswith(f"{other}.") for other in told):
            continue
        own = {id(parameter) for parameter in part.parameters() if parameter.requires_grad}
        shared = [key for key, value in everywhere if id(value) in own and not key.startswith(f"{name}.")]
        if shared:
            told.append(name)
            yield (
                f"module.{name}: it has the parameters of another module, such as module.{shared[0]}, so both are "
                "always equal. A teacher is a copy: copy.deepcopy(student).requires_grad_(False), or "
                "stable_ssl.modules.TeacherStudentModule."
            )
