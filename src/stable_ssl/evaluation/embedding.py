"""Features of images in a file, with paths, labels and nearest neighbours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Images
from ..exceptions import ConfigError
from ..monitors.knn import nearest_neighbours
from ..runtime.files import printable, whole_file
from .evaluate import opened, together
from .features import FeatureStore, Say, SetFeatures
from .jobs import view_for
from .request import Request
from .sets import open_data, open_whole

KINDS = (".parquet", ".npz")
_ROWS = 4096  # that are written at a time


@dataclass(frozen=True)
class Embedded:
    """Features of images, a row per image.

    Attributes
    ----------
    columns
        "path", "split", "label" (-1 without one), "class_name", and an array (images, dim) per feature; with
        neighbours also "neighbours", their row numbers, (images, k), and "similarities", the cosine of the angle.
    """

    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["path"])

    def save(self, path: Path) -> None:
        """Write a `.parquet` or `.npz` file, which appears completely or not at all.

        Raises
        ------
        ConfigError
            The file is there already, or has another ending.
        """
        check_out(path)
        with whole_file(path) as part:
            if path.suffix == ".npz":
                with open(part, "wb") as file:
                    np.savez(file, **self.columns)  # type: ignore[arg-type]
            else:
                self._save_parquet(part)

    def _save_parquet(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        writer = None
        for at in range(0, len(self), _ROWS):
            rows = {name: _as_arrow(column[at : at + _ROWS]) for name, column in self.columns.items()}
            table = pyarrow.table(rows)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _as_arrow(column: np.ndarray) -> Any:
    import pyarrow

    if column.ndim == 1:
        return pyarrow.array(column.tolist() if column.dtype.kind == "U" else column)
    flat = pyarrow.array(np.ascontiguousarray(column).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, column.shape[1])


def check_out(path: Path) -> None:
    """Raise a ConfigError if features can't be written to a file of this name."""
    if path.suffix not in KINDS:
        raise ConfigError(f"--out: '{printable(path)}' must end in {' or '.join(KINDS)}.")
    if path.exists():
        raise ConfigError(f"--out: '{printable(path)}' is there already. Give another name, or remove it.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out: the folder of '{printable(path)}' is not there.")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "--out: Parquet needs `pip install 'stable-ssl[parquet]'`; .npz needs nothing."
            ) from error


def embed(request: Request, neighbours: int = 0, say: Say = lambda line: None) -> Embedded | None:
    """Compute features of images; None on ranks other than 0.

    Parameters
    ----------
    request
        One source, one thing in `data`, and how features are computed. The features are by default `representation`.
    neighbours
        How many nearest neighbours of each image to find among all images, by the cosine of the angle between the first
        feature.
    say
        Gets lines on what is done.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        The source or the images can't be used, or there are fewer other images than `neighbours`.
    """
    request.check()
    names = [*(request.features or ("representation",))]
    subject = opened(request.sources[0], request)
    parts = _parts(request, subject.channels)
    if not 0 <= neighbours < sum(map(len, parts.values())):
        raise ConfigError(f"--neighbours: {neighbours} is not from 0 to the number of other images.")
    with ExitStack() as stack:
        with together(request) as (ranks, how):
            store = stack.enter_context(closing(FeatureStore(how, ranks, say)))
            view = view_for(subject, is_own=False)
            found = {
                part: store.features(subject, names, dataset, view, f"{subject.name}, {part}")
                for part, dataset in parts.items()
            }
        if not ranks.is_main:
            return None
        folder = _folder_of(request.data[0])
        rows = [_rows(part, parts[part], of_part, folder) for part, of_part in found.items() if of_part is not None]
    columns = {
        name: rows[0][name] if len(rows) == 1 else np.concatenate([one[name] for one in rows]) for name in rows[0]
    }
    if neighbours:
        columns |= _neighbours(torch.from_numpy(columns[names[0]]), neighbours)
    return Embedded(columns)


def _parts(request: Request, channels: int) -> dict[str, Any]:
    """Return the sets of what is embedded: all images of a folder or file, or a training and a test set."""
    how = request.data[0], request.overrides, request.labels, channels
    if (whole := open_whole(*how)) is not None:
        return {"all": whole}
    data = open_data(*how)
    return {"train": data.train, "test": data.test}


def _folder_of(what: Any) -> str | None:
    """Return the beginning of the paths of images in the folder that a user gave; None if it is no folder."""
    path = Path(what).expanduser() if isinstance(what, str | Path) else None
    return os.path.join(path, "") if path is not None and path.is_dir() else None


def _rows(part: str, dataset: Any, found: SetFeatures, folder: str | None) -> dict[str, np.ndarray]:
    """Return the columns of one set."""
    labels, classes = found.labels.numpy(), [*(getattr(dataset, "classes", None) or [])]
    names = [str(classes[label]) if 0 <= label < len(classes) else "" for label in labels.tolist()]
    return {
        "path": np.array([printable(os.fsdecode(path).removeprefix(folder or "")) for path in _paths(dataset)]),
        "split": np.full(len(labels), part),
        "label": labels,
        "class_name": np.array(names),
        **{name: values.numpy() for name, values in found.values.items()},
    }


def _paths(dataset: Any) -> list[Any]:
    """Return the file of each image, its name in its data set's files, or its number."""
    if isinstance(dataset, Images):
        return [dataset.path_of(index) for index in range(len(dataset))]
    for name in ("files", "names", "keys"):
        found = getattr(dataset, name, None)
        if found is not None and not callable(found) and len(found) == len(dataset):
            return [*found]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and len(samples) == len(dataset):
        return [path for path, _ in samples]
    return [str(index) for index in range(len(dataset))]


def _neighbours(features: Tensor, k: int) -> dict[str, np.ndarray]:
    """Return the row numbers of the nearest other images, and their cosines, (images, k) each."""
    similarities, rows = nearest_neighbours(features, features, k + 1)
    is_other = rows != torch.arange(len(rows))[:, None]
    # An image with as many equal copies is not among its own neighbours: then the last one is dropped.
    is_other[is_other.all(1), -1] = False
    return {
        "neighbours": rows[is_other].view(-1, k).numpy(),
        "similarities": similarities[is_other].view(-1, k).numpy(),
    }
