"""What the self-supervised trainers had in early 2025: lists of views, and losses of probes in `compute_loss`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .trainer import calls, is_users, wrap

log = logging.getLogger("stable_ssl")


class ViewList(list):
    """The tensors of several views, (batch, dim) each, as a list. In all else it is their rows in one tensor.

    A whole number is the place of a view in it, as in early 2025. Any other index is one of rows.

    Examples
    --------
    >>> views = ViewList([torch.zeros(4, 2), torch.ones(4, 2)])
    >>> len(views), views[1].shape, views.shape, views[-6:].shape
    (2, torch.Size([4, 2]), torch.Size([8, 2]), torch.Size([6, 2]))
    >>> torch.cat(views).shape, views.mean(), (2 * views).max()
    (torch.Size([8, 2]), tensor(0.5000), tensor(2.))
    """

    @functools.cached_property
    def rows(self) -> Tensor:
        """The rows of all views, (views × batch, dim)."""
        return torch.cat(list(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.rows, name)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, int) else self.rows[index]

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.rows.__array__(*args, **kwargs)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*_rows_of(list(args)), **{name: _rows_of(value) for name, value in (kwargs or {}).items()})

    def detached(self) -> ViewList:
        """Return the same tensors without gradients."""
        return ViewList(view.detach() for view in self)


def _rows_of(value: Any) -> Any:
    """Return a value with each `ViewList` in it, and in lists and tuples in it, as one tensor of rows."""
    if isinstance(value, ViewList):
        return value.rows
    return type(value)(map(_rows_of, value)) if type(value) in (list, tuple) else value


def _operator(name: str) -> Callable:
    return lambda self, *others: getattr(self.rows, name)(*map(_rows_of, others))


_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul neg abs lt le gt "
    "ge eq ne"
)
for _name in _OPERATORS.split(" "):
    setattr(ViewList, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("add", "mul"):  # a list has these of its own
    setattr(ViewList, f"__i{_name}__", _operator(f"__{_name}__"))


class LossesWithProbes(dict):
    """What `compute_loss` returns: the method's losses, and those of the probes as soon as one of them is asked for.

    Parameters
    ----------
    losses
        The method's losses by name.
    names
        Names of the losses of the probes.
    compute
        Returns the losses of the probes by name.
    """

    def __init__(self, losses: Mapping[str, Tensor], names: Iterable[str], compute: Callable[[], Mapping[str, Any]]):
        super().__init__(losses)
        self._names, self._compute = set(names), compute

    def _complete(self, name: Any) -> None:
        """Add the losses of the probes, once, if a name is one of theirs."""
        if name in self._names:
            self._names.clear()
            for key, loss in self._compute().items():
                self.setdefault(key, loss)  # one that was set stays

    def __missing__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        self._complete(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        self._complete(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a loss, or `default` if there is none of this name."""
        self._complete(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a loss, and return it."""
        self._complete(name)
        return super().pop(name, *default)

    def __delitem__(self, name: str) -> None:
        self._complete(name)
        super().__delitem__(name)


def _as_number(loss: Tensor) -> Tensor:
    """Return the value of a loss. A sum of such values has a backward pass, which gives no parameter a gradient."""
    return loss.detach() + torch.zeros_like(loss, requires_grad=True)


def _trainable(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the losses that have gradients."""
    return {name: loss for name, loss in losses.items() if isinstance(loss, Tensor) and loss.requires_grad}


def counted_only(compute: Callable) -> Callable:
    """Return a `compute_loss_classifiers` that gives its caller numbers, and keeps the losses for `side_losses`.

    So the probes are trained by their own optimizer, whatever a trainer of early 2025 does with the numbers. Calls
    within the method, as by `super()`, return the losses.
    """

    @functools.wraps(compute)
    def compute_then(self: Any, representations: Any, embeddings: Any, labels: Any) -> dict[str, Any]:
        if self._computes_probe_losses:
            return compute(self, representations, embeddings, labels)  # type: ignore[no-any-return]
        # `side_losses` runs outside of autocast too.
        with self._computing_probe_losses(), torch.autocast(self.device.type, enabled=False):
            losses = compute(self, representations, embeddings, labels)
        if not self._has_told_of_probes:
            log.info(
                "%s.compute_loss uses the losses of the probes. They are numbers there: the probes are trained by an "
                "optimizer of their own, whatever becomes of the numbers.",
                type(self).__name__,
            )
        vars(self)["_has_told_of_probes"] = True
        vars(self)["_probe_losses"] = self.batch, losses
        return {name: _as_number(loss) if isinstance(loss, Tensor) else loss for name, loss in losses.items()}

    return compute_then


def _latest(name: str) -> property:
    """Return a property for the newest outputs of a network, which may be given as a list of views."""

    def assign(self: Any, value: Any) -> None:
        if isinstance(value, list | tuple):
            value = ViewList(value)
            vars(self)["num_views"] = len(value)
        vars(self)[f"_newest_{name}"] = value

    return property(lambda self: vars(self).get(f"_newest_{name}"), assign, doc=f"The newest {name}, or None.")


def _uses_ours(cls: type, name: str) -> bool:
    """Return whether a method of a class is one of this package, or comes to one by `super()`."""
    for ancestor in cls.__mro__:
        method = vars(ancestor).get(name)
        if method is not None and is_users(method) and not calls(method, name):
            return False
        if method is not None and not is_users(method):
            break
    return True


class EarlySelfSupervised:
    """What `SelfSupervisedTrainer` has of early 2025: lists of views, and losses of probes in `compute_loss`."""

    latest_representations = _latest_representations = _latest("representations")
    latest_embeddings = _latest_embeddings = _latest("embeddings")
    _formats_views = _extends_loss = _computes_probe_losses = _has_told_of_probes = False
    _needs_loss = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a user's classes define decides what a run does, so nothing is asked per step.
        cls._formats_views = is_users(cls.format_views_labels)  # type: ignore[attr-defined]
        cls._extends_loss = is_users(cls.compute_loss)  # type: ignore[attr-defined]
        cls._needs_loss = _uses_ours(cls, "compute_loss")
        wrap(cls, "compute_loss_classifiers", counted_only)

    def detach_latest(self) -> None:
        """Drop the gradients of the newest outputs, which `compute_loss` may have used."""
        own = vars(self)
        for name in ("_newest_representations", "_newest_embeddings"):
            if (value := own.get(name)) is not None:
                own[name] = value.detached() if isinstance(value, ViewList) else value.detach()

    @property
    def has_probe_losses(self) -> bool:
        """Whether `compute_loss` computed losses of the probes for the current batch."""
        batch, losses = vars(self).get("_probe_losses", (None, {}))
        return batch is self.batch and bool(_trainable(losses))  # type: ignore[attr-defined]

    def take_probe_losses(self, labels: Any) -> dict[str, Tensor]:
        """Return the losses of the probes for the current batch: those that `compute_loss` computed, if it did."""
        batch, losses = vars(self).pop("_probe_losses", (None, None))
        if losses is None or batch is not self.batch:  # type: ignore[attr-defined]  # those of a batch that was left out
            latest = self.latest_representations, self.latest_embeddings
            with self._computing_probe_losses():
                losses = self.compute_loss_classifiers(*latest, labels)  # type: ignore[attr-defined]
        return _trainable(losses)

    @contextmanager
    def _computing_probe_losses(self) -> Iterator[None]:
        """Let `compute_loss_classifiers` return losses with gradients."""
        vars(self)["_computes_probe_losses"] = True
        try:
            yield
        finally:
            vars(self)["_computes_probe_losses"] = False
