"""From a recipe or file and overrides to a configuration, by Hydra's composition."""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .exceptions import ConfigError, nearest
from .explaining import refused
from .nodes import OF_A_RUN, argument_names
from .overrides import check_watched_sets, warn_of_no_effect
from .resolvers import register_resolvers

RECIPES = Path(__file__).parent / "recipes"


def recipe_names(group: str = "") -> list[str]:
    """Return the names of the recipes, or the options of a group of them, such as "data"."""
    return sorted(path.stem for path in (RECIPES / group).glob("*.yaml"))


def find(source: str | None, folder: str | None = None) -> tuple[Path, str]:
    """Find a recipe or a YAML file.

    Parameters
    ----------
    source
        A recipe's name, or the path of a file.
    folder
        Where the file is, if it is no recipe.

    Returns
    -------
    tuple
        The folder, and the name of the file in it without `.yaml`.

    Raises
    ------
    ConfigError
        There is no such recipe or file. The message suggests the nearest recipe.
    """
    if source is None:
        raise ConfigError("which recipe? Give a recipe's name or a YAML file; `stable-ssl recipes` lists the recipes.")
    path = Path(folder or ".").expanduser() / Path(source).expanduser()
    if folder is not None or path.suffix in (".yaml", ".yml"):
        path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
        if not path.is_file():
            raise ConfigError(f"no file '{path}'.")
        return path.parent.resolve(), path.stem
    if path.suffix == ".py":
        raise ConfigError(
            f"'{source}': a Python script, and no recipe or YAML file. Run it by `python {source}`. To check its run "
            "first, let it call stable_ssl.check(trainer).show() in the place of trainer()."
        )
    if source not in recipe_names():
        known = recipe_names()
        raise ConfigError(f"no recipe '{source}'.{nearest(source, known)} There are: {', '.join(known)}.")
    return RECIPES, source


def origin_of(folder: Path, name: str) -> tuple[Path | None, list[Path]]:
    """Return what a run's `config.yaml` remembers: its working folder, and the folders of the user's own modules.

    Folders that are gone are left out. Other configuration files remember nothing.

    Parameters
    ----------
    folder, name
        What `find` returns.
    """
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    try:
        config = OmegaConf.load(folder / f"{name}.yaml")
    except (OSError, ValueError, YAMLError):  # `compose` says what is wrong with the file
        return None, []
    if not isinstance(config, DictConfig) or "import_from" not in config:
        return None, []
    home, own = Path(config.get("working_folder", "")), [Path(str(path)) for path in config.import_from]
    return home if home.is_dir() else None, [path for path in own if path.is_dir()]


def compose(source: str, overrides: Iterable[str] = (), folder: str | None = None) -> dict[str, Any]:
    """Return the configuration of a run, `{"trainer": {...}}`, with interpolations resolved.

    Parameters
    ----------
    source, folder
        As for `find`.
    overrides
        As on the command line: key=value, +key=value or ~key; `trainer.` may be left out.

    Raises
    ------
    ConfigError
        There is no such recipe or file, an override can't be used, or they do not compose.
    """
    return compose_with_hydra(source, overrides, folder)[0]


def compose_with_hydra(source: str, overrides: Iterable[str], folder: str | None = None) -> tuple[dict[str, Any], Any]:
    """Return what `compose` returns, and Hydra's part of the configuration."""
    with composer(*find(source, folder)) as (composed, complete):
        given = list(overrides)
        config = composed(completed := complete(given))
        warn_of_no_effect(completed, config)
        run = resolved(config)
        check_watched_sets(given, run["trainer"])
        needs_hydras = config.hydra.job.chdir or "${hydra:runtime.output_dir}" in str(config.trainer)
        chosen = config.hydra.runtime.output_dir if needs_hydras else hydra_folder(config, "run.dir")
        return in_folder(run, chosen), config.hydra


_NOW = "${now:%Y-%m-%d}/${now:%H-%M-%S}"
_OF_HYDRA = {"run.dir": f"outputs/{_NOW}", "sweep.dir": f"multirun/{_NOW}", "sweep.subdir": "${hydra.job.num}"}


def hydra_folder(config: Any, key: str) -> str | None:
    """Return a folder that a file or an override sets for Hydra. None: it is as Hydra itself has it.

    Parameters
    ----------
    config
        A composed configuration, with Hydra's part.
    key
        "run.dir", "sweep.dir" or "sweep.subdir".
    """
    from omegaconf import OmegaConf

    section, name = key.split(".")
    written: Any = OmegaConf.to_container(config.hydra[section], resolve=False)
    with _known_to_hydra(copy.deepcopy(config)):
        return None if written[name] == _OF_HYDRA[key] else os.path.expanduser(str(config.hydra[section][name]))


def in_folder(config: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """Return a run's configuration with this folder, unless it names one or the trainer's class takes none."""
    trainer = config["trainer"]
    logger = trainer.get("logger") or {}
    takes_it = "logger" in trainer or "logger" in argument_names(trainer)
    if folder is None or logger.get("dump_path") is not None or not takes_it:
        return config
    return {**config, "trainer": {**trainer, "logger": {**logger, "dump_path": folder}}}


def resolved(config: Any) -> dict[str, Any]:
    """Return the trainer's part of a configuration as plain dicts and lists, with interpolations resolved.

    Of a run's own `config.yaml`, return all that `instanciate_config` got, so that it goes on with the same attributes.
    Interpolations may refer to Hydra's part of the configuration, too, as `${hydra:runtime.output_dir}`.
    """
    from omegaconf import OmegaConf, open_dict, read_write

    _with_trainer(config)
    if "hydra" in config:
        with _known_to_hydra(copy.deepcopy(config)), read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).expanduser().absolute())
    beside = [key for key in config if key not in OF_A_RUN] if "behaviour" in config else []
    with _known_to_hydra(config):
        return {
            key: OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
            if OmegaConf.is_config(config[key])
            else config[key]
            for key in ["trainer", *beside]
        }


@contextmanager
def _known_to_hydra(config: Any) -> Iterator[None]:
    """Let `${hydra:…}` refer to Hydra's part of a composed configuration, if it has one. Then it can't be changed."""
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.instance()
    kept = job.cfg
    try:
        if "hydra" in config:
            job.set_config(config)
        yield
    finally:
        job.cfg = kept


def search_path_of(folder: Path, name: str) -> str:
    """Return the override by which a file finds the recipes, after the folders that its `hydra.searchpath` names."""
    from omegaconf import OmegaConf

    file: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"), resolve=False)
    hydra = file.get("hydra") if isinstance(file, dict) else None
    own = (hydra.get("searchpath") if isinstance(hydra, dict) else None) or []
    places = ",".join(f"'{place}'" for place in [*own, "pkg://stable_ssl.recipes"])
    return f"hydra.searchpath=[{places}]"


@contextmanager
def composer(folder: Path, name: str, is_sweep: bool = False) -> Iterator[tuple[Any, Any]]:
    """Prepare to compose the configurations of a folder.

    Parameters
    ----------
    folder, name
        The folder, and the name of the file in it without `.yaml`.
    is_sweep
        Overrides may list several values, as in key=1,2.

    Yields
    ------
    composed, complete
        A function that composes the configuration under overrides, Hydra's part included, and one that checks and
        completes overrides first.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    register_resolvers()
    try:
        with hydra.initialize_config_dir(str(folder), job_name=name, version_base="1.2"):
            search_path = [search_path_of(folder, name)]

            def composed(overrides: list[str]) -> Any:
                return hydra.compose(name, overrides=[*overrides, *search_path], return_hydra_config=True)

            @functools.cache
            def described(*choices: str) -> Any:
                config: Any = OmegaConf.to_container(_with_trainer(composed([*choices])), resolve=False)
                groups = {group for group in config["hydra"]["runtime"]["choices"] if not group.startswith("hydra/")}
                del config["hydra"]
                return config, groups

            plain, groups = described()
            _check_places(plain)
            if not groups:  # no recipe is used, so a key of the file may have the name of one of their groups
                search_path.clear()

            def complete(overrides: Iterable[str]) -> list[str]:
                parts = [part for text in overrides for part in _split_timm(text)]
                parsed = {text: check_override(text, is_sweep) for text in parts}
                choices = [t for t, one in parsed.items() if one.key_or_group in groups and not one.is_sweep_override()]
                # An option brings keys of its own, which other overrides may set.
                return [complete_override(text, *described(*choices)) for text in parts]

            yield composed, complete
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise refused(error, None if folder == RECIPES else name, recipe_names()) from error


def _split_timm(override: str) -> list[str]:
    """Return `backbone=timm/NAME` as the overrides that choose timm, and the network."""
    key, _, value = override.partition("=")
    return [f"{key}=timm", f"{key}.name={value}"] if key == "backbone" and value.startswith("timm/") else [override]


def is_hydras(override: str) -> bool:
    """Return whether an override is a setting of Hydra and not of the run."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def check_override(text: str, is_sweep: bool) -> Any:
    """Return an override as Hydra reads it.

    Raises
    ------
    ConfigError
        It can't be read, or has several values outside of a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if not key.strip("+~ "):
        raise ConfigError(f"'{text}': this override names no key; write key=value.")
    if not equals and not text.startswith("~"):
        raise ConfigError(f"'{text}': this override has no value; write {key}=value.")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        remedy = f"If it is a text with special characters, quote it twice: \"{key}='{value}'\"."
        if value.lstrip().startswith(("{", "[")):
            remedy = "Write it in a YAML file if it has special characters, such as '*'."
        raise ConfigError(f"'{text}': the value of this override can't be read. {remedy}") from error
    if override.is_sweep_override() and not is_sweep:
        raise ConfigError(f"'{text}': this override has several values, which need --multirun; a list needs brackets.")
    return override


def complete_override(text: str, config: Any, groups: set[str]) -> str:
    """Put `trainer.` before an override that leaves it out, and let it set keys that are not there yet.

    If a key on the way refers to another one, as in `backbone: ${backbone}`, the override is applied to the other one.
    Unknown keys are refused later, when the trainer is made.

    Parameters
    ----------
    text
        The override.
    config
        The composed configuration as plain dicts and lists, with interpolations unresolved.
    groups
        Names of the config groups that the configuration chooses from, and an override may, too.
    """
    match = re.fullmatch(r"(\+\+|\+|~)?([^=]+)(=.*)?", text, re.DOTALL)
    if match is None:
        return text
    prefix, key, value = match[1] or "", match[2], match[3] or ""
    first = re.split(r"[./@]", key)[0]
    if first == "hydra" or key.split("@")[0] in groups:  # a group's name has slashes, never dots
        return text
    if first not in config and "trainer" in config:
        if not prefix and first == key:
            _check_new_key(text, key, config, groups)
        key = f"trainer.{key}"
    if not prefix and "." in key:
        prefix = "++"
    return f"{prefix}{_followed(key, config)}{value}"


def _check_new_key(text: str, key: str, config: Any, groups: set[str]) -> None:
    """Refuse an override of a key that is not there, if it is surely a mistake.

    Raises
    ------
    ConfigError
        The key is nearly one that stands beside `trainer`, or a group; or the configuration is a run's own, in which
        the keys of recipes are resolved.
    """
    trainer = config["trainer"]
    if key in trainer or key in argument_names(trainer):
        return
    if hint := nearest(key, [*config, *groups], cutoff=0.75):
        raise ConfigError(f"'{text}': there is no key '{key}'.{hint} For an attribute of the trainer, write +{text}.")
    if "behaviour" in config:
        raise ConfigError(
            f"'{text}': this run has no key '{key}'. A run's own configuration holds what the keys of its recipe stood "
            f"for, such as data.train.dataset.root. For an attribute of the trainer, write +{text}."
        )


def _followed(key: str, config: Any) -> str:
    """Return the key that is set in place of one on whose way a key refers to another."""
    node, parts = config, key.split(".")
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.get(part) if isinstance(node, dict) else None
        other = re.fullmatch(r"\$\{(\w[\w.]*)\}", node) if isinstance(node, str) else None
        if other:
            return _followed(".".join([other[1], *parts[depth:]]), config)
        if isinstance(node, list):
            raise ConfigError(
                f"{key}: {'.'.join(parts[:depth])} is a list, and items of a list can't be set one by one; set all of "
                f"it, as in {'.'.join(parts[:depth])}=[…], or in a file."
            )
    return key


def _with_trainer(config: Any) -> Any:
    from omegaconf import DictConfig

    if "trainer" not in config:
        raise ConfigError(
            f"The configuration has no key 'trainer', under which all else stands; it has "
            f"{[key for key in config if key != 'hydra'] or 'nothing'}."
        )
    if not isinstance(config.trainer, DictConfig):
        raise ConfigError(f"trainer: {config.trainer!r} is not a dict of settings.")
    return config


def _check_places(config: dict[Any, Any]) -> None:
    """Refuse sections that stand beside `trainer` instead of below it, unless an interpolation refers to them."""
    misplaced = [
        f"{name}: stands beside 'trainer', where nothing looks at it; put it below, as trainer.{name}."
        for name in ("data", "module", "hardware", "optim", "logger", "loss")
        if name in config and f"${{{name}" not in str(config)
    ]
    if misplaced:
        raise ConfigError(misplaced)


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Make the modules in these folders importable, so that a `_target_` may name them. The first ones win."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
