"""Files of weights, in the format safetensors. A header says how to build the modules again.

Files of `torch.save` are read too, those of stable-ssl of early 2025 among them.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import CheckpointError
from ..runtime.files import whole_file


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


def newest_weights(run: Path) -> tuple[Path | None, int]:
    """Return the newest file of weights in a run's folder, and its global step; (None, -1) if there is none.

    The weights before training do not count: nobody who names a run means them.
    """
    files = [file for file in (run / "weights").glob("*.safetensors") if file.stem != "initial"]
    found = [(_step_of(file), file.stat().st_mtime, file) for file in files]
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
    """Return the tensors of a file by key: a safetensors file, or one of `torch.save`, whose dicts give dotted keys.

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
        # Many published files hold the arguments of the script that wrote them. Reading a Namespace runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _tensors_in(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' can't be read: it is no file of weights, or holds objects whose code would run. If you trust "
            "it, load it with torch.load(…, weights_only=False), and save the state dict of its module alone."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' can't be read as a file of weights: {error}") from error


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors in what `torch.load` returned, by dotted keys: files may hold dicts of state dicts."""
    tensors = dict(_flat(content))
    if not tensors:
        is_dict = isinstance(content, Mapping)
        what = f"its keys are {[*map(str, content)][:10]}" if is_dict else f"a {type(content).__name__}"
        raise CheckpointError(f"'{path}' holds no state dict, but {what}. Save module.state_dict() instead.")
    return tensors


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value.detach()
        else:
            yield from _flat(value, f"{prefix}{key}.")


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
