"""Reading a run back: its modules with the newest values on disk, and the trainer that says how they are used."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import BaseTrainer
from .compose import importable
from .exceptions import CheckpointError, ConfigError, nearest
from .instantiate import instanciate_config
from .nodes import build, live_paths, locate
from .runtime.checkpoint import CheckpointStore, read_checkpoint
from .runtime.seeding import Stream, preserved_generators, seed_generators
from .weights.files import load_strictly, newest_weights, read_weights
from .weights.runs import read_run

_SECTIONS = ("progress", "modules", "buffers")  # of a checkpoint's state


@dataclass(frozen=True)
class LoadedRun:
    """The modules of a run, and what its folder says of them.

    Attributes
    ----------
    folder
        The run's folder.
    config
        The content of its `config.yaml`.
    modules
        All modules by name, on the CPU and in evaluation mode.
    trainer
        A trainer of the run's class that has these modules and no data, for its `forward`. None if no file describes
        its class.
    source
        The file of weights, or the folder of the checkpoint, that the values are from.
    """

    folder: Path
    config: Mapping[str, Any]
    modules: nn.ModuleDict
    trainer: BaseTrainer | None
    source: Path


def load(run: str | Path, module: Mapping[str, Any] | None = None) -> nn.ModuleDict:
    """Return all modules of a run, by name, for analysis: on the CPU and in evaluation mode.

    They have the newest values that are on disk, in `weights/` or `checkpoints/`. Nothing is locked or written, so
    the run may be going on.

    Parameters
    ----------
    run
        The run's folder, one of its files of weights, or the folder of one of its checkpoints.
    module
        Modules by name, to use instead of those that the run's configuration describes. Needed if a script gave the run
        live modules, which no file describes. They get the values of the run.

    Raises
    ------
    CheckpointError
        The folder holds no run, or no values yet, or they do not fit the modules.
    ConfigError
        The configuration does not describe a module, or it can't be built.

    Examples
    --------
    >>> import tempfile
    >>> from stable_ssl.cli import main
    >>> folder = tempfile.TemporaryDirectory()
    >>> few = ["optim.epochs=1", "optim.max_steps=1", "logger.level=40", "hardware.device=cpu"]
    >>> main(["train", "supervised_digits", *few, f"logger.dump_path={folder.name}"])
    0
    >>> sorted(load(folder.name))
    ['backbone']
    """
    return load_run(run, module).modules


def load_run(run: str | Path, module: Mapping[str, Any] | None = None) -> LoadedRun:
    """Return a run's modules as `load` does, with its parameters and errors, and the trainer that uses them."""
    found = read_run(run)
    source, values, buffers = _values_of(Path(run).expanduser())
    folders = [*found.import_from, Path.cwd()]
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with preserved_generators(), torch.random.fork_rng(cuda), torch.device("cpu"), importable(*folders):
        built, trainer = _modules_of(found.trainer, module or {}, values, run)
        modules = nn.ModuleDict(built).cpu().eval()
    # Files of weights lack what modules save beside their tensors.
    others = {key: value for key, value in modules.state_dict().items() if key.endswith("_extra_state")}
    load_strictly(modules, {**others, **values}, f"'{source}' does not fit the modules")
    own = dict(modules.named_buffers())
    with torch.no_grad():
        for name in own.keys() & buffers.keys():
            own[name].copy_(buffers[name])
    if trainer is not None:
        trainer.module = vars(trainer)["module"] = modules
        trainer.eval()
    return LoadedRun(found.folder, found.config, modules, trainer, source)


def _values_of(path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Return the file or folder that has the newest values, the modules' state, and the buffers that it leaves out."""
    if path.is_file():
        return path, read_weights(path), {}
    if (path / "meta.json").is_file():
        return _of_modules(path, read_checkpoint(path, _SECTIONS)[0])
    store = CheckpointStore(path / "checkpoints")
    weights, step = newest_weights(path)
    found = None
    if (newest := store.newest_step()) is not None and newest >= step:
        try:
            found = store.load_newest(is_owner=False, sections=_SECTIONS)
        except CheckpointError:
            if weights is None:
                raise
    # Of the same step, a checkpoint holds more than weights.
    if found and found[1]["progress"]["global_step"] >= step:
        return _of_modules(*found[:2])
    if weights is None:
        raise CheckpointError(f"'{path}' has neither weights nor a checkpoint.")
    return weights, read_weights(weights), {}


def _of_modules(folder: Path, state: dict[str, Any]) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    values, buffers = (
        {key.removeprefix("module."): value for key, value in state[part].items() if key.startswith("module.")}
        for part in ("modules", "buffers")
    )
    return folder, values, buffers


def _modules_of(
    config: Mapping[str, Any], given: Mapping[str, Any], values: Mapping[str, Any], run: str | Path
) -> tuple[dict[str, nn.Module], BaseTrainer | None]:
    """Build the modules of a trainer's configuration as the run built them, and take those that are given.

    Returns
    -------
    modules
        By name.
    trainer
        A trainer of the run's class, without data; None if no file describes it.
    """
    configured = dict(config.get("module") or {})
    known = dict.fromkeys([*configured, *(key.split(".")[0] for key in values)])
    if unknown := [name for name in given if name not in known]:
        raise ConfigError([f"module.{name}: the run has no such module.{nearest(name, known)}" for name in unknown])
    trainer = _bare_trainer(config, {**configured, **given})
    nodes = {**(trainer.module if trainer else configured), **given}
    if missing := [name for name in known if name not in nodes or live_paths(nodes[name], name)]:
        example = ", ".join(f"{name!r}: ..." for name in missing)
        raise ConfigError(
            f"A Python script made {', '.join(f'module.{name}' for name in missing)} of this run, which no file "
            f"describes. Make it again as the script did, and pass it as module={{{example}}}."
        )
    modules = {}
    for name, node in nodes.items():
        # The seed of `Builder.seeded`: what is drawn here and not saved is as in the run.
        seed_generators(
            (config.get("hardware") or {}).get("seed") or 0, Stream.BUILD, zlib.crc32(f"module.{name}".encode())
        )
        modules[name] = build(node, f"module.{name}")
    if trainer:
        trainer.prepare_modules(modules)
    return modules, trainer


def _bare_trainer(config: Mapping[str, Any], nodes: Mapping[str, Any]) -> BaseTrainer | None:
    """Return a trainer of the run's class, without data, for its `prepare_modules`; None if no file describes it."""
    sections: dict[str, Any] = {"data": {"none": ()}, "module": nodes, "optim": {}, "logger": {}}
    described = {key: value for key, value in config.items() if not key.startswith("_") and not live_paths(value)}
    with suppress(ConfigError):
        cls: Any = locate(config["_target_"], "trainer")
        if cls.__init__ is BaseTrainer.__init__:
            return cls(**{"hardware": {}, **described, **sections})  # type: ignore[no-any-return]
        made = instanciate_config({"trainer": config})
        return made if isinstance(made, BaseTrainer) else None
    return None
