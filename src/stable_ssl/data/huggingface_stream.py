"""Data sets of Hugging Face that are read from their beginning to their end, as a stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from .checks import is_function, require
from .datasets import FUNCTION_OF_IMAGE, to_float_tensor
from .huggingface import load_by_datasets, name_of
from .images import ImageDecoder, check_options


class HuggingFaceStream:
    """A data set that `datasets.load_dataset(…, streaming=True)` knows, or such an `IterableDataset` itself.

    It goes into a `StreamLoader`. With `x`, samples are tuples (transform(x), y). Without, they are dicts of the
    columns. Columns of images give PIL images of mode "L" or "RGB".

    Parameters
    ----------
    path
        A builder such as "parquet", "imagefolder" or "webdataset", a folder of such files, or a name on the hub. Or a
        `datasets.IterableDataset` itself, for example one that was mapped or filtered. It must not be shuffled, because
        the loader does that: what the buffer of `datasets` holds is lost if a run is resumed.
    *args, **kwargs
        For `load_dataset`: `name`, `split`, `data_files` and others.
    x, y
        Names of the columns of the image and the label. None for `y`: every label is -1.
    transform
        Applied to the image of x. Without it, the image is a float tensor in [0, 1].
    levels, channels
        As for `ImageFolder`; `channels` is 1 or 3.

    Raises
    ------
    ConfigError
        An argument is wrong, there is no such column or split, the data set is shuffled or shared out already, or
        `datasets` is not installed.

    Examples
    --------
    >>> from stable_ssl.data import HuggingFaceStream, StreamLoader
    >>> stream = HuggingFaceStream("parquet", data_files="train-*.parquet", x="image", y="label")  # doctest: +SKIP
    >>> StreamLoader(stream, batch_size=256, shuffle=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: Any,
        *args: Any,
        x: str | None = None,
        y: str | None = None,
        transform: Callable | None = None,
        levels: Any = None,
        channels: int = 3,
        **kwargs: Any,
    ):
        is_path = isinstance(path, str | Path) or hasattr(path, "column_names")
        is_y = y is None or (isinstance(y, str) and x is not None)
        require(
            ("path", path, is_path, "a builder, a folder, a name on the hub, or an IterableDataset"),
            ("x", x, x is None or isinstance(x, str), "the name of a column, or none"),
            ("y", y, is_y, "the name of a column, or none; it needs x"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
            ("transform", transform, transform is None or x is not None, "none without x"),
            ("channels", channels, channels in (1, 3), "1 or 3"),
            *check_options(levels, channels),
        )
        if isinstance(path, str | Path):
            path, kwargs = os.path.expanduser(path), {"split": "train", "streaming": True, **kwargs}
        self.dataset = load_by_datasets(path, args, kwargs, "HuggingFaceStream")
        self.name = str(kwargs.get("data_files", name_of(path)))[:200]
        self.x, self.y, self.transform = x, y, to_float_tensor if transform is None else transform
        self._decode = ImageDecoder(levels, channels)
        self._check()
        for column in self._image_columns():  # they are decoded here instead
            self.dataset = self.dataset.cast_column(column, type(self.dataset.features[column])(decode=False))

    def _check(self) -> None:
        """Raise a ConfigError if the data set is no stream, can't be resumed or shared out, or lacks a column."""
        import datasets

        if not isinstance(self.dataset, datasets.IterableDataset):
            raise ConfigError(
                f"path: '{self.name}' is no stream. HuggingFaceDataset in a Loader is for such data sets."
            )
        if has_lossy_state(self.dataset):
            raise ConfigError(
                "path: this IterableDataset is shuffled, and the buffer that does it can't be saved. Leave .shuffle() "
                "out: a StreamLoader with shuffle=True draws an order that can be resumed."
            )
        if self.dataset._distributed is not None:
            raise ConfigError("path: this IterableDataset is split by node already. Leave that out: the run does it.")
        known = self.dataset.column_names  # none after a map that changes them
        if missing := [name for name in (self.x, self.y) if name and known is not None and name not in known]:
            raise ConfigError(f"'{self.name}' has no column {missing}; it has {known}.")

    def _image_columns(self) -> list[str]:
        import datasets

        features = {} if self.dataset._formatting else self.dataset.features or {}
        return [name for name, kind in features.items() if isinstance(kind, datasets.Image) and kind.decode]

    @property
    def num_shards(self) -> int:
        """The number of parts: files, as a rule."""
        return int(self.dataset.num_shards)

    def part(self, shard: int, epoch: int, state: Any) -> Any:
        """Return a shard, which yields its examples, from `state` on if that is not None."""
        part = self.dataset.shard(self.num_shards, shard)
        part.set_epoch(epoch)
        if state is not None:
            part.load_state_dict(state)
        return part

    def decode(self, example: dict[str, Any], name: str, transform: Callable) -> Any:
        """Return the sample of an example; `transform` instead of the own one is applied to its image."""
        for column, value in example.items():
            if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                example = {**example, column: self._decode({**value, "path": None} if value["bytes"] else value, name)}
        if self.x is None:
            return example
        if missing := [column for column in (self.x, self.y) if column is not None and column not in example]:
            raise KeyError(f"no column {missing}; it has {list(example)}")
        return transform(example[self.x]), -1 if self.y is None else example[self.y]


def has_lossy_state(stream: Any) -> bool:
    """Return whether a stream is an `IterableDataset` of Hugging Face that a buffer shuffles, or a stage of one."""
    if not type(stream).__module__.startswith("datasets."):
        return False
    inner = [getattr(stream, name, None) for name in ("_ex_iterable", "ex_iterable")]
    inner += getattr(stream, "ex_iterables", None) or []
    return type(stream).__name__ == "BufferShuffledExamplesIterable" or any(map(has_lossy_state, inner))
