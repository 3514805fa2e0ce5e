"""Data sets of the Hugging Face hub, or saved from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..exceptions import ConfigError
from .datasets import to_float_tensor


class HuggingFaceDataset(Dataset):
    """A data set that `datasets.load_dataset` knows, or a folder that `save_to_disk` wrote.

    With `x` and `y`, samples are tuples (transform(x), y). Without, they are dicts of the columns.

    Parameters
    ----------
    path
        Name on the hub, a builder ("parquet", "imagefolder") or a folder.
    *args, **kwargs
        For `load_dataset`: `name`, `split`, `data_files`, ….
    x, y
        Columns of image and label.
    transform
        For tuples a callable of the image; without one the image is a float tensor in [0, 1]. For dicts a callable a
        column.
    rename_columns, remove_columns
        Old name to new name; names.
    add_index
        Add the sample's index to a dict, as `index`.
    """

    def __init__(
        self,
        path: str,
        *args: Any,
        x: str | None = None,
        y: str | None = None,
        transform: Callable | Mapping[str, Callable] | None = None,
        rename_columns: Mapping[str, str] | None = None,
        remove_columns: Sequence[str] | None = None,
        add_index: bool = False,
        **kwargs: Any,
    ):
        try:
            import datasets
        except ImportError as error:
            raise ConfigError("HuggingFaceDataset needs `pip install 'stable-ssl[hf]'`.") from error
        if kwargs.pop("trust_remote_code", None) is not None:
            warnings.warn("trust_remote_code is ignored: data sets no longer run code.", stacklevel=2)
        if (x is None) != (y is None):
            raise ConfigError("x: samples are tuples where both x and y are given, dicts where neither is.")
        if (Path(path) / "dataset_info.json").exists() or (Path(path) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(path)
            loaded = (
                loaded[kwargs["split"]] if isinstance(loaded, datasets.DatasetDict) and "split" in kwargs else loaded
            )
        else:
            loaded = datasets.load_dataset(path, *args, **kwargs)
        if isinstance(loaded, dict):
            raise ConfigError(f"split: missing; '{path}' has {list(loaded)}.")
        columns = loaded.column_names
        _require(columns, [*(rename_columns or ()), *(remove_columns or ())], path)
        loaded = loaded.rename_columns(dict(rename_columns)) if rename_columns else loaded
        self.dataset = loaded.remove_columns(list(remove_columns)) if remove_columns else loaded
        _require(self.dataset.column_names, [column for column in (x, y) if column], path)
        self.x, self.y, self.add_index = x, y, add_index
        self.transform = transform if transform is not None else (to_float_tensor if x else {})
        if x is None and not isinstance(self.transform, Mapping):
            raise ConfigError("transform: dict samples need a dict of callables, one a column; or give x and y.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[int(index)]
        if self.x is not None:
            return self.transform(sample[self.x]), sample[self.y]  # type: ignore[operator]
        for name, transform in self.transform.items():  # type: ignore[union-attr]
            sample[name] = transform(sample[name])
        if self.add_index:
            sample["index"] = index
        return sample


def _require(columns: list[str], wanted: list[str], path: str) -> None:
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise ConfigError(f"'{path}' has no column {missing}; it has {columns}.")
