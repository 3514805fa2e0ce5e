"""Files of weights, in the format safetensors. A header says how to build the modules again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..exceptions import CheckpointError
from .files import whole_file


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
    """Return the path of a safetensors file.

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
    """Return the tensors of a safetensors file by key.

    Raises
    ------
    CheckpointError
        The file can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' can't be read as safetensors: {error}") from error


def load_weights(source: str | Path, module: nn.Module, name: str) -> None:
    """Load a module's weights from a file or a run.

    Parameters
    ----------
    source
        The file, or the folder of a run, as for `find_weights`.
    module
        The module, which is changed in place.
    name
        The module's name in the file: its tensors are those whose keys begin with `<name>.`.

    Raises
    ------
    CheckpointError
        The file can't be read, or its tensors do not fit the module. The message names each mismatch.
    """
    path = find_weights(source)
    tensors = read_weights(path)
    prefix = f"{name}."
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if not own:
        held = sorted({key.split(".")[0] for key in tensors})
        raise CheckpointError(f"'{path}' has no weights of a module '{name}'. Its modules are {held}.")
    load_strictly(module, own, f"'{path}' does not fit module '{name}'")


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
