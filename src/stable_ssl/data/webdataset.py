"""Images and labels in WebDataset shards: tar files on a local disk."""

from __future__ import annotations

import bisect
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..exceptions import ConfigError, DataError, some_of
from ..runtime.files import printable, state_of
from .checks import is_function, require
from .datasets import FUNCTION_OF_IMAGE, EncodedDataset, to_float_tensor
from .images import check_options
from .shards import read_headers
from .threads import Threads

NUM_THREADS = 16  # more than cores, because a network's file system answers late
MOST_NAMED = 20


@dataclass
class _Contents:
    """What a shard holds: its state and name with checksum, and key, place and label of each sample; or an error."""

    state: tuple[int, int] = (0, 0)
    name: str = ""
    keys: list[bytes] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)  # offset, size, and number of the ending
    labels: list[int] = field(default_factory=list)
    has_labels: bool = False
    lacking: list[str] = field(default_factory=list)  # samples without an image, in words
    wrong: list[str] = field(default_factory=list)  # labels that are none, in words
    error: str = ""


class WebDataset(EncodedDataset):
    """Images and labels in WebDataset shards: tar files in which `KEY.jpg` and `KEY.cls` are a sample.

    The headers of all shards are read when it is made, so it knows each sample's place. A `Loader` can then go to any
    sample: each comes once per epoch, in an order that is a function of (seed, epoch), shared out over any number of
    processes and workers, and a resumed epoch reads no sample again.

    Format: https://github.com/webdataset/webdataset

    Parameters
    ----------
    path
        A shard, a folder of `*.tar`, a pattern such as "train-*.tar" or "train-{000..146}.tar", or a list of these.
    image
        The endings that a sample's image may have, separated by ";". The first that a sample has is taken.
    label
        The ending of the member that holds the label as text. None: every label is -1, as is that of a sample without
        such a member.
    classes
        What the labels are called, in the order of their numbers. None: the texts are numbers.
    transform, levels, channels
        As for `ImageFolder`.

    Attributes
    ----------
    targets : list of int
        The labels.
    keys : numpy.ndarray
        The key of each sample, as bytes.
    shards : list of str
        The name of each shard, and a checksum of its headers.

    Raises
    ------
    ConfigError
        An argument is wrong, there is no such shard, or a sample has no image or a label that is none of `classes`.
    DataError
        Shards are damaged, cut short, empty or compressed, or have a name twice; the error names all of them.

    Examples
    --------
    >>> from stable_ssl.data import Loader, WebDataset
    >>> Loader(WebDataset("shards/train-{000..146}.tar"), batch_size=256, shuffle=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        image: str = "jpg;jpeg;png;webp;tif;tiff;bmp;ppm",
        label: str | None = "cls",
        classes: Sequence[str] | None = None,
        transform: Callable | None = None,
        levels: Sequence[float] | None = None,
        channels: int | None = None,
    ):
        paths = [path] if isinstance(path, str | Path) else path
        is_list = isinstance(paths, Sequence) and len(paths) > 0 and all(isinstance(p, str | Path) for p in paths)
        names = isinstance(classes, Sequence) and not isinstance(classes, str) and len(set(classes)) == len(classes)
        require(
            ("path", path, is_list, "a shard, a folder, a pattern, or a list of these"),
            ("image", image, isinstance(image, str) and bool(image), "endings, separated by ';'"),
            ("label", label, label is None or isinstance(label, str), "an ending, or none"),
            ("classes", classes, classes is None or names, "a list of different names, or none"),
            ("transform", transform, is_function(transform), FUNCTION_OF_IMAGE),
            *check_options(levels, channels),
        )
        self.image, self.label, self.classes = image, label, list(classes or [])
        self._endings = [ending.strip().lower() for ending in image.split(";")]
        self.transform = to_float_tensor if transform is None else transform
        self.levels, self.channels = levels, channels
        self.files = [file for item in paths for file in _shards(str(item))]
        if repeated := [str(file) for file, count in Counter(self.files).items() if count > 1]:
            raise ConfigError(f"path: {repeated[:3]} stand there twice, so their samples would come twice an epoch.")
        threads = Threads(NUM_THREADS, "shards")
        try:
            self._take(list(threads.map(self._look_at, self.files, ahead=2 * NUM_THREADS)))
        finally:
            threads.close(wait=False)  # one may hang, on a disk that does not answer

    def _look_at(self, file: Path) -> _Contents:
        """Return the places and labels of the samples of a shard."""
        try:
            shard = read_headers(file)
        except DataError as error:
            return _Contents(error=str(error))
        found = _Contents(shard.state, f"{file.name} {shard.checksum:08x}", list(map(os.fsencode, shard.members)))
        number_of = {name: number for number, name in enumerate(self.classes)}
        with open(file, "rb", buffering=0) as opened:
            for key, members in shard.members.items():
                ending = next((ending for ending in self._endings if ending in members), None)
                found.places.append((*members[ending], self._endings.index(ending)) if ending else (0, 0, 0))
                if ending is None:
                    found.lacking.append(f"'{key}' in '{file}' has {sorted(members)}")
                label, text = -1, None
                if self.label is not None and (place := members.get(self.label.lower())):
                    text = os.pread(opened.fileno(), place[1], place[0]).decode(errors="replace").strip()
                    try:
                        label = number_of[text] if self.classes else int(text)
                    except (KeyError, ValueError):
                        found.wrong.append(f"'{key}' in '{file}' has {text[:50]!r}")
                found.labels.append(label)
                found.has_labels |= text is not None
        return found

    def _take(self, found: list[_Contents]) -> None:
        """Note the places and labels of all samples, or raise an error that names what is wrong in all shards."""
        if damaged := [shard.error for shard in found if shard.error]:
            raise DataError("\n".join(damaged))
        self._states, self.shards = [shard.state for shard in found], [shard.name for shard in found]
        self._ends = list(itertools.accumulate(len(shard.keys) for shard in found))  # as numbers of samples
        self.keys = np.array([key for shard in found for key in shard.keys])
        self._places = np.concatenate([np.array(shard.places, np.int64) for shard in found])
        self.targets = [label for shard in found for label in shard.labels]
        lacking, wrong = ([line for shard in found for line in getattr(shard, name)] for name in ("lacking", "wrong"))
        problems = []
        if lacking:
            problems.append(
                f"image: {len(lacking)} of {len(self.keys)} samples have no member that ends in '{self.image}': "
                f"{some_of(lacking, MOST_NAMED, '; ')}."
            )
        if wrong:
            what = "is none of classes" if self.classes else "is no number. Name the classes in classes"
            problems.append(
                f"label: the '{self.label}' of {len(wrong)} samples {what}: {some_of(wrong, MOST_NAMED, '; ')}."
            )
        if self.label not in (None, "cls") and not any(shard.has_labels for shard in found):
            problems.append(f"label: no sample has a member that ends in '{self.label}'.")
        if problems:
            raise ConfigError(problems)

    def path_of(self, index: int) -> str:
        """Return the shard and the member that a sample's image is."""
        shard, member = self.files[bisect.bisect_right(self._ends, index % len(self))], os.fsdecode(self.keys[index])
        return f"{shard}/{member}.{self._endings[self._places[index, 2]]}"

    def name_of(self, index: int) -> str:
        """Return what errors call an image."""
        return f"'{printable(self.path_of(index))}'"

    def source(self, index: int) -> bytes:
        """Return the encoded image of a sample.

        Raises
        ------
        DataError
            The shard was changed since its headers were read.
        """
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        path, (offset, size, _) = self.files[number], self._places[index].tolist()
        with open(path, "rb", buffering=0) as file:
            if state_of(os.fstat(file.fileno())) != self._states[number]:
                raise DataError(f"'{path}' was changed since its headers were read, and samples may be elsewhere now.")
            return os.pread(file.fileno(), size, offset)


def _shards(path: str) -> list[Path]:
    """Return the shards that a path or pattern stands for, sorted."""
    if re.match(r"\w+:", path):
        raise ConfigError(f"path: '{path}' is no file of this machine. Copy its shards to a disk first.")
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = sorted(folder.glob("*.tar"))
    else:
        found = []
        for pattern in _expanded(str(folder)):
            matching = sorted(map(Path, glob.glob(pattern))) or [Path(pattern)]
            if not matching[0].exists():
                raise ConfigError(f"path: no shard at '{pattern}'.")
            found += matching
    if not found:
        raise ConfigError(f"path: no *.tar in the folder '{path}'.")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield a pattern once for each number of a range such as {000..146}, and for each text of {a,b}."""
    if not (braces := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        yield pattern
        return
    first, last, texts = braces.groups()
    values = texts.split(",") if texts else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    for value in values:
        yield from _expanded(pattern[: braces.start()] + value + pattern[braces.end() :])
