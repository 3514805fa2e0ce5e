"""Names that trainers of early 2025 use, for the classes that they derive from.

`docs/coming_from_2025.md` says what each of them is today.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .exceptions import ConfigError

log = logging.getLogger("stable_ssl")

# Methods of early 2025 that no run calls, and what to define or set instead.
_NEVER_CALLED = {
    "_set_device": "Set hardware.device.",
    "_check_modules": "Define check_setup().",
    "_generate_logging_default_bucket": "Log values of your own by self.log(name, value).",
}


class CountedSteps(int):
    """The number of optimizer steps. It also has the methods of a tensor (1,), as `item()`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_"):
            raise AttributeError(
                f"global_step.{name}(): the run counts its steps itself. Call super()._fit_epoch() in a _fit_epoch() "
                "of your own, and put what is yours into before_fit_step, _fit_step or after_fit_step."
            )
        return getattr(torch.tensor([int(self)]), name)


def _configured(name: str) -> property:
    """Return a property for `_<name>`, where trainers of early 2025 found what they were configured with."""

    def assign(self: Any, value: Any) -> None:
        setattr(self, name, value)

    return property(lambda self: getattr(self, name), assign, doc=f"The same as `{name}`.")


class EarlyTrainer:
    """Attributes and methods that `BaseTrainer` had in early 2025 beside those that it documents."""

    step: Any = None  # a trainer's own counter: nothing else sets it
    _data, _module, _loss = _configured("data"), _configured("module"), _configured("loss")
    _hardware, _optim, _logger = _configured("hardware"), _configured("optim"), _configured("logger")
    _batch_idx = _configured("batch_idx")
    _extras: Mapping[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_evaluate" in vars(cls) and cls.__module__.split(".")[0] != __package__:
            cls._evaluate = _in_evaluation_mode(cls._evaluate)  # type: ignore[attr-defined]

    @property
    def _device(self) -> str:
        """The device as text."""
        return str(self.device)  # type: ignore[attr-defined]

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaling of fp16, which changes nothing in other precisions."""
        own: torch.amp.GradScaler | None = self._run.precision.scaler  # type: ignore[attr-defined]
        return own or torch.amp.GradScaler(self.device.type, enabled=False)  # type: ignore[attr-defined]

    def get_logs(
        self, keys: Iterable[str] | None = None, min_step: int = 0, max_step: int = -1
    ) -> list[dict[str, Any]]:
        """Return records of `metrics.jsonl`, in the order in which they were written.

        Parameters
        ----------
        keys
            Leave out the records that have none of these names. None: leave out none.
        min_step, max_step
            The place of the first record, counted from the end if it is negative, and the place after the last one. -1:
            there is no last one.
        """
        records: list[dict[str, Any]] = self._run.records()  # type: ignore[attr-defined]
        if keys is not None:
            wanted = set(keys)
            records = [record for record in records if wanted & record.keys()]
        return records[min_step : None if max_step == -1 else max_step]

    def get_config(self) -> Any:
        """Return the configuration as `config.yaml` has it, with all defaults; a live object is `<live ClassName>`.

        It is a DictConfig of OmegaConf: a dict whose keys are attributes too.
        """
        from omegaconf import OmegaConf

        return OmegaConf.create(self._resolved())  # type: ignore[attr-defined]

    def get_project_logs(self, keys: Any = None, state: Any = ("finished",)) -> Any:
        """Return the values and the configurations of all runs of this run's W&B project, by run."""
        from . import reader

        run = self.wandb_run
        return reader.wandb_project(run.entity, run.project, keys=keys, state=state)

    @property
    def wandb_run(self) -> Any:
        """This run in W&B's public API."""
        import wandb

        if wandb.run is None:
            raise RuntimeError("No W&B run is going on: logger.wandb is not set, or this is not rank 0.")
        return wandb.Api().run(wandb.run.path)

    def _log(self, packet: Mapping[str, Any] | None = None, commit: bool = True) -> None:
        """Write values under their whole names, such as "train/accuracy"; `log` waits for no device.

        Parameters
        ----------
        packet
            Values by name.
        commit
            Whether they make a record at once. If not, they become part of the next record.
        """
        self._recorder.write_record(packet or {}, commit)  # type: ignore[attr-defined]

    def _save_checkpoint(self, name: str, model_only: bool = True) -> None:
        """Write the state of all modules to a file in the run's folder, for reading. Rank 0 does it."""
        if self.rank == 0:  # type: ignore[attr-defined]
            state: dict[str, Any] = {key: child.state_dict() for key, child in self.named_children()}  # type: ignore[attr-defined]
            if not model_only:
                state["epoch"] = self.epoch  # type: ignore[attr-defined]
            torch.save(state, self.folder / name)  # type: ignore[attr-defined]

    def _instanciate(self) -> None:
        """Run when everything is built and on the device, before a checkpoint is restored."""

    def _load_checkpoint(self) -> None:
        """Run when the newest checkpoint of the run's folder is restored, if there is one."""

    def _cleanup(self) -> None:
        """Run at the end of a run."""

    def _begin_early(self) -> None:
        """Prepare a run for what a subclass has of early 2025. Runs once, in `setup`."""
        cls: Any = type(self)
        check_own_step(cls, self.world_size)  # type: ignore[attr-defined]
        vars(self)["start_time"] = time.time()
        self.logger["dump_path"] = self.folder  # type: ignore[attr-defined]
        if cls._save_checkpoint is not EarlyTrainer._save_checkpoint:
            self._saver.weights.on_save = self._save_named  # type: ignore[attr-defined]
        if cls._log is not EarlyTrainer._log:
            self._recorder.emit = self._log  # type: ignore[attr-defined]
        for name, instead in _NEVER_CALLED.items():
            if hasattr(cls, name):
                log.warning("%s.%s: no run calls this method. %s", cls.__name__, name, instead)

    def _save_named(self, name: str) -> None:
        """Call a subclass's own `_save_checkpoint` beside each file of weights, with the file name of early 2025."""
        epoch = name.removeprefix("epoch_")
        self._save_checkpoint(f"checkpoint_{int(epoch)}.ckpt" if epoch.isdigit() else f"{name}.ckpt", model_only=True)

    def _closers(self) -> list[Any]:
        """Return what is closed at the end of a run: a subclass's own `_cleanup`."""
        own = type(self)._cleanup is not EarlyTrainer._cleanup
        return [SimpleNamespace(close=self._cleanup)] if own else []


def _in_evaluation_mode(evaluate: Callable) -> Callable:
    """Return an `_evaluate` of a user's own, before which all modules are put into evaluation mode.

    It relied on `before_eval` for that, which does nothing today.
    """

    @functools.wraps(evaluate)
    def evaluate_then(self: Any) -> Any:
        self.eval()
        self._evaluation.made_by_hand()
        return evaluate(self)

    return evaluate_then


def check_own_step(cls: Any, world_size: int) -> None:
    """Raise a ConfigError if a class has a `_fit_step` that would not average gradients over several processes.

    In early 2025 the modules did that. Today it is a part of `super()._fit_step()`.
    """
    step = inspect.unwrap(cls._fit_step)
    calls = getattr(getattr(step, "__code__", None), "co_names", ("_fit_step",))
    if world_size > 1 and step.__module__.split(".")[0] != __package__ and "_fit_step" not in calls:
        raise ConfigError(
            f"{cls.__name__}._fit_step: gradients are not averaged over the {world_size} processes. Call "
            "super()._fit_step() in it, which computes, averages and steps, or use one process."
        )


def set_epoch(trainer: Any, value: int) -> None:
    """Refuse to set `trainer.epoch`, except to 0 or what it is, as `before_fit` did in early 2025."""
    if value == trainer.epoch:
        return
    if value != 0:
        raise AttributeError(
            f"epoch: the run counts its epochs itself, and is in epoch {trainer.epoch}, not {value}. Call "
            "super()._fit() in a _fit() of your own; before_fit_epoch and after_fit_epoch run around each epoch."
        )
    log.warning("epoch is not set to 0: the run goes on in epoch %d.", trainer.epoch)


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
        plain = [arg.rows if isinstance(arg, ViewList) else arg for arg in args]
        return function(*plain, **{k: v.rows if isinstance(v, ViewList) else v for k, v in (kwargs or {}).items()})

    def detached(self) -> ViewList:
        """Return the same tensors without gradients."""
        return ViewList(view.detach() for view in self)


def _operator(name: str) -> Callable:
    def operate(self: ViewList, *others: Any) -> Any:
        return getattr(self.rows, name)(*(each.rows if isinstance(each, ViewList) else each for each in others))

    return operate


_OPERATORS = "add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs lt le gt ge eq ne"
for _name in _OPERATORS.split(" "):
    setattr(ViewList, f"__{_name}__", _operator(f"__{_name}__"))


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
            self.update(self._compute())

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


def counted_only(compute: Callable) -> Callable:
    """Return a `compute_loss_classifiers` whose caller gets numbers, while the losses themselves wait for the probes.

    So the probes are trained by their own optimizer, whatever a trainer of early 2025 does with the numbers. Calls
    within the method, as by `super()`, return the losses.
    """

    @functools.wraps(compute)
    def compute_then(self: Any, representations: Any, embeddings: Any, labels: Any) -> dict[str, Any]:
        if self._computes_probe_losses:
            return compute(self, representations, embeddings, labels)  # type: ignore[no-any-return]
        self._computes_probe_losses = True
        try:
            with torch.autocast(self.device.type, enabled=False):  # as where the probes are trained otherwise
                losses = compute(self, representations, embeddings, labels)
        finally:
            self._computes_probe_losses = False
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


class EarlySelfSupervised:
    """What `SelfSupervisedTrainer` has of early 2025: lists of views, and losses of probes in `compute_loss`."""

    latest_representations = _latest_representations = _latest("representations")
    latest_embeddings = _latest_embeddings = _latest("embeddings")
    _formats_views = _extends_loss = _computes_probe_losses = _has_told_of_probes = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:
            return
        # What a subclass defines decides what its runs do, so nothing is asked per step.
        cls._formats_views = cls._formats_views or "format_views_labels" in vars(cls)
        cls._extends_loss = cls._extends_loss or "compute_loss" in vars(cls)
        if "compute_loss_classifiers" in vars(cls):
            cls.compute_loss_classifiers = counted_only(cls.compute_loss_classifiers)  # type: ignore[attr-defined]

    def detach_latest(self) -> None:
        """Drop the gradients of the newest outputs, which `compute_loss` may have used."""
        own = vars(self)
        for name in ("_newest_representations", "_newest_embeddings"):
            if (value := own.get(name)) is not None:
                own[name] = value.detached() if isinstance(value, ViewList) else value.detach()

    def take_probe_losses(self, labels: Any) -> dict[str, Tensor]:
        """Return the losses of the probes for the current batch: those that `compute_loss` computed, if it did."""
        batch, losses = vars(self).pop("_probe_losses", (None, None))
        if losses is None or batch is not self.batch:  # type: ignore[attr-defined]  # those of a batch that was left out
            vars(self)["_computes_probe_losses"] = True
            try:
                latest = self.latest_representations, self.latest_embeddings
                losses = self.compute_loss_classifiers(*latest, labels)  # type: ignore[attr-defined]
            finally:
                vars(self)["_computes_probe_losses"] = False
        return {name: loss for name, loss in losses.items() if isinstance(loss, Tensor) and loss.requires_grad}
