"""What all formats share: what a writer returns, and files of tensors that other libraries read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..exceptions import ConfigError
from .backbone import Backbone

# The lines of Python that load what was written, if it is in this folder. They compute `features` of `images`.
Lines = Callable[[Path], list[str]]
WEIGHTS = "model.safetensors"


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to the file of a folder that timm and transformers read."""
    from safetensors.torch import save_file

    # Each tensor gets memory of its own, because the format can't hold tied parameters.
    own = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})


def is_of(network: Any, name: str, *modules: str) -> bool:
    """Return whether a network is of a class of other libraries, of which none need be installed."""
    return any(cls.__name__ == name and cls.__module__ in modules for cls in type(network).__mro__)


def unlike(backbone: Backbone, library: str, holds: str) -> ConfigError:
    """Return the error that a library has no network like a backbone. `holds` is what its format holds."""
    return ConfigError(
        f"export: {library} has no network like this {backbone.kind}. Its format holds {holds}; onnx holds most "
        "networks."
    )
