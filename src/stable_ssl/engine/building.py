"""Building: from configured nodes to modules, loss, data, metrics, monitors and optimizers."""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..config import build
from ..data import Loader, as_loader, length_of
from ..data.unreadable import place_of
from ..exceptions import ConfigError, nearest
from ..loggers.metrics import by_name, check_metrics
from ..runtime.seeding import Stream, seed_generators
from ..weights.loading import load_weights
from .agreement import Together
from .alone import Alone
from .facts import check_same_data
from .optimizing import build_optimization, check_replaced
from .parts import MAKE_IT_EARLIER
from .strategies import check_dense

log = logging.getLogger("stable_ssl")


class Builder:
    """Builds the parts of one run.

    Parameters
    ----------
    seed
        The run's seed.
    ranks
        The processes of the run.
    device
        Where this process computes.

    Attributes
    ----------
    loaders
        The loaders that are bound to this run, each by the name that it is bound to.
    """

    def __init__(self, seed: int, ranks: Alone | Together, device: torch.device):
        self._seed, self._ranks, self._device = seed, ranks, device
        self.loaders: dict[str, Any] = {}
        self._made: tuple[Any, Any] | None = None  # optimizer and schedule

    def seeded(self, node: Any, path: str) -> Any:
        """Build a node under a seed of its own, so that its weights do not depend on the rest of the configuration.

        Parameters
        ----------
        path
            The node's key; its seed is derived from it.
        """
        seed_generators(self._seed, Stream.BUILD, zlib.crc32(path.encode()))
        return build(node, path)

    def attributes(self, owner: nn.Module, nodes: Mapping[str, Any]) -> None:
        """Build the trainer's own arguments, and make them its attributes."""
        for name, node in nodes.items():
            setattr(owner, name, self.seeded(node, name))

    def modules(
        self, nodes: Mapping[str, Any], required: Mapping[str, type], prepare: Callable[[dict[str, nn.Module]], None]
    ) -> nn.ModuleDict:
        """Build the networks.

        Parameters
        ----------
        required
            The class that each named module must have.
        prepare
            Called with the built modules by name; it may check and change them.

        Raises
        ------
        ConfigError
            Lists the objects that are not modules or do not have the required class.
        """
        modules = {name: self.seeded(node, f"module.{name}") for name, node in nodes.items()}
        problems = [
            f"module.{name}: a {type(module).__name__}, not a torch.nn.Module."
            for name, module in modules.items()
            if not isinstance(module, nn.Module)
        ]
        problems += [
            f"module.{name}: the trainer needs a {kind.__name__}, not a {type(modules[name]).__name__}."
            for name, kind in required.items()
            if isinstance(modules[name], nn.Module) and not isinstance(modules[name], kind)
        ]
        if problems:
            raise ConfigError(problems)
        prepare(modules)
        return nn.ModuleDict(
            {name: self._ranks.synchronize_statistics(module, self._device) for name, module in modules.items()}
        )

    def data(self, nodes: Any) -> dict[str, Any]:
        """Build the loaders, and bind them to the run. Names with a leading underscore are plain values."""
        data: dict[str, Any] = build(nodes, "data")
        bound = {id(loader) for loader in self.loaders.values()}
        for name in data_sets(data):
            source = data[name]
            # A loader is bound to one name. If a second name has the same one, it gets a copy.
            data[name] = as_loader(copy.copy(source) if id(source) in bound else source, name)
            bound.add(id(source))
        for name in data_sets(data):
            loader = data[name]
            loader.bind(self._seed, name, self._ranks.rank, self._ranks.size, is_even=name == "train")
            if isinstance(loader, Loader):
                loader.others = [
                    other for other in data_sets(data) if other != name and _share_files(loader, data[other])
                ]
                loader.leave_out(self._ranks.from_main(loader.find_unreadable))
                loader.prepare(self._device)
        self.loaders.update((name, data[name]) for name in data_sets(data))
        check_same_data({name: data[name] for name in data_sets(data)}, self._ranks.peers)
        for sentence in other_classes(self.loaders.get("train"), {name: data[name] for name in data_sets(data)}):
            log.warning("%s", sentence)
        return data

    def after_hook(self, data: dict[str, Any], optim: Any, logger: Any) -> None:
        """Build or check what `_instanciate` has put into `data`, `optim` and `logger`.

        Raises
        ------
        ConfigError
            It has put a training set into `data`, or something into `optim` that a run can't use.
        """
        late = {name: data[name] for name in data_sets(data) if data[name] is not self.loaders.get(name)}
        if "train" in late:
            raise ConfigError(
                "data.train: _instanciate() put this training set there, but the run's number of steps was known "
                "before. Configure it in data."
            )
        data.update(self.data(late))
        for kind in ("metric", "monitor"):
            logger[kind] = _of_sets(logger[kind], kind, data_sets(data, but="train" if kind == "metric" else ""))
        self.watched(logger, data)
        if self._made:
            check_replaced(optim, *self._made)
            self._ranks.sharding.check_optimizer(optim["optimizer"])

    def first_values(
        self, trained: nn.Module, modules: Mapping[str, nn.Module], sources: Mapping[str, Any], hook: Callable[[], None]
    ) -> None:
        """Give a new run its first values: load the weights that `module_init` names, then run the hook.

        Parameters
        ----------
        trained, modules
            All modules in one, and the user's by name.
        sources
            `module_init`.
        hook
            `initialize_modules`.

        Raises
        ------
        ConfigError
            The hook made or removed parameters or buffers, which a resumed run, that does not call it, would lack.
        """
        for name, source in sources.items():
            load_weights(source, modules[name], name)
        before = trained.state_dict().keys()
        hook()
        if changed := before ^ trained.state_dict().keys():
            names = ", ".join(sorted(changed))
            raise ConfigError(
                f"initialize_modules() made or removed {names}, but a resumed run does not call it. {MAKE_IT_EARLIER}"
            )

    def settle(
        self,
        trained: nn.Module,
        modules: Mapping[str, nn.Module],
        optimized: Mapping[str, nn.Module],
        compile_mode: bool | str,
    ) -> None:
        """Give all processes the values of rank 0; then shard the modules, if the strategy says so, and compile them.

        Both happen in place, so a module stays the user's object, and its parameters keep their names.

        Parameters
        ----------
        trained
            Holds all parameters and buffers.
        modules
            The modules to compile, by name.
        optimized
            The modules to shard, by name, and the loss, which stays whole. None if the run does not train.
        compile_mode
            `hardware.compile`: false, true, or a mode of `torch.compile`.
        """
        self._ranks.copy_from_main([*trained.parameters(), *trained.buffers()])
        self._ranks.sharding.shard({name: module for name, module in optimized.items() if name in modules})
        if compile_mode:
            for module in modules.values():
                module.compile(mode=compile_mode if isinstance(compile_mode, str) else None)

    def watched(self, logger: Any, data: Mapping[str, Any]) -> None:
        """Build the metrics, on the device, and the monitors of the sets in `data`, in the run's `LoggerConfig`.

        Those of other sets are left as they are, because `_instanciate` may put these sets into `data`.
        """
        metrics = {name: {} for name in data_sets(data, but="train")} | logger["metric"]
        logger["metric"] = {
            name: self._metrics(named, name) if name in data else named for name, named in metrics.items()
        }
        logger["monitor"] = {
            name: build(named, f"logger.monitor.{name}") if name in data else named
            for name, named in logger["monitor"].items()
        }

    def _metrics(self, nodes: Any, set_name: str) -> dict[str, Any]:
        path = f"logger.metric.{set_name}"
        metrics = by_name(build(nodes, path))
        check_metrics(metrics, path, self._ranks.size)
        return {key: m.to(self._device) if hasattr(m, "to") else m for key, m in metrics.items()}

    def optimization(
        self, optim: Any, modules: Mapping[str, nn.Module], loader: Any, schedule_begin: Callable[[Any, Any], float]
    ) -> None:
        """Build optimizer and schedule into the run's `OptimConfig`, for the parameters of `modules`.

        Parameters
        ----------
        loader
            The training set's.
        schedule_begin
            Returns the number of epochs before the schedule begins. It gets the `OptimConfig`, which has the number of
            mini-batches by then, and the loader.
        """
        batch_size = getattr(loader, "batch_size", None)
        optim["num_batches"] = self.count_batches(loader, optim["max_steps"])
        begin = schedule_begin(optim, loader)
        build_optimization(optim, modules, batch_size and batch_size * self._ranks.size, begin)
        self._ranks.sharding.check_optimizer(optim["optimizer"])
        if self._ranks.size > 1:
            check_dense(modules)
        self._made = optim["optimizer"], optim["scheduler"]

    def count_batches(self, loader: Any, limit: int | float) -> int:
        """Return the number of mini-batches per epoch; for a stream without a length, its largest number.

        Parameters
        ----------
        limit
            `optim.max_steps`.

        Raises
        ------
        ConfigError
            The loader has no batch, or neither it nor `limit` tells how many there are.
        """
        available = length_of(loader)
        if available is None:
            if not isinstance(limit, int) or limit < 0:
                raise ConfigError(
                    "data.train has no length: set optim.max_steps to the mini-batches that make an epoch."
                )
            return limit
        available = self._ranks.smallest(available)
        if available == 0:
            raise ConfigError(
                "data.train has no batches. If it has fewer samples than data.train.batch_size, give a smaller one."
            )
        if isinstance(limit, float):
            return max(1, int(limit * available))
        return available if limit < 0 else min(limit, available)


def _of_sets(nodes: Mapping[str, Any], kind: str, sets: Iterable[str]) -> dict[str, Any]:
    """Return the metrics or monitors of sets that there are, and warn of those of other sets.

    Parameters
    ----------
    nodes
        `logger.metric` or `logger.monitor`: `{set: {name: node}}`.
    kind
        "metric" or "monitor".
    sets
        The sets in `data`.
    """
    for name in nodes.keys() - sets:
        log.warning(
            "logger.%s.%s: there is no such set in data, so it has no effect.%s", kind, name, nearest(name, sets)
        )
    return {name: node for name, node in nodes.items() if name in sets}


def _share_files(one: Loader, other: Any) -> bool:
    """Return whether another loader ends the run too if a file of the first one can't be read."""
    place = place_of(one.dataset)
    is_strict = isinstance(other, Loader) and other.unreadable == "raise"
    return is_strict and place is not None and place == place_of(other.dataset)


def other_classes(train: Any, loaders: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each evaluation set that numbers its classes otherwise than the training set does."""
    known: list[Any] = [getattr(getattr(one, "dataset", None), "classes", None) for one in (train, *loaders.values())]
    trained, *others = known
    found = []
    for name, classes in zip(loaders, others, strict=True) if trained else ():
        if classes and list(classes) != list(trained):
            odd = sorted({str(one) for one in classes} ^ {str(one) for one in trained})[:5]
            found.append(
                f"data.{name}: its classes are not those of data.train, so a label means another class there. They "
                f"differ in {odd or 'their order'}."
            )
    return found


def data_sets(data: Mapping[str, Any], but: str = "") -> list[str]:
    """Return the names in `data` that are data sets, without the name `but`."""
    return [name for name in data if not name.startswith("_") and name != but]
