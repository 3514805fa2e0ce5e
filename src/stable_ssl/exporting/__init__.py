"""The backbone of a run in the formats of other libraries. An export is loaded back, and compared, before it counts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exceptions import ConfigError, nearest
from ..runtime.device import describe_batch
from ..runtime.files import sync_folder
from ..runtime.seeding import preserved_generators
from .backbone import Backbone, read_backbone

FORMATS = ("torchvision", "timm", "huggingface", "onnx")
RECORD = "export.json"
TOLERANCE = 1e-5  # of the largest feature, or of 1 if that is larger


@dataclass(frozen=True)
class Exported:
    """What `export` returns.

    Attributes
    ----------
    path
        The folder.
    lines
        The lines of Python that load the network and compute `features` of `images`.
    told
        What was exported and how it was checked, in a sentence or two.
    """

    path: Path
    lines: list[str]
    told: str


def export(source: str | Path, to: str, out: str | Path | None = None, network: str | None = None) -> Exported:
    """Write the backbone of a run in the format of another library. `stable-ssl export` does the same.

    The library itself loads what was written, and the features of random images are compared with the backbone's. Only
    then does the folder get its name. If the library is not installed, `told` says that nothing was compared.

    Parameters
    ----------
    source
        The run's folder, one of its files of weights, or the folder of one of its checkpoints.
    to
        "torchvision", "timm", "huggingface" (transformers) or "onnx".
    out
        The folder to write. None: `exports/<to>` in the run's folder. An earlier export of the same source, format and
        network is replaced; anything else that is there is an error.
    network
        "teacher" or "student", or the name of one of the run's modules, such as "encoder" or "backbone.teacher". None:
        the network that the run is evaluated by.

    Raises
    ------
    ConfigError
        The format is unknown or can't hold the network, no file describes the network, or `out` holds something else.
    CheckpointError
        The source is not of a run, or has no weights.

    Examples
    --------
    >>> import tempfile
    >>> from stable_ssl.cli import main
    >>> folder = tempfile.TemporaryDirectory()
    >>> few = ["optim.epochs=1", "optim.max_steps=1", "logger.level=40", "hardware.device=cpu"]
    >>> main(["train", "mae_digits", "backbone.depth=1", *few, f"logger.dump_path={folder.name}"])
    0
    >>> exported = export(folder.name, to="timm")
    >>> sorted(path.name for path in exported.path.iterdir())
    ['README.md', 'config.json', 'export.json', 'model.safetensors']
    >>> exported.lines[-1]
    'features = model(images)'
    """
    if to not in FORMATS:
        raise ConfigError(f"export: there is no format {to!r}; there are {', '.join(FORMATS)}.{nearest(to, FORMATS)}")
    backbone = read_backbone(source, network)
    record = {"source": str(Path(source).expanduser().absolute()), "to": to, "network": backbone.found.path}
    place = Path(out).expanduser().absolute() if out else backbone.run.absolute() / "exports" / to
    writer = import_module(f".to_{to}", __name__)
    with _whole_folder(place, record) as folder, preserved_generators(), torch.no_grad():
        images, wanted = _random_pass(backbone)
        lines = writer.write(backbone, folder)
        (folder / RECORD).write_text(json.dumps({**record, "images": asdict(backbone.images)}, indent=2))
        told = _compared(lines(folder), images, wanted, writer.LIBRARIES)
    return Exported(
        place, [f"# {backbone.images.in_words}", *lines(place)], f"{backbone.found.path} of {source}, {told}"
    )


def _refuse_others(place: Path, record: dict[str, Any]) -> None:
    """Raise a ConfigError if there is something at a place that no earlier export of the same command wrote."""
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        found = dict(json.loads((place / RECORD).read_text()))
    except (OSError, TypeError, ValueError):
        found = {}
    if any(found.get(key) != value for key, value in record.items()):
        what = f"an export of {found.get('network')} of '{found.get('source')}'" if found else "something else"
        raise ConfigError(f"export: '{place}' holds {what}, which is not overwritten. Give another --out.")


@contextlib.contextmanager
def _whole_folder(place: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder for the `with` block to fill. After the block, it takes the place of `place`.

    Raises
    ------
    ConfigError
        `place` can't be written, or holds something else, be it before the block or after it.
    """
    _refuse_others(place, record)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.")
    except OSError as error:
        raise ConfigError(f"export: '{place}' can't be written: {error.strerror}. Give another --out.") from error
    with temporary as name:
        new, old = Path(name, "new"), Path(name, "old")
        new.mkdir()
        yield new
        for file in new.iterdir():
            shutil.copymode(new / RECORD, file)  # safetensors writes files that nobody else can read
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        sync_folder(new)
        _refuse_others(place, record)  # another export may have come first
        if place.exists():
            place.rename(old)
        new.rename(place)
    sync_folder(place.parent)


def _random_pass(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Return random images and their representations.

    Raises
    ------
    ConfigError
        The network can't take the images, or returns anything else than a tensor (batch, dim).
    """
    images = torch.randn(3, backbone.images.channels, *backbone.images.size)
    try:
        features = backbone.network(images)
    except Exception as error:  # whatever a network raises
        height, width = backbone.images.size
        raise ConfigError(
            f"export: module.{backbone.found.path} can't take images of {height} × {width}, the size that the run's "
            f"configuration names, or 224 × 224 if it names none: {_in_a_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.shape[:-1] != images.shape[:1]:
        raise ConfigError(
            f"export: module.{backbone.found.path} must return representations (batch, dim), and it returns "
            f"{describe_batch(features)}."
        )
    return images, features


def _compared(lines: list[str], images: Tensor, wanted: Tensor, libraries: set[str]) -> str:
    """Run the lines that load what was written, and return how its features compare with the backbone's.

    Raises
    ------
    ConfigError
        The features differ, or the library can't load what was written.
    """
    names: dict[str, Any] = {"images": images}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # of progress bars
            exec("\n".join(lines), names)
    except ModuleNotFoundError as error:
        if error.name not in libraries:
            raise
        return f"not loaded back, because {error.name} is not installed here"
    except Exception as error:  # whatever another library raises
        raise ConfigError(f"export: the format can't hold this network: {_in_a_line(error)}") from error
    features = torch.as_tensor(names["features"])
    if features.shape != wanted.shape:
        raise ConfigError(f"export: the format gives features {tuple(features.shape)}, not {tuple(wanted.shape)}.")
    difference = float((features - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    if not difference <= TOLERANCE:
        advice = "" if "onnxruntime" in libraries else "; onnx holds most networks"
        raise ConfigError(
            f"export: the format can't hold this network: its features would differ by {difference:.1g}, relative to "
            f"the largest. Nothing was written{advice}."
        )
    return f"loaded back: its features differ by at most {difference:.1g}, relative to the largest"


def _in_a_line(error: Exception) -> str:
    """Return what an error says, of several lines the first two: the first line of torch's is often a title."""
    return f"{type(error).__name__}: {' '.join(line.strip() for line in str(error).splitlines()[:2])}"
