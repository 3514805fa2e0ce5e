"""The parts of a run, each built for itself, so that one fault does not hide the next."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...base import BaseTrainer
from ...config import SECTIONS, build, check_nodes, parse_config
from ...data import as_loader, length_of
from ...data.faults import is_out_of_memory
from ...engine import Builder
from ...engine.alone import Alone
from ...engine.best import Best
from ...engine.building import data_sets
from ...engine.optimizing import build_optimization
from ...engine.strategies import check_dense
from ...exceptions import CheckpointError, ConfigError, DataError, nearest
from ...lines import place_of
from ...loggers.metrics import by_name, check_metrics, require_methods, watched
from ...nodes import is_node, plain
from ...runtime.seeding import preserved_generators
from ...weights.loading import load_weights
from ..division import check_sharding
from ..offline import is_told_offline, needs_network, offline, places_of_caches, without_download
from ..report import ERROR
from ..stage import CPU, META, Stage
from .settings import PART, check_hooks
from .users_code import UsersCode, is_users, with_place
from .usual import section, unusual_steps

_MISSING: Any = object()  # stands for what could not be built


def build_parts(stage: Stage) -> None:
    """Build each part of a run for itself, and report all that can't be built. Nothing is downloaded.

    What was built is in `stage.built`, by its key, such as "module.backbone", "data.train.dataset", "data.train",
    "logger.metric.test.accuracy", "optim.optimizer".
    """
    with offline(), preserved_generators():
        _Parts(stage).build_all()
    stage.report.tell(PART, is_built=not stage.report.of(ERROR))


def build_data(stage: Stage) -> None:
    """Build the data sets of a run alone, as `build_parts` does."""
    with offline(), preserved_generators():
        _Parts(stage).build_data()


class _Parts:
    """The parts of one run.

    Parameters
    ----------
    stage
        Its `built` gets them, and its `report` the faults.
    """

    def __init__(self, stage: Stage):
        self._stage, self._built = stage, stage.built
        config: Any = plain(dict(stage.config))
        self._asked: Mapping[str, Any] = config.get("trainer", config)
        self._node = copy.copy(self._asked)
        self._trainer: Any = None
        self._attributes: Mapping[str, Any] = {}
        try:
            made = stage.make()
        except Exception:  # `check_configuration` reports it; the parts are built all the same
            made = None
        if isinstance(made, BaseTrainer):  # its live objects are copies of the user's own
            self._trainer, self._attributes = made, made._attributes
            own = ("data", "module", "loss", "module_init", *SECTIONS)
            self._node = {**self._node, **{name: getattr(made, name) for name in own}}
        self._node = without_download(dict(self._node))
        self._sections = {
            name: parse_config(kind, self._node.get(name) or {}, name, []) for name, kind in SECTIONS.items()
        }
        hardware = self._sections["hardware"]
        self._seed = (hardware["seed"] or 0) if hardware is not None else 0
        self._builder = Builder(self._seed, Alone(), CPU)

    def build_all(self) -> None:
        """Build everything, in the order in which a run does."""
        for name, node in self._attributes.items():
            if (made := self._part(name, node)) is not _MISSING:
                setattr(self._trainer, name, made)
        self._build_modules()
        loss = self._part("loss", self._node.get("loss") if self._trainer is None else self._trainer.loss)
        if self._trainer is not None and loss is not _MISSING:
            self._trainer.loss = loss
        self.build_data()
        if self._sections["logger"] is not None:
            self._build_watched(self._sections["logger"])
        if self._sections["optim"] is not None and "train" in self._sets():
            self._build_optimization(self._sections["optim"])
            self._check_strategy(self._sections["hardware"])
        self._check_setup()
        self._check_hooks()

    def build_data(self) -> None:
        """Build the data sets."""
        for name in self._sets():
            self._build_set(name)

    # One part ---------------------------------------------------------------------------------------------------------

    def _part(self, path: str, node: Any) -> Any:
        """Build a part with all that is in it, and keep it by its key. Return `_MISSING` if that is impossible."""
        problems: list[str] = []
        check_nodes(node, path, problems)
        if problems:
            self._stage.report.refuse(PART, ConfigError(problems))
            return _MISSING
        made = self._inside(node, path, partial(self._builder.seeded, path=path))
        if made is not _MISSING and not isinstance(made, str | bool | int | float | None):
            self._built[path] = made
        return made

    def _inside(self, value: Any, path: str, make: Callable[[Any], Any] | None = None) -> Any:
        """Build the nodes in a value from the inside to the outside, so that the faults of all of them are found."""
        value = plain(value)
        if not is_node(value) and type(value) not in (dict, list, tuple):
            return value
        keys = [] if is_node(value) and not value.get("_recursive_", True) else [*_items_of(value, path)]
        made = {key: self._inside(item, inner) for key, inner, item in keys}
        if any(item is _MISSING for item in made.values()):
            return _MISSING
        if not is_node(value):
            return made if isinstance(value, dict) else type(value)(made.values())
        ready = {**value, **made, "_recursive_": False}
        return self._try(lambda: (make or partial(build, path=path))(ready), path, value)

    def _try(self, make: Callable[[], Any], path: str = "", node: Any = None) -> Any:
        """Return what a function makes, or `_MISSING` if it raises, which is reported."""
        report = self._stage.report
        try:
            return make()
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                return self._try_on_meta(make, path or "trainer")
            if text := self._would_download(error, path, node):
                (report.error if is_told_offline() else report.warn)(PART, text)
            elif isinstance(error, ConfigError):
                report.refuse(PART, with_place(error))
            elif isinstance(error, CheckpointError | DataError):
                report.error(PART, f"{path}: {error}" if path else str(error))
            else:
                report.error(PART, f"{path or 'trainer'}: {type(error).__name__}: {error}{place_of(error)}")
        return _MISSING

    def _try_on_meta(self, make: Callable[[], Any], path: str) -> Any:
        """Say that this machine has no memory for a part, and return it on `meta` if it is a module."""
        text = f"{path}: this machine has too little memory to build it, so no step is tried."
        self._stage.report.warn(PART, f"{text} Run the check on a larger machine.")
        self._stage.lacks_room = True
        if not path.startswith("module."):
            return _MISSING
        try:
            with META:
                return make()
        except Exception:  # it may need values
            return _MISSING

    def _would_download(self, error: BaseException, path: str, node: Any) -> str:
        """Return what a run would download, if that is why a part can't be built here; else ""."""
        wanted = self._asked
        for key in path.split("."):
            wanted = wanted.get(key, {}) if isinstance(wanted, Mapping) else {}
        is_absent = isinstance(error.__cause__, RuntimeError | OSError)
        if is_absent and is_node(wanted) and wanted.get("download") is True and is_node(node):
            name, root = str(wanted["_target_"]).rpartition(".")[2], wanted.get("root", "")
            return (
                f"{path}: {name} is not in '{root}'. The run would download it there at its start; a check downloads "
                "nothing, and has not looked at these data."
            )
        if not needs_network(error):
            return ""
        what = next((str(node[key]) for key in ("weights", "path", "name") if is_node(node) and node.get(key)), path)
        return (
            f"{path}: '{what}' is not on this machine; it was looked for in {places_of_caches()}. "
            f"{'HF_HUB_OFFLINE forbids the run to download it.' if is_told_offline() else 'The run would download it.'}"
        )

    # Modules and loss -------------------------------------------------------------------------------------------------

    def _build_modules(self) -> None:
        nodes = self._node.get("module")
        names = list(nodes) if isinstance(nodes, Mapping) else []
        parts = {name: self._part(f"module.{name}", nodes[name]) for name in names}  # type: ignore[index]
        made = {name: part for name, part in parts.items() if part is not _MISSING}
        required = getattr(self._trainer, "required_modules", {})
        is_whole = bool(names) and len(made) == len(names) and all(name in made for name in required)
        prepare = self._trainer.prepare_modules if is_whole and self._trainer is not None else lambda modules: None
        known = {name: kind for name, kind in required.items() if name in made}
        modules = self._try(lambda: self._builder.modules(made, known, prepare), "module")
        if modules is _MISSING:
            return
        self._built.update((f"module.{name}", module) for name, module in modules.items())
        self._load_weights(modules)
        if is_whole and self._trainer is not None:
            self._trainer.module = self._built["module"] = modules

    def _load_weights(self, modules: Mapping[str, nn.Module]) -> None:
        """Load the weights that `module_init` names, unless the run goes on and has others."""
        sources, folder = self._node.get("module_init"), section(self._node, "logger").get("dump_path")
        if not isinstance(sources, Mapping) or (folder and any(Path(folder).glob("checkpoints/step_*"))):
            return
        told = {}
        for name, source in sources.items():
            if name in modules:
                key = f"module_init.{name}"
                told[name] = self._try(partial(load_weights, source, modules[name], name), key, source)
        self._stage.report.tell(PART, module_init={name: text for name, text in told.items() if text is not _MISSING})

    # Data -------------------------------------------------------------------------------------------------------------

    def _sets(self) -> list[str]:
        data = self._node.get("data")
        return data_sets(data) if isinstance(data, Mapping) else []

    def _build_set(self, name: str) -> None:
        """Build the parts of a data set's loader, and then the loader. It is bound to the run's seed."""
        path, node = f"data.{name}", self._node["data"][name]
        problems: list[str] = []
        check_nodes(node, path, problems)
        if problems:
            self._stage.report.refuse(PART, ConfigError(problems))
        if not is_node(node):
            made = self._part(path, node)
        else:
            parts = {key: self._part(inner, item) for key, inner, item in _items_of(node, path)}
            if problems or any(part is _MISSING for part in parts.values()):
                return
            made = self._try(lambda: build({**node, **parts, "_recursive_": False}, path), path, node)
        if made is _MISSING:
            return
        loader = self._try(lambda: as_loader(made, name), path, node)
        if loader is not _MISSING:
            loader.bind(self._seed, name, 0, self._stage.world_size, is_even=name == "train")
            self._built[path] = loader

    # Metrics and monitors ---------------------------------------------------------------------------------------------

    def _build_watched(self, logger: Any) -> None:
        """Build the metrics and monitors of the sets that there are."""
        for kind, check in (("metric", check_metrics), ("monitor", None)):
            for set_name, nodes in logger[kind].items():
                path = f"logger.{kind}.{set_name}"
                if set_name not in self._sets():
                    hint = nearest(set_name, self._sets())
                    self._stage.report.warn(PART, f"{path}: there is no such set in data, so it has no effect.{hint}")
                    continue
                named = by_name(self._inside(nodes, path) if is_node(nodes) else nodes)
                for name, node in named.items() if isinstance(named, Mapping) else ():
                    made = self._part(f"{path}.{name}", node)
                    if made is _MISSING:
                        continue
                    one = {name: made}
                    if check is not None:
                        self._try(partial(check, one, path, self._stage.world_size))
                    else:
                        self._try(partial(require_methods, one, ("compute",), path))
        if logger["best"]:
            made = [self._by_set(kind) for kind in ("metric", "monitor")]
            none: Any = None  # it does not look at the run yet
            self._try(lambda: Best(logger["best"], watched(*made), none, none))

    def _by_set(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the metrics or monitors that were built: `{evaluation set: {name: object}}`."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self._sets() if name != "train"}
        for key, part in self._built.items():
            parts = key.split(".", 3)
            if parts[:2] == ["logger", kind] and parts[2] in found:
                found[parts[2]][parts[3]] = part
        return found

    # Optimizer and schedule -------------------------------------------------------------------------------------------

    def _build_optimization(self, optim: Any) -> None:
        """Build optimizer and schedule: for the modules, or a stand-in if these could not be built."""
        problems: list[str] = []
        for name in ("optimizer", "scheduler"):
            check_nodes(optim[name], f"optim.{name}", problems, partial=True)
        if problems or optim["optimizer"] is None:
            self._stage.report.refuse(PART, ConfigError(problems))
            return
        loader = self._built.get("data.train")
        if loader is not None and length_of(loader) == 0:  # the check of the data says why
            loader = None
        if loader is not None and self._try(partial(self._count, optim, loader), "optim") is _MISSING:
            return
        optim.setdefault("num_batches", 1000)
        modules = self._try(self._trainer.optimized_modules) if "module" in self._built else _MISSING
        if modules is _MISSING:
            modules = {"stand_in": nn.Linear(1, 1)}
            optim.update(groups={}, frozen=[], frozen_norm=[])
        size = getattr(loader, "batch_size", None) if loader is not None else 1
        schedule = optim["scheduler"]
        if self._try(partial(build_optimization, optim, modules, size, 0.0), "optim.optimizer") is _MISSING:
            return
        self._built["optim.optimizer"] = optim["optimizer"]
        if optim["scheduler"] is not None:
            self._built["optim.scheduler"] = optim["scheduler"]
        logger = self._sections["logger"]
        for text in unusual_steps(optim, schedule, logger) if loader is not None and logger else ():
            self._stage.report.warn(PART, text)

    def _check_strategy(self, hardware: Any) -> None:
        """Report what several processes can't train, and what the strategy can't shard, if all modules are there."""
        if "module" not in self._built:
            return
        if self._stage.world_size > 1:
            self._try(lambda: check_dense(self._trainer.optimized_modules()), "module")
        if hardware is not None and hardware["strategy"] != "ddp":
            optimizer, asked = self._built.get("optim.optimizer"), section(self._asked, "optim").get("optimizer")
            is_early = isinstance(asked, Optimizer)
            self._try(partial(check_sharding, self._trainer, hardware["strategy"], optimizer, is_early), "module")

    def _count(self, optim: Any, loader: Any) -> None:
        optim["num_batches"] = self._builder.count_batches(loader, optim["max_steps"])

    def _check_setup(self) -> None:
        """Ask the trainer whether the parts fit together, if all of them are there."""
        loaders = {name: self._built.get(f"data.{name}") for name in self._sets()}
        is_slow = any(getattr(loader, "unreadable", "raise") == "skip" for loader in loaders.values())
        if "module" not in self._built or is_slow or None in loaders.values():
            return
        self._trainer.data = loaders
        monitors = [
            partial(made.check, self._trainer, key)
            for key, made in self._built.items()
            if key.startswith("logger.monitor.") and hasattr(made, "check")
        ]
        lacks_loss = self._node.get("loss") is not None and "loss" not in self._built
        own = [self._trainer.side_optimizers, *([] if lacks_loss else [self._trainer.check_setup])]
        for check in (*own, *monitors):
            try:
                check()
            except ConfigError as error:
                self._stage.report.refuse(PART, error)
            except Exception:  # a user's own may need what only a set-up has; the small run tells then
                continue

    def _check_hooks(self) -> None:
        """Look at the hooks of all classes of the user's among the modules and monitors that were built."""
        kinds: dict[type, bool] = {}
        for key, made in self._built.items():
            is_monitor = key.startswith("logger.monitor.")
            if key == "loss" or is_monitor or key.startswith("module."):
                parts = made.modules() if isinstance(made, nn.Module) and not is_monitor else [made]
                kinds.update((type(part), is_monitor) for part in parts if is_users(type(part)))
        code = UsersCode(kinds)
        for kind, is_monitor in kinds.items():
            check_hooks(self._stage, kind, code, is_monitor)


def _items_of(value: Any, path: str) -> Iterator[tuple[Any, str, Any]]:
    """Yield (key, its whole path, item) for what a node, dict or list holds, without the keywords of a node."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not (is_node(value) and str(key).startswith("_")) or key == "_args_":
                yield key, f"{path}.{key}", item
    else:
        yield from ((index, f"{path}[{index}]", item) for index, item in enumerate(value))
