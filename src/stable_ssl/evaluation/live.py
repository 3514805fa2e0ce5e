"""Live objects as sources: a trainer that is set up, and a network alone. Their evaluation does not change them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..base import BaseTrainer
from ..data import Loader
from ..data.views import WithViews
from ..exceptions import ConfigError
from .sets import EvaluationData, test_name


def copy_of_trainer(trainer: BaseTrainer) -> BaseTrainer:
    """Return a copy of a trainer that has its own modules, on the CPU and in evaluation mode.

    Everything else, such as its loaders, is the trainer's own.

    Raises
    ------
    ConfigError
        The trainer is not set up, so that it has no modules yet.
    """
    if not isinstance(trainer.module, nn.ModuleDict):
        raise ConfigError("eval: the trainer is not set up. Call trainer.setup(), or train it, before it is evaluated.")
    parts: dict[str, Any] = {name: vars(trainer)[name] for name in ("_modules", "module") if name in vars(trainer)}
    made = copy.copy(trainer)
    vars(made).update(copy.deepcopy(parts))  # together, so that a module that is in both is one in the copy too
    for part in made.children():
        part.cpu().eval()
    vars(made)["training"] = False
    return made


def views_in(loaders: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the view of the first set that a trainer evaluates on, and that of its training; None if there is none."""
    views = {name: _view_of(loader) for name, loader in loaders.items()}
    trained = views.pop("train", None)
    return next((view for view in views.values() if view is not None), None), trained


def sets_in(loaders: Mapping[str, Any]) -> EvaluationData:
    """Return the sets that a trainer trains and evaluates on, without augmentation.

    Raises
    ------
    ConfigError
        It has no set to evaluate on, or loaders other than this package's, whose views can't be taken off.
    """
    test = test_name(loaders)
    if test is None or not all(isinstance(loaders.get(name), Loader) for name in ("train", test)):
        raise ConfigError(
            "--data is missing: the trainer has no stable_ssl.data.Loader for a training set and a test set. "
            "data=(train, test) gives data sets."
        )
    datasets = (loaders[name].dataset for name in ("train", test))
    train, test = (own.dataset if isinstance(own, WithViews) else own for own in datasets)
    return EvaluationData("its own data", train, test, is_own=True)


def _view_of(loader: Any) -> Any:
    dataset = getattr(loader, "dataset", None)
    return dataset.transform if isinstance(dataset, WithViews) else getattr(loader, "views", None)
