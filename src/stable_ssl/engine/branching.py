"""A branch: a run that begins from a checkpoint of another run, its parent, under another configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import with_defaults
from ..exceptions import CheckpointError, ConfigError, some_of
from ..runtime.behaviour import behaviour, behaviour_problems
from ..runtime.checkpoint import CheckpointStore
from ..runtime.folder import RunFolder, decisive_differences, moved_data, read_config
from ..runtime.sharded import outlined
from .facts import DataFacts, Difference, optimizer_differences
from .optimizing import replay, unscheduled
from .parts import Model, Part, fitted_part
from .progress import Progress
from .restoring import fitted_modules
from .session import Session
from .trained import TrainedParameters

log = logging.getLogger("stable_ssl")

# A change of one of these makes other samples, or another order of them.
_OF_THE_ORDER = ("data.train", "hardware.seed", "optim.accumulation_steps", "optim.max_steps")
_NOT_OF_THE_ORDER = ("data.train.views", "data.train.on")
# A change of one of these makes other options of the optimizer, for checkpoints that do not tell its options.
_OF_THE_OPTIMIZER = ("optim.optimizer", "optim.groups", "optim.exclude_bias_norm", "optim.lr_batch_size")


class Branch:
    """What a new run takes over from a checkpoint of its parent.

    Parameters
    ----------
    run
        The parent's folder. It is only read.
    checkpoints
        The checkpoints in it.
    step
        The step of the checkpoint. None: the newest valid one.
    restarts_schedule
        Whether the schedule begins anew here, and lasts for the epochs that are left.

    Attributes
    ----------
    config
        The parent's configuration when the checkpoint was written.
    meta
        The checkpoint's `meta.json`.
    state
        The checkpoint's state. Until `read`, it has placeholders for sharded tensors.
    progress
        Where the branch begins: at the checkpoint, unless `begin` moves it to the next epoch.
    changes
        One sentence per setting, fact about the data or behaviour that differs from the parent's.
    left_out
        One sentence for each thing that is not taken over.

    Raises
    ------
    ConfigError
        There is no such run or checkpoint.
    """

    def __init__(self, run: Path, checkpoints: CheckpointStore, step: int | None, restarts_schedule: bool):
        self._checkpoints = checkpoints
        try:
            self.path, self.state, self.meta = checkpoints.read(step)
        except CheckpointError as error:
            raise ConfigError(f"branch_from: {error}") from error
        if (begun_under := self.meta.get("behaviour", 1)) > behaviour():
            raise ConfigError([f"branch_from: '{run}' is of a newer version.", *behaviour_problems([begun_under])])
        self.run, self.restarts_schedule = run, restarts_schedule
        self.config: dict[str, Any] = with_defaults(
            self.meta.get("config") or (read_config(run) or {}).get("trainer", {})
        )
        self.progress = Progress()
        self.progress.go_to(self.state["progress"])
        self.progress.has_begun = False  # the branch's own log begins here
        self.changes: list[str] = behaviour_problems([begun_under])
        self.left_out: list[str] = []
        self._differences: list[Difference] = []
        self._other_options: list[Difference] = []
        self._has_other_data = self._has_other_schedule = False
        self._constant: set[str] = set()
        self._same: set[str] = set()

    def begin(self, config: dict[str, Any], facts: DataFacts, samples: Any, optim: Any) -> None:
        """Decide where training begins.

        Parameters
        ----------
        config
            The branch's configuration.
        facts
            The facts about its training data.
        samples
            What `identify` tells of it.
        optim
            Its `OptimConfig`. The number of mini-batches is known, the schedule is not built yet.

        Raises
        ------
        ConfigError
            Nothing is left to train.
        """
        self._differences = decisive_differences(self.config, config)
        self._add_changes(self._differences)
        if not self._changed(("data.train",)):  # live loaders may differ although the configuration does not show it
            self._add_changes(facts.differences(self.meta.get("data") or {}))
        before, now = facts.known(self.meta.get("data") or {}), asdict(facts)
        other_batches = any(before[key] != now[key] for key in now if key != "views")
        has_moved = any(name == "train" for name, *_ in moved_data(self.config, config))
        has_other_samples = has_moved and samples != (self.meta.get("sets") or {}).get("train")
        self._has_other_data = has_other_samples or other_batches or self._changed(_OF_THE_ORDER, _NOT_OF_THE_ORDER)
        progress, earlier = self.progress, self.config.get("optim", {})
        if self._has_other_data and progress.phase == "fit" and progress.batches:
            progress.epoch, progress.batches = progress.epoch + 1, 0
        if progress.epoch >= optim["epochs"]:
            raise ConfigError(
                f"optim.epochs: {optim['epochs']}, but the branch would begin after epoch {progress.epoch}, so nothing "
                "is left to train. Give more epochs, or an earlier step (--step)."
            )
        steps = math.ceil(facts.batches_per_epoch / optim["accumulation_steps"])
        steps_before = math.ceil(before["batches_per_epoch"] / earlier.get("accumulation_steps", 1))
        over = progress.epoch + (progress.phase == "evaluate") + progress.batches / optim["accumulation_steps"] / steps
        if self.restarts_schedule:
            progress.schedule_begin = over
        if self.restarts_schedule or self._has_other_data or steps != steps_before:
            progress.schedule_shift = round((over - progress.schedule_begin) * steps) - progress.global_step
        self._has_other_schedule = (
            self.restarts_schedule
            or steps != steps_before
            or self._has_other_data
            or earlier.get("epochs") != optim["epochs"]
            or self._changed(("optim.scheduler",))
        )
        self._constant = unscheduled(optim["groups"])

    def _add_changes(self, differences: Iterable[Difference]) -> None:
        self.changes += [f"{what}: {old!r} in the parent, {new!r} here." for what, old, new in differences]

    def _changed(self, keys: Iterable[str], but: Iterable[str] = ()) -> bool:
        """Return whether the configuration differs at, or below, one of these keys."""

        def is_below(path: str, keys: Iterable[str]) -> bool:
            return any(path == key or path.startswith(f"{key}.") for key in keys)

        return any(is_below(path, keys) and not is_below(path, but) for path, _, _ in self._differences)

    def has_all(self, model: Model) -> bool:
        """Return whether the checkpoint has all values of the modules."""
        saved, own = outlined(self.state["modules"]), model.state_dict().items()
        return all(key in saved and _have_one_shape(value, saved[key]) for key, value in own)

    def read(self, layout: Any) -> None:
        """Read the sharded tensors of the checkpoint, divided as those of this run are, as `layout` says.

        Raises
        ------
        CheckpointError
            They can't be read.
        """
        self.state = self._checkpoints.with_shards(self.path, self.state, layout)

    def record(self) -> dict[str, Any]:
        """Return the content of `branch.json`."""
        return {
            "run": str(self.run.resolve()),
            "step": self.state["progress"]["global_step"],
            "restart_schedule": self.restarts_schedule,
            "changes": self.changes,
            "left_out": self.left_out,
        }

    def tell(self) -> None:
        """Log where the branch begins, what is changed, and what is not taken over."""
        progress = self.progress
        log.info("A branch of '%s': on from step %d, in epoch %d.", self.path, progress.global_step, progress.epoch + 1)
        for sentence in self.changes:
            log.info("%s", sentence)
        for sentence in self.left_out:
            log.warning("Not taken over: %s", sentence)

    def take_over(
        self, model: Model, parts: Mapping[str, Part], facts: Mapping[str, Any], trained: TrainedParameters | None
    ) -> dict[str, Any]:
        """Put the saved values into the modules and parts, as far as they fit.

        Parameters
        ----------
        model
            The modules.
        parts
            The parts of a checkpoint, by name.
        facts
            What `constant_facts` returned in this run.
        trained
            The trained parameters; None if the run does not train.

        Returns
        -------
        dict
            The states of parts that a trainer may still register.
        """
        self._take_modules(model)
        self._other_options = optimizer_differences(self.meta, facts)
        if not self._changed(_OF_THE_OPTIMIZER):
            self._add_changes(self._other_options)
        saved = dict(self.state["parts"])
        hooked = self._hooked(facts["optimizers"])
        with trained.restoring(hooked) if trained else nullcontext():
            self._take_parts(parts, saved, facts["optimizers"], hooked)
        self.left_out += [f"{name}: this run has none." for name in saved if not name.startswith("registered.")]
        return {name: state for name, state in saved.items() if name.startswith("registered.")}

    def _hooked(self, optimizers: Mapping[str, Any]) -> dict[str, Any]:
        """Return what hooks froze, thawed and added to the optimizers, if these have the same parameters as before."""
        hooked: dict[str, Any] = self.state.get("trained", {})
        before = self.meta.get("optimizers") or {}
        if any(_names(before.get(name)) != _names(optimizers.get(name)) for name in hooked):
            self.left_out.append("what hooks froze, thawed or added to an optimizer, since its parameters are others.")
            return {}
        return hooked

    def _take_parts(
        self,
        parts: Mapping[str, Part],
        saved: dict[str, Any],
        optimizers: Mapping[str, Any],
        hooked: Mapping[str, Any],
    ) -> None:
        """Load the saved states of the parts, and remove them from `saved`."""
        has_schedule = "scheduler" in parts or "scheduler" in saved
        new_rates = has_schedule and self._has_other_schedule
        for name, part in parts.items():
            if name not in saved:
                if part.object.state_dict() is not None:
                    self.left_out.append(f"{name}: begins here, since the checkpoint has none.")
                new_rates = new_rates or name == "optimizer"
            elif name in optimizers:
                is_paced = name == "optimizer" and new_rates
                added = hooked.get(name, {}).get("added", [])
                keeps_rates = self._take_optimizer(part, saved.pop(name), optimizers[name], added, is_paced)
                new_rates = new_rates or (name == "optimizer" and not keeps_rates)
            elif (name == "scheduler" and new_rates) or name in ("best", "evaluation"):  # those are the parent's
                del saved[name]
            elif name == "data" and self._has_other_data:
                del saved[name]
                self.left_out.append("data: the place in the stream, since the data are others.")
            else:
                self._take_part(part, saved.pop(name))
        if "scheduler" in parts and new_rates:
            replay(parts["scheduler"].object, parts["optimizer"].object, self.progress.schedule_step, self._constant)

    def _take_modules(self, model: Model) -> None:
        saved, own = self.state["modules"], model.state_dict()
        taken = {key: saved[key] for key, value in own.items() if key in saved and _have_one_shape(value, saved[key])}
        if not any(key in taken for key, _ in model.named_parameters()):
            raise ConfigError(f"branch_from: no value of '{self.path}' fits a module of this run.")
        model.load_state_dict({**own, **fitted_modules(taken, model)})
        buffers = dict(model.named_buffers())
        for name, value in self.state["buffers"].items():
            if name in buffers and _have_one_shape(buffers[name], value):
                buffers[name].copy_(value)
            elif name in buffers:
                self.left_out.append(f"{name}: its shape is another one.")
        self._same = {key for key in taken if isinstance(taken[key], Tensor)}
        self._say("values that the checkpoint lacks, or has in another shape", [key for key in own if key not in taken])
        self._say("values that this run lacks", [key for key in saved if key not in own])

    def _say(self, what: str, keys: list[str]) -> None:
        if keys:
            self.left_out.append(f"{what}: {some_of(keys)}.")

    def _take_part(self, part: Part, state: Any) -> None:
        try:
            part.load(state)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            self.left_out.append(f"{part.name}: the saved state does not fit: {error!r}.")

    def _take_optimizer(
        self, part: Part, saved: dict[str, Any], now: Mapping[str, Any], added: list[list[str]], has_new_rates: bool
    ) -> bool:
        """Put the saved moments of the same parameters into an optimizer. Return whether it has the saved rates too."""
        optimizer, own = part.object, part.object.state_dict()
        names = _names(now)
        before = (self.meta.get("optimizers") or {}).get(part.name)
        if before is None:  # an early checkpoint, which tells neither class nor names
            sizes = [len(group["params"]) for group in saved["param_groups"]]
            is_known = sizes == list(map(len, names)) and not self._changed(_OF_THE_OPTIMIZER[1:])
            before_names = names if is_known else []
            has_same_class = set(optimizer.defaults) <= set(saved["param_groups"][0])
            keeps = is_known and not self._has_other_data and not self._changed(_OF_THE_OPTIMIZER)
        else:
            before_names = _names(before)
            has_same_class = before["class"] == now["class"]
            differs = any(what.startswith(f"{part.name}: ") for what, *_ in self._other_options)
            keeps = before_names == names and not differs
        if not has_same_class:
            self.left_out.append(f"{part.name}: its state, since its class is another one.")
            return False
        places, places_before = _places([*names, *added], own), _places([*before_names, *added], saved)
        same = [name for name in places if name in places_before and name in self._same]
        state = {
            places[name]: saved["state"][places_before[name]] for name in same if places_before[name] in saved["state"]
        }
        keeps = keeps and not has_new_rates
        groups = saved["param_groups"] if keeps else own["param_groups"]
        optimizer.load_state_dict(fitted_part({**own, "state": state, "param_groups": groups}, optimizer))
        if saved["state"] and len(same) < len(places):
            others = len(places) - len(same)
            self.left_out.append(f"{part.name}: the state of {others} of its {len(places)} parameters.")
        return keeps


def _names(optimizer: Mapping[str, Any] | None) -> list[list[str]]:
    """Return the names of the parameters in each group of an optimizer, as `describe_optimizer` gives them."""
    return [group["parameters"] for group in optimizer["groups"]] if optimizer else []


def _places(names: Iterable[Iterable[str]], state: Mapping[str, Any]) -> dict[str, int]:
    """Return the index that each parameter has in an optimizer's state, by name; `names` has those of each group."""
    groups = zip(names, state["param_groups"], strict=False)
    return {name: index for known, group in groups for name, index in zip(known, group["params"], strict=False) if name}


def _have_one_shape(one: Any, other: Any) -> bool:
    are_tensors = isinstance(one, Tensor), isinstance(other, Tensor)
    return one.shape == other.shape if all(are_tensors) else not any(are_tensors)


def find_branch(options: Any, session: Session, is_new: bool) -> Branch | None:
    """Return the branch that a run begins as. Return None if it is no branch, or has begun already.

    All processes call this, and each of them reads the parent's checkpoint.

    Parameters
    ----------
    options
        The run's `branch_from`: a dict with `run`, `step` and `restart_schedule`.
    session
        The run's session.
    is_new
        Whether the folder has no checkpoint yet.

    Raises
    ------
    ConfigError
        The folder holds another run, or there is no such parent.
    """
    if options["run"] is None:
        return None
    run = Path(options["run"])
    session.ranks.from_main(lambda: _check_branch(options, run, session.folder, is_new))
    checkpoints = session.checkpoints.of(run / "checkpoints")
    return Branch(run, checkpoints, options["step"], options["restart_schedule"]) if is_new else None


def _check_branch(options: Any, run: Path, folder: RunFolder, is_new: bool) -> None:
    """Refuse a parent that is not there, and a folder that holds another run."""
    if run.resolve() == folder.path.resolve():
        raise ConfigError(
            f"branch_from: '{run}' is the folder of this run itself, but a branch needs a new folder. Choose another "
            "logger.dump_path (--out)."
        )
    if is_new:
        if not (run / "checkpoints").is_dir():
            raise ConfigError(f"branch_from: '{run}' has no checkpoints. Give the folder of a run that has some.")
        return
    held = folder.branch
    problems = [
        f"{key}: the branch in the folder has {held.get(key)!r}, this one {value!r}."
        for key, value in {**options, "run": str(run.resolve())}.items()
        if held.get(key) != value and (key != "step" or value is not None)
    ]
    if problems:
        what = f"branch_from: '{folder.path}' holds another run; nothing was done."
        raise ConfigError([what, *(problems if held else []), "Choose another logger.dump_path (--out)."])
