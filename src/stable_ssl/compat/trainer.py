"""What `BaseTrainer` had in early 2025 beside what it documents."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from ..exceptions import ConfigError
from ..runtime.distributed import full_state_dict
from .wandb import WandbOptions

log = logging.getLogger("stable_ssl")


def is_users(part: Any) -> bool:
    """Return whether a class or a method is a user's, and not one of this package."""
    return str(part.__module__).split(".")[0] != __name__.split(".")[0]


def calls(method: Any, name: str) -> bool:
    """Return whether the code of a method has an attribute of this name, as `super().<name>()` does, or is unknown."""
    return name in getattr(getattr(inspect.unwrap(method), "__code__", None), "co_names", (name,))


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


_ARGUMENTS = ("data", "module", "hardware", "optim", "logger", "loss")


def _alias(name: str) -> property:
    """Return a property for `_<name>`, where trainers of early 2025 found what they were configured with.

    It is what the run has built of that, except in a `checkpoint` of a user's own, which makes a trainer of it.
    """

    def read(self: Any) -> Any:
        given = vars(self).get("_given", {})
        return given[name] if name in given else getattr(self, name)

    def assign(self: Any, value: Any) -> None:
        setattr(self, name, value)

    return property(read, assign, doc=f"The same as `{name}`.")


class EarlyTrainer:
    """Attributes and methods that `BaseTrainer` had in early 2025 beside those that it documents."""

    step: Any = None  # a trainer's own counter: nothing else sets it
    _data, _module, _loss = _alias("data"), _alias("module"), _alias("loss")
    _hardware, _optim, _logger = _alias("hardware"), _alias("optim"), _alias("logger")
    _batch_idx, _epoch = _alias("batch_idx"), _alias("epoch")
    _extras: Mapping[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if wrap(cls, "_evaluate", _in_evaluation_mode):
            wrap(cls, "before_eval_step", _after_moving, always=True)
        wrap(cls, "checkpoint", _of_the_configuration)

    @property
    def _kwargs(self) -> dict[str, Any]:
        """What the constructor got beside its six first arguments."""
        _, named = vars(self)["_captured"]
        return {name: value for name, value in named.items() if name not in _ARGUMENTS}

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
        from .. import reader

        entity, project, _ = self._wandb_path()
        return reader.wandb_project(entity, project, keys=keys, state=state)

    @property
    def wandb_run(self) -> Any:
        """This run in W&B's public API."""
        import wandb

        path = "/".join(self._wandb_path())
        return wandb.Api().run(path)

    def _wandb_path(self) -> tuple[str, str, str]:
        """Return entity, project and id of the run of W&B."""
        options = self.logger["wandb"]  # type: ignore[attr-defined]
        if not isinstance(options, WandbOptions):
            raise RuntimeError(
                "logger.wandb is off, or the trainer is not set up, so there is no run of W&B: set it, call setup()."
            )
        entity, project, identity = (options.get(name) for name in ("entity", "project", "id"))
        if not (entity and project and identity):
            raise RuntimeError(
                "W&B has no entity, project and id for this run: it has not begun, or it is offline. Log in, or upload "
                "it by `wandb sync` and read it by reader.wandb(entity, project, run_id)."
            )
        return entity, project, identity

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}global_step", None)  # a buffer in early 2025; today the run counts
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

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
        """Write the state of all modules to a file in the run's folder, for reading. Rank 0 does it.

        If modules are sharded, all ranks must call this.
        """
        state: dict[str, Any] = {key: full_state_dict(child) for key, child in self.named_children()}  # type: ignore[attr-defined]
        if not model_only:
            state["epoch"] = self._progress.trained_epochs  # type: ignore[attr-defined]
        if self.rank == 0:  # type: ignore[attr-defined]
            torch.save(state, self.folder / name)  # type: ignore[attr-defined]

    def _instanciate(self) -> None:
        """Run when all but the side optimizers is built and on the device, before a checkpoint is restored.

        The run uses the optimizer, the schedule, the evaluation sets, and the metrics and monitors that it puts into
        `optim`, `data` and `logger`.
        """

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
        if self.logger["wandb"]:  # type: ignore[attr-defined]
            options = WandbOptions(self.logger["wandb"], self.folder / "wandb.json")  # type: ignore[attr-defined]
            self.logger["wandb"] = options  # type: ignore[attr-defined]
        if cls._save_checkpoint is not EarlyTrainer._save_checkpoint:
            self._saver.weights.on_save = self._save_named  # type: ignore[attr-defined]
        if cls._log is not EarlyTrainer._log:
            self._recorder.emit = self._log  # type: ignore[attr-defined]
        if self.logger["monitor"].get("train") and _computes_monitors(cls.after_fit_step):  # type: ignore[attr-defined]
            log.warning(
                "%s.after_fit_step computes the monitors of train, as the run does too, and logs them a second time. "
                "Leave that out.",
                cls.__name__,
            )
        for name, instead in _NEVER_CALLED.items():
            if hasattr(cls, name):
                log.warning("%s.%s: no run calls this method. %s", cls.__name__, name, instead)

    def _save_named(self, name: str) -> None:
        """Call a subclass's own `_save_checkpoint` beside each file of weights, with the file name of early 2025."""
        epoch = name.removeprefix("epoch_")
        if epoch.isdigit():
            model_only = self.logger["checkpoint_model_only"]  # type: ignore[attr-defined]
            self._save_checkpoint(f"checkpoint_{int(epoch)}.ckpt", model_only=model_only)
        else:
            self._save_checkpoint(f"{name}.ckpt", model_only=True)

    def _closers(self) -> list[Any]:
        """Return what is closed at the end of a run: a subclass's own `_cleanup`."""
        own = type(self)._cleanup is not EarlyTrainer._cleanup
        return [SimpleNamespace(close=self._cleanup)] if own else []


def _computes_monitors(hook: Callable) -> bool:
    """Return whether a user's hook calls `compute` of what is in `self.logger["monitor"]`, as the old hook did."""
    constants = getattr(getattr(inspect.unwrap(hook), "__code__", None), "co_consts", ())
    return is_users(hook) and "monitor" in constants and calls(hook, "compute")


def wrap(cls: Any, name: str, wrapper: Callable[[Callable], Callable], always: bool = False) -> bool:
    """Put something around a method of a class, if the method is a user's. Return whether that was done.

    An inherited method is looked up by `super()` at each call. So if there are several bases, Python's order decides. A
    wrapped method is not wrapped again.
    """
    method = getattr(cls, name)
    if getattr(method, "is_wrapped", False) or not (always or is_users(method)):
        return False

    def inherited(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), name)(*args, **kwargs)

    wrapped: Any = wrapper(vars(cls).get(name, functools.update_wrapper(inherited, method)))
    wrapped.is_wrapped = True
    setattr(cls, name, wrapped)
    return True


def _in_evaluation_mode(evaluate: Callable) -> Callable:
    """Return an `_evaluate` of a user's own, before which all modules are put into evaluation mode.

    It relied on `before_eval` for that, which does nothing today.
    """

    @functools.wraps(evaluate)
    def evaluate_then(self: Any) -> Any:
        self.eval()
        self._evaluation.mark_done()
        return evaluate(self)

    return evaluate_then


def _after_moving(hook: Callable) -> Callable:
    """Return a `before_eval_step` that moves the batch to the device first, for an `_evaluate` of a user's own."""

    @functools.wraps(hook)
    def move_then(self: Any) -> Any:
        self.batch = self._feed.on_device(self.batch)
        return hook(self)

    return move_then


def _of_the_configuration(checkpoint: Callable) -> Callable:
    """Return a `checkpoint` of a user's own, in which `_data`, `_module` and so on are what the constructor got.

    The trainer that it makes of them gets the run's folder.
    """

    @functools.wraps(checkpoint)
    def checkpoint_then(self: Any, *args: Any, **kwargs: Any) -> Any:
        values, named = vars(self)["_captured"]
        vars(self)["_given"] = {"loss": None, **dict(zip(_ARGUMENTS, values, strict=False)), **named}
        try:
            made = checkpoint(self, *args, **kwargs)
        finally:
            vars(self).pop("_given", None)
        fresh = getattr(made, "function", None)
        if isinstance(fresh, type(self)):
            vars(fresh).update(_dump_path=self._dump_path, _extras=self._extras, **self._extras)
        return made

    return checkpoint_then


def check_own_step(cls: Any, world_size: int) -> None:
    """Raise a ConfigError if a class has a `_fit_step` that would not average gradients over several processes.

    In early 2025 the modules did that. Today it is a part of `super()._fit_step()`.
    """
    if world_size > 1 and is_users(inspect.unwrap(cls._fit_step)) and not calls(cls._fit_step, "_fit_step"):
        raise ConfigError(
            f"{cls.__name__}._fit_step: gradients are not averaged over the {world_size} processes. Call "
            "super()._fit_step() in it, which computes, averages and steps, or use one process."
        )


def set_epoch(trainer: Any, value: int) -> None:
    """Allow `trainer.epoch = value` if the value is the current epoch or 0, which `before_fit` set in early 2025."""
    if value == trainer.epoch:
        return
    if value != 0:
        raise AttributeError(
            f"epoch: the run counts its epochs itself, and is in epoch {trainer.epoch}, not {value}. Call "
            "super()._fit() in a _fit() of your own; before_fit_epoch and after_fit_epoch run around each epoch."
        )
    log.warning("epoch is not set to 0: the run goes on in epoch %d.", trainer.epoch)
