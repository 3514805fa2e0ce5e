"""Where weights come from: a run's folder, a file, or a network of timm."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..exceptions import CheckpointError, ConfigError, nearest
from ..runtime.checkpoint import CheckpointStore, read_checkpoint
from ..runtime.folder import read_config
from ..runtime.runs_of_2025 import run_of_2025
from ..runtime.seeding import preserved_generators
from .files import newest_weights, read_header, read_weights

_NO_SOURCES = {"true", "false", "yes", "no", "on", "off", "none", "null", ""}
_OF_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
KINDS = "a run's folder, a file of safetensors or torch.save, a folder of Hugging Face, or timm/NAME"


@dataclass(frozen=True)
class Source:
    """A place of weights, and how to load them.

    Parameters
    ----------
    place
        A path, or `timm/NAME`.
    strict
        Whether it is an error if the source has only a part of a network's weights, or other weights beside them.
    prefix
        Where the weights are in the source: the beginning of their keys. None: it is found.
    """

    place: str
    strict: bool = True
    prefix: str | None = None


def parse_source(value: Any, key: str) -> Source:
    """Return a source from a configuration: a text, a path, or a dict of the fields of `Source`.

    Parameters
    ----------
    value
        The source. In a dict, `source` is its place.
    key
        Its key in the configuration, for error messages.

    Raises
    ------
    ConfigError
        It is anything else.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, Mapping):
        return _from_dict(dict(value), key)
    if isinstance(value, str) and value.strip().lower() in _NO_SOURCES:
        advice = "Leave the key out for none." if not value.strip() or value.strip().lower()[0] in "nf" else ""
        raise ConfigError(
            f"{key}: {value!r} is a text, and a text names a source: {KINDS}. For the weights that timm has of its "
            f"network, write true without quotation marks. {advice}".rstrip()
        )
    if isinstance(value, str | os.PathLike):
        return Source(os.fspath(value))
    raise ConfigError(f"{key}: {value!r} is no source of weights. Sources are {KINDS}.")


def _from_dict(fields: dict[str, Any], key: str) -> Source:
    known = ("source", "strict", "prefix")
    if "source" not in fields or not fields.keys() <= set(known):
        hint = "".join(nearest(name, known) for name in fields.keys() - set(known))
        raise ConfigError(f"{key}: its keys are {[*fields]}, but must be source, and maybe strict and prefix.{hint}")
    strict, prefix = fields.get("strict", True), fields.get("prefix")
    if not isinstance(strict, bool) or not isinstance(prefix, str | None):
        raise ConfigError(f"{key}: strict must be true or false, and prefix a text, not {strict!r} and {prefix!r}.")
    return Source(parse_source(fields["source"], f"{key}.source").place, strict, prefix)


def read_source(source: Source) -> tuple[str, dict[str, Tensor], bool]:
    """Return the name of what was read, its tensors by key, and whether a run of this library wrote it.

    Of a run's folder, it is the newest file of weights, or the newest valid checkpoint if that is of a later step.

    Raises
    ------
    CheckpointError
        There is nothing there, or it can't be read.
    """
    path = Path(source.place).expanduser()
    if source.place.startswith("timm/") and not path.exists():
        return source.place, _of_timm(source.place), False
    if path.is_file():
        tensors = read_weights(path)
        return str(path), tensors, path.suffix == ".safetensors" and bool(read_header(path))
    if (path / "meta.json").is_file():
        return str(path), _tensors_of(read_checkpoint(path, ["modules"])[0]), True
    weights, step = newest_weights(path)
    if found := _checkpoint_after(step, path / "checkpoints"):
        return str(found[0]), _tensors_of(found[1]), True
    if weights is not None:
        return str(weights), read_weights(weights), True
    if file := next((path / name for name in _OF_HUGGING_FACE if (path / name).is_file()), None):
        return str(file), read_weights(file), False
    if old := run_of_2025(path):
        raise CheckpointError(old)
    what = "has no weights, and no checkpoint either" if path.is_dir() else "is not there"
    raise CheckpointError(f"'{source.place}' {what}. Sources of weights are {KINDS}.")


def _checkpoint_after(step: int, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder and the state of the newest valid checkpoint; None if none is of a later step than a given one.

    If all are damaged, that is an error only if the step is -1, since there are no weights then.
    """
    store = CheckpointStore(folder)
    newest = store.newest_step()
    if newest is None or newest <= step:
        return None
    try:
        found = store.load_newest(is_owner=False, sections=["progress", "modules"])
    except CheckpointError as error:
        if step < 0:  # there are no weights either
            raise
        logging.getLogger("stable_ssl").warning("%s The weights of step %d are taken instead.", error, step)
        return None
    return found[:2] if found and found[1]["progress"]["global_step"] > step else None


def how_to_make(place: str, name: str) -> str:
    """Return a sentence with the lines that make a network of a run with its weights; "" if no file describes it.

    Parameters
    ----------
    place
        The run's folder, one of its files of weights, or the folder of one of its checkpoints.
    name
        The module that is looked for. If the run has none of this name, all of its modules are described.
    """
    path = Path(place).expanduser()
    try:
        config: Any = read_config(path.parent.parent if path.is_file() or (path / "meta.json").is_file() else path)
        nodes = config["trainer"]["module"].items()
    except Exception:  # there is none, or it is damaged, of which a resume tells
        return ""
    modules = {key: node for key, node in nodes if isinstance(node, dict)}
    modules = {name: modules[name]} if name in modules else modules
    calls = dict.fromkeys(_as_line(node, place) for node in _calls_of_load_backbone(modules))
    lines = [*calls, *(f"stable_ssl.load({place!r})[{key!r}]" for key in modules)]
    return f" What fits this run: {', or '.join(lines)}." if lines else ""


def _calls_of_load_backbone(node: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes of `load_backbone` in a configuration."""
    if isinstance(node, Mapping):
        if str(node.get("_target_", "")).endswith(".load_backbone"):
            yield node
        for value in node.values():
            yield from _calls_of_load_backbone(value)


def _as_line(node: Mapping[str, Any], place: str) -> str:
    """Return the call of a node of `load_backbone`, with a run's weights."""
    left_out = ("_target_", "name", "weights", "return_feature_dim")
    arguments = {key: value for key, value in node.items() if key not in left_out and value is not None}
    given = "".join(f", {key}={value!r}" for key, value in {**arguments, "weights": place}.items())
    return f"load_backbone({node.get('name')!r}{given})"


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of all modules in a checkpoint's state, by the keys that files of weights have."""
    return {key.removeprefix("module."): value for key, value in state["modules"].items() if isinstance(value, Tensor)}


def _of_timm(place: str) -> dict[str, Tensor]:
    """Return the weights that timm has of a network; they are downloaded if they are not on this machine."""
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(f"'{place}' needs `pip install 'stable-ssl[timm]'`.") from error
    name = place.removeprefix("timm/")
    known = timm.list_pretrained()
    if name not in known and not timm.is_model_pretrained(name):
        raise CheckpointError(f"timm has no weights '{name}'.{nearest(name, known)}")
    with preserved_generators():
        try:
            return dict(timm.create_model(name, pretrained=True).state_dict())
        except Exception as error:  # whatever the network and the libraries on the way to it raise
            raise CheckpointError(f"timm can't get the weights '{name}': {type(error).__name__}: {error}") from error
