"""Files of weights, in the format safetensors. A header says how to build the modules again.

Files of `torch.save` are read too, those of stable-ssl of early 2025 among them.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import CheckpointError
from .files import whole_file
from .runs_of_2025 import run_of_2025

log = logging.getLogger("stable_ssl")

# The keys under which files of `torch.save` hold the weights, if they hold other things too. The first is that of
# stable-ssl of early 2025.
_CONTAINERS = ("module", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before keys


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors to a file, which appears completely or not at all.

    Parameters
    ----------
    path
        The file.
    tensors
        The tensors by key, `<module>.<parameter>`.
    header
        A dict that JSON can hold.

    Raises
    ------
    OSError
        The file could not be written, for example because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Each tensor gets memory of its own, because the format can't hold tied parameters.
    tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(path) as part:
            save_file(tensors, part, metadata={"stable_ssl": json.dumps(header)})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file that `save_weights` wrote, or an empty dict if there is no such file."""
    from safetensors import safe_open

    if not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {}).get("stable_ssl", "{}"))
    return header


def find_weights(source: str | Path) -> Path:
    """Return the path of a file of weights.

    Parameters
    ----------
    source
        The file itself, or the folder of a run: then its newest file of weights.

    Raises
    ------
    CheckpointError
        There is no such file, or the run has no weights.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    found, _ = newest_weights(path)
    if found is None and (old := run_of_2025(path)):
        raise CheckpointError(old)
    if found is None:
        raise CheckpointError(
            f"There are no weights at '{source}', which is neither a file nor the folder of a run with weights. "
            "To keep weights of a run, set logger.save_final_model or logger.checkpoint_frequency in it."
        )
    return found


def newest_weights(run: Path) -> tuple[Path | None, int]:
    """Return the newest file of weights in a run's folder, and its global step; (None, -1) if there is none."""
    found = [(_step_of(file), file.stat().st_mtime, file) for file in (run / "weights").glob("*.safetensors")]
    step, _, path = max(found, default=(-1, 0.0, None))
    return path, step


def _step_of(path: Path) -> int:
    """Return the global step of a file of weights; -1 if it does not say."""
    from safetensors import SafetensorError

    try:
        return int(read_header(path)["global_step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return -1


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by key: a safetensors file, or one of `torch.save` with a state dict in it.

    Raises
    ------
    CheckpointError
        The file can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            first = file.read(9)
        if path.suffix == ".safetensors" or first[8:] == b"{":
            return load_file(path)
        return _tensors_in(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' can't be read: it is no file of weights, or holds objects whose code would run. If you trust "
            "it, load it with torch.load(…, weights_only=False), and save the state dict of its module alone."
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' can't be read as a file of weights: {error}") from error


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what `torch.load` returned."""
    held = content
    while isinstance(held, Mapping) and (key := next((k for k in _CONTAINERS if _is_dict(held.get(k))), None)):
        held = held[key]
    tensors = {str(k): v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, Mapping) else {}
    if not tensors:
        what = f"its keys are {[*map(str, held)][:10]}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise CheckpointError(f"'{path}' holds no state dict, but {what}. Save module.state_dict() instead.")
    return tensors


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def load_weights(source: str | Path, module: nn.Module, name: str) -> None:
    """Load a module's weights from a file or a run, and log how many there are.

    Parameters
    ----------
    source
        The file, or the folder of a run, as for `find_weights`.
    module
        The module, which is changed in place.
    name
        The module's name in the file: its tensors are those whose keys begin with `<name>.`. If there are none, the
        file may hold the tensors of this module alone.

    Raises
    ------
    CheckpointError
        The file can't be read, or its tensors do not fit the module. The message names each mismatch.
    """
    path = find_weights(source)
    tensors = read_weights(path)
    own = _of_module(tensors, name)
    if not own and not module.state_dict().keys().isdisjoint(bare := _unwrapped(tensors)):
        own = bare
    if not own:
        held = sorted({key.split(".")[0] for key in tensors})
        raise CheckpointError(f"'{path}' has no weights of a module '{name}'. Its modules are {held}.")
    load_strictly(module, own, f"'{path}' does not fit module '{name}'")
    log.info("module.%s: all its %d tensors are from '%s'.", name, len(own), path)


def _of_module(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of one of several modules. In the state dict of a whole trainer, they are below `module`."""
    for prefix in (f"{name}.", f"module.{name}."):
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if own:
            return _unwrapped(own)
    return {}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what wrappers of the whole module put before each key."""
    for prefix in _WRAPPERS:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return _unwrapped({key.removeprefix(prefix): tensor for key, tensor in tensors.items()})
    return dict(tensors)


def load_strictly(module: nn.Module, state: dict, what: str) -> None:
    """Load a state dict into a module.

    Parameters
    ----------
    module
        The module, which is changed in place.
    state
        Its state dict.
    what
        The beginning of the error message.

    Raises
    ------
    CheckpointError
        The keys or shapes differ. The message names each of them.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{what}: {error}") from error
