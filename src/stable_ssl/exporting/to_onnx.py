"""A file of ONNX, which onnxruntime and other runtimes run without torch."""

from __future__ import annotations

from pathlib import Path

import torch

from ..exceptions import ConfigError
from .backbone import Backbone
from .writing import Lines

LIBRARIES = {"onnxruntime"}
FILE, OPSET = "model.onnx", 18
_LARGE = 1_500_000_000  # bytes: a file of ONNX holds at most two gigabytes


def write(backbone: Backbone, folder: Path) -> Lines:
    """Write the network for batches of any size, and return the lines of Python that run it.

    Raises
    ------
    ConfigError
        The packages that write the format are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("export: onnx needs `pip install 'stable-ssl[onnx]'`.") from error
    images = backbone.images
    size = sum(value.numel() * value.element_size() for value in backbone.network.state_dict().values())
    try:
        torch.onnx.export(
            backbone.network,
            (torch.randn(2, images.channels, *images.size),),
            folder / FILE,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["representation"],
            opset_version=OPSET,
            external_data=size > _LARGE,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        why = str(error).strip().partition("\n")[0]
        raise ConfigError(f"export: torch can't write this {backbone.kind} as ONNX: {why}") from error
    return lambda place: [
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession({str(place / FILE)!r})",
        '(features,) = session.run(["representation"], {"images": images.numpy()})',
    ]
