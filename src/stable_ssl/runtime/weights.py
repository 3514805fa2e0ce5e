"""Weights for reading: safetensors files whose header says how to rebuild the modules."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import Tensor, nn

from ..exceptions import CheckpointError


def save_weights(path: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors, keyed `<module>.<parameter>`, with a JSON-able header; the file appears whole or not at all."""
    from safetensors.torch import save_file

    # Tied parameters share storage, which the format has no way to say.
    tensors = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={"stable_ssl": json.dumps(header)})
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def find_weights(source: str | Path) -> Path:
    """Return the safetensors file that `source` means: the file itself, or the newest of a run's folder.

    Raises
    ------
    CheckpointError
        There is no such file, or the run kept no weights.
    """
    path = Path(source)
    if path.is_file():
        return path
    folder = path / "weights"
    found = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(
            f"No weights at '{source}': neither a file nor a run that kept weights. "
            "Set logger.save_final_model or logger.checkpoint_frequency in the run that should keep them."
        )
    return found[-1]


def load_weights(source: str | Path, module: nn.Module, name: str) -> None:
    """Load into `module` the tensors whose keys begin with `<name>.`.

    Raises
    ------
    CheckpointError
        The file can't be read, or its tensors do not fit; every mismatch is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = find_weights(source)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' can't be read as safetensors: {error}") from error
    prefix = f"{name}."
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if not own:
        held = sorted({key.split(".")[0] for key in tensors})
        raise CheckpointError(f"'{path}' has no weights of a module '{name}'; it holds {held}.")
    load_strictly(module, own, f"'{path}' does not fit module '{name}'")


def load_strictly(module: nn.Module, state: dict, what: str) -> None:
    """Load a state dict; a mismatch raises a CheckpointError that begins with `what` and names each key."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{what}: {error}") from error
