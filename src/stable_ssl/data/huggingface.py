"""Data sets of the Hugging Face hub, or saved from it."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..exceptions import ConfigError
from .checks import is_function, require
from .datasets import to_float_tensor
from .images import ImageDecoder, check_options, find_channels


class HuggingFaceDataset(Dataset):
    """A data set that `datasets.load_dataset` knows, or a folder that `save_to_disk` wrote.

    With `x`, samples are tuples (transform(x), y). Without, they are dicts of the columns. Columns of images give PIL
    images of mode "L" or "RGB".

    Parameters
    ----------
    path
        A name on the hub, a builder such as "parquet" or "imagefolder", or a folder. Or a `datasets.Dataset` itself,
        for example one that was filtered or concatenated.
    *args, **kwargs
        For `load_dataset`: `name`, `split`, `data_files` and others.
    x, y
        Names of the columns of the image and the label. None for `y`: every label is -1. They may come after the path,
        and `transform` after them, without their names.
    transform
        For tuples, a function of the image; without it, the image is a float tensor in [0, 1]. For dicts, a function
        per column, by the column's name.
    rename_columns
        The new name of a column, by its old name.
    remove_columns
        Names of the columns to leave out, as they are after renaming.
    add_index
        Add the index of a sample to its dict, as `index`.
    levels, channels
        As for `ImageFolder`, for each column of images.

    Raises
    ------
    ConfigError
        An argument is wrong, there is no such column or split, or `datasets` is not installed.
    """

    def __init__(
        self,
        path: Any,
        *args: Any,
        x: str | None = None,
        y: str | None = None,
        transform: Callable | Mapping[str, Callable] | None = None,
        rename_columns: Mapping[str, str] | None = None,
        remove_columns: Sequence[str] | None = None,
        add_index: bool = False,
        levels: Sequence[float] | None = None,
        channels: int | None = None,
        **kwargs: Any,
    ):
        if x is None and len(args) > 1:  # as in early 2025, when x, y and transform came after the path
            x, y, *args = args  # type: ignore[assignment]
            if transform is None and args:
                transform, *args = args  # type: ignore[assignment]
        _check_arguments(path, x, y, transform, rename_columns, remove_columns, add_index)
        require(*check_options(levels, channels))
        if kwargs.pop("trust_remote_code", None) is not None:
            warnings.warn("trust_remote_code is ignored: data sets no longer run code.", stacklevel=2)
        path = os.path.expanduser(path) if isinstance(path, str | Path) else path
        self.dataset = load_by_datasets(path, args, kwargs, "HuggingFaceDataset")
        _refuse_stream(self.dataset)
        path = name_of(path)
        self._name = str(kwargs.get("data_files", path))[:200]
        if rename_columns:
            _require_columns(self.dataset, rename_columns, path)
            self.dataset = self.dataset.rename_columns(dict(rename_columns))
        if remove_columns:
            _require_columns(self.dataset, remove_columns, path)
            self.dataset = self.dataset.remove_columns(list(remove_columns))
        self.x, self.y, self.add_index = x, y, add_index
        self.levels, self.channels = levels, channels
        self.transform: Any = transform if transform is not None else (to_float_tensor if x else {})
        columns: Any = self.transform if x is None else [name for name in (x, y) if name is not None]
        _require_columns(self.dataset, columns, path)
        self._image_columns = _image_columns(self.dataset)
        for name, kind in self._image_columns.items():  # they are decoded here instead
            self.dataset = self.dataset.cast_column(name, type(kind)(decode=False))

    @functools.cached_property
    def _decoders(self) -> dict[str, ImageDecoder]:
        """The decoder of each column of images."""
        return {name: ImageDecoder(self.levels, self._channels_of(name)) for name in self._image_columns}

    def _channels_of(self, column: str) -> int | None:
        demanded = {"L": 1, "RGB": 3}.get(self._image_columns[column].mode)
        return self.channels or demanded or find_channels(lambda index: self.dataset[index][column], len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[int(index)]
        for name, decode in self._decoders.items():
            if sample[name] is not None:
                sample[name] = decode(sample[name], f"{name} {index} of '{self._name}'")
        if self.x is not None:
            return self.transform(sample[self.x]), -1 if self.y is None else sample[self.y]
        for name, transform in self.transform.items():
            sample[name] = transform(sample[name])
        if self.add_index:
            sample["index"] = index
        return sample


def _check_arguments(
    path: Any, x: Any, y: Any, transform: Any, rename_columns: Any, remove_columns: Any, add_index: Any
) -> None:
    if x is None:
        needed_y, is_y = "none, since x is none", y is None
        needed_transform, is_transform = "a dict of functions, one per column, or none", _is_dict(transform, callable)
        needed_index, is_index = "true or false", isinstance(add_index, bool)
    else:
        needed_y, is_y = "the name of a column, or none", y is None or _is_name(y)
        needed_transform, is_transform = "a function of an image, or none", is_function(transform)
        needed_index, is_index = "false, since samples of x and y are tuples", add_index is False
    is_list = isinstance(remove_columns, Sequence) and not isinstance(remove_columns, str)
    is_removable = remove_columns is None or (is_list and all(map(_is_name, remove_columns)))
    is_path = isinstance(path, str | Path) or hasattr(path, "column_names")
    require(
        ("path", path, is_path, "a name on the hub, a builder, a folder, or a Dataset"),
        ("x", x, x is None or _is_name(x), "the name of a column, or none"),
        ("y", y, is_y, needed_y),
        ("transform", transform, is_transform, needed_transform),
        ("rename_columns", rename_columns, _is_dict(rename_columns, _is_name), "a dict of names, or none"),
        ("remove_columns", remove_columns, is_removable, "a list of names, or none"),
        ("add_index", add_index, is_index, needed_index),
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Say whether a value is None, or a dict with names as keys and right values."""
    is_dict = isinstance(value, Mapping) and all(map(_is_name, value)) and all(map(is_right, value.values()))
    return value is None or is_dict


def load_by_datasets(path: Any, args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """Return the data set of a folder that `save_to_disk` wrote, or of `load_dataset`, or the one that is given.

    Parameters
    ----------
    path, args, kwargs
        As for a `HuggingFaceDataset`.
    name
        Of the class that asks, for errors.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{name} needs `pip install 'stable-ssl[hf]'`.") from error
    if not isinstance(path, str | Path):
        loaded = path
    elif any((Path(path) / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        loaded = datasets.load_from_disk(str(path))
        own = str(getattr(loaded, "split", None) or "train")
        if isinstance(loaded, datasets.Dataset) and kwargs.get("split", own) != own:
            raise ConfigError(
                f"split: '{kwargs['split']}' is unknown; '{path}' holds one data set, of the split '{own}'. Save a "
                "DatasetDict of all splits instead."
            )
    else:
        loaded = datasets.load_dataset(str(path), *args, **kwargs)
    if isinstance(loaded, dict) and kwargs.get("split") in loaded:
        loaded = loaded[kwargs["split"]]
    if isinstance(loaded, dict):
        wrong = f"'{kwargs['split']}' is unknown" if "split" in kwargs else "missing"
        raise ConfigError(f"split: {wrong}; '{name_of(path)}' has {list(loaded)}.")
    return loaded


def _refuse_stream(dataset: Any) -> None:
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        raise ConfigError(
            "streaming: a stream has no samples by number. Leave streaming out, or use a HuggingFaceStream instead, in "
            "a StreamLoader, and set optim.max_steps."
        )


def _image_columns(dataset: Any) -> dict[str, Any]:
    """Return the features of the columns that `datasets` would decode to PIL images."""
    import datasets

    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"]:  # a format may make tensors of images
        return {}
    return {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.Image) and kind.decode}


def name_of(path: Any) -> str:
    """Return what errors call a data set."""
    return str(path) if isinstance(path, str | Path) else type(path).__name__


def _require_columns(dataset: Any, wanted: Iterable[str], path: str | Path) -> None:
    missing = [column for column in wanted if column not in dataset.column_names]
    if missing:
        raise ConfigError(f"'{path}' has no column {missing}; it has {dataset.column_names}.")
