"""What Python users call first."""

from __future__ import annotations

import logging
import shlex
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import BaseTrainer
from .compose import compose, find, importable, origin_of
from .exceptions import CheckpointError, ConfigError, nearest
from .instantiate import instanciate_config
from .nodes import build, live_paths, locate, plain
from .pretraining.request import parse
from .pretraining.results import backbone_of, read_results, view_of
from .pretraining.running import carry_out
from .rehearsal.cards import card_named
from .rehearsal.check import check_first, rehearse
from .rehearsal.report import Report
from .rehearsal.stage import config_of, maker_like
from .resolvers import stand_ins
from .runtime.checkpoint import CheckpointStore, read_checkpoint
from .runtime.runs_of_2025 import run_of_2025
from .runtime.seeding import Stream, preserved_generators, seed_generators
from .weights.files import load_strictly, newest_weights, read_weights
from .weights.runs import read_run

log = logging.getLogger("stable_ssl")


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` returns.

    Attributes
    ----------
    backbone
        The network, on the CPU and in evaluation mode: images in, representations (batch, dim) out.
    view
        Makes of an image, such as a PIL image, what the backbone gets. A grey or RGB PIL image gets the channels of the
        training images.
    folder
        The run's folder.
    results
        The first and the last value of each metric, by name, such as "train/loss".
    """

    backbone: nn.Module
    view: Any
    folder: Path
    results: dict[str, tuple[float, float]]


def pretrain(
    folder: str | Path,
    overrides: Iterable[str] = (),
    *,
    method: str | None = None,
    backbone: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    labels: str | Path | None = None,
    out: str | Path | None = None,
    check: bool = True,
) -> Pretrained:
    """Pretrain a backbone on a folder of images without labels. `stable-ssl pretrain` does the same.

    The same call goes on with a run that was interrupted. If the run is finished, it returns its backbone at once.

    Parameters
    ----------
    folder
        The images, in the folder or below it. If there are the sub-folders `train` and `val` (or `test`), it trains on
        the first.
    overrides
        Changes of settings, as on the command line, such as "views=writing".
    method
        A method that `stable-ssl recipes` lists. None: SimCLR.
    backbone
        A backbone that it lists, or `timm/NAME`. None: a narrow ResNet of nine layers; of MAE and I-JEPA a small ViT.
    size
        Height and width of the views. None: the largest of 32, 64, 96, 128 and 224 pixels that is not above the median
        shorter side of the images.
    epochs
        None: 100, or down to 20 if the images are many or large.
    minutes
        Instead of epochs: a few steps are timed first, and the run gets as many as fit.
    labels
        "folder": the first level's folders are classes. Or a CSV file with the columns `path` and `label`; an image
        whose label is empty is trained on only. Labels only measure, before and after training, on a fifth of the
        labelled images, which is held out. None: no labels, unless `train` and `val` have the same folders inside.
    out
        The run's folder. None: `runs/pretrain_<folder>_<hash of the arguments>`.
    check
        Look at the configuration and at the first samples before training, as the quick part of `check` does.

    Raises
    ------
    ConfigError
        The request can't be carried out. The message says why.

    Examples
    --------
    >>> pretrained = stable_ssl.pretrain("photos", minutes=10)  # doctest: +SKIP
    >>> features = pretrained.backbone(pretrained.view(image)[None])  # doctest: +SKIP
    """
    how_long = {"epochs": epochs, "minutes": minutes}
    request = parse(folder, overrides, method=method, backbone=backbone, size=size, labels=labels, out=out, **how_long)
    run = carry_out(request, lambda line: print(f"pretrain: {line}", flush=True), check_first if check else None)
    return Pretrained(backbone_of(load(run), run), view_of(run), run, read_results(run))


def check(
    source: str | Path | Mapping[str, Any] | BaseTrainer,
    overrides: Iterable[str] = (),
    *,
    device: str | None = None,
    world_size: int | None = None,
    all_data: bool = False,
) -> Report:
    """Find out what can be known about a run before it waits in a queue. `stable-ssl check` does the same.

    It needs no GPU, and downloads nothing. Two steps are taken with a small batch on the CPU, and others with the real
    batch size on tensors without values. The run's hooks are called; its folder is a temporary one.

    Parameters
    ----------
    source
        A recipe's name, a YAML file, a configuration, or a trainer that is not set up yet. The trainer is not changed.
    overrides
        Changes of settings of a recipe or file, as on the command line.
    device
        The card of the run: a name such as "h100-80gb", or its memory, such as "24gb". None: figures are given, and no
        verdict on memory.
    world_size
        Number of processes, one per card. None: as the configuration says.
    all_data
        Read all samples, instead of 100 of each set.

    Returns
    -------
    Report
        `findings`, errors and warnings; `facts`, figures by part; `status`, 2 if the run certainly fails; `show()`
        prints them.

    Examples
    --------
    >>> stable_ssl.check("simclr_cifar10", device="a100-40gb").show()  # doctest: +SKIP
    """
    card = card_named(device) if device is not None else None
    options: dict[str, Any] = {"card": card, "world_size": world_size, "all_data": all_data}
    if isinstance(source, BaseTrainer):
        with importable(Path.cwd()):
            return rehearse(config_of(source), maker_like(source), **options)
    told: list[str] = []
    try:
        if not isinstance(source, str | Path):
            folders, config = [], plain(source)
        else:
            place, name = find(str(source))
            folders = [place, *origin_of(place, name)[1]]
            with importable(*folders, Path.cwd()), stand_ins() as told:
                config = compose(str(source), overrides)
    except ConfigError as error:
        report = Report()
        report.refuse("configuration", error)
        return report
    with importable(*folders, Path.cwd()):
        report = rehearse(config, **options)
    report.complete("configuration", told)
    return report


def branch(
    run: str | Path,
    overrides: Iterable[str] = (),
    *,
    step: int | None = None,
    out: str | Path | None = None,
    restart_schedule: bool = False,
) -> Any:
    """Train a new run that begins from a checkpoint of another one, with changes. Return its trainer.

    Parameters
    ----------
    run
        The other run's folder, which is only read.
    overrides
        The changes, as on the command line.
    step
        The global step of the checkpoint. None: the newest valid one.
    out
        The new run's folder. If this branch has begun there already, it goes on. None: a new folder in `runs/`. This
        and all other relative paths begin in the present working folder.
    restart_schedule
        The schedule begins anew, and lasts for the epochs that are left.

    Raises
    ------
    ConfigError
        There is no such run or checkpoint, an override can't be used, or `out` holds another run.

    Examples
    --------
    >>> stable_ssl.branch("runs/simclr", ["optim.optimizer.lr=0.01"], out="runs/smaller_rate")  # doctest: +SKIP
    """
    with importable(*origin_of(Path(run).expanduser(), "config")[1], Path.cwd()):
        trainer = instanciate_config(branch_config(run, overrides, step, out, restart_schedule))
        trainer()
    return trainer


def branch_config(
    run: str | Path, overrides: Iterable[str], step: int | None, out: str | Path | None, restart_schedule: bool
) -> dict[str, Any]:
    """Return the configuration of a branch. The parameters are those of `branch`."""
    folder = Path(run).expanduser().absolute()
    if not (folder / "config.yaml").is_file():
        again = f" `stable-ssl resume {shlex.quote(str(run))}` goes on with the run, and writes the file again."
        hint = again if any(folder.glob("checkpoints/step_*")) else ""
        empty = f"'{run}' holds no run: it has no config.yaml.{hint}"
        raise ConfigError(f"branch: {run_of_2025(folder) or empty}")
    config = compose(str(folder / "config.yaml"), overrides)
    trainer = config["trainer"]
    if live := live_paths(trainer):
        raise ConfigError(
            f"A Python script started the run in '{run}' with live objects, which no file describes: {', '.join(live)}."
            f" Run that script again with its changes, branch_from='{folder}' and another logger.dump_path."
        )
    trainer["branch_from"] = {"run": str(folder), "step": step, "restart_schedule": restart_schedule}
    if out is not None:
        trainer["logger"] = {**(trainer.get("logger") or {}), "dump_path": str(out)}
    return config


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
    found = read_run(run)
    source, values, buffers = _values_of(Path(run).expanduser())
    folders = [*found.import_from, Path.cwd()]
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with preserved_generators(), torch.random.fork_rng(cuda), torch.device("cpu"), importable(*folders):
        modules = nn.ModuleDict(_modules_of(found.trainer, module or {}, values, run)).cpu().eval()
    # Files of weights lack what modules save beside their tensors.
    others = {key: value for key, value in modules.state_dict().items() if key.endswith("_extra_state")}
    load_strictly(modules, {**others, **values}, f"'{source}' does not fit the modules")
    own = dict(modules.named_buffers())
    with torch.no_grad():
        for name in own.keys() & buffers.keys():
            own[name].copy_(buffers[name])
    return modules


def _values_of(path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Return the file or folder that has the newest values, the modules' state, and the buffers that it leaves out."""
    if path.is_file():
        return path, read_weights(path), {}
    if (path / "meta.json").is_file():
        return _of_modules(path, read_checkpoint(path)[0])
    store = CheckpointStore(path / "checkpoints")
    weights, step = newest_weights(path)
    found = None
    if (newest := store.newest_step()) is not None and newest >= step:
        try:
            found = store.load_newest(is_owner=False)
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
) -> dict[str, nn.Module]:
    """Build the modules of a trainer's configuration as the run built them, and take those that are given."""
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
            f"describes. Make it again as the script did, and pass it: load({str(run)!r}, module={{{example}}})."
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
    return modules


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
