"""Features of a set's images: computed once, in fixed chunks by sample index, and kept on disk.

The chunks are the same whatever the number of processes, so the features are the same bits. What is kept is found again
by the network's values, the view, and the files' paths, sizes and times. If computing is interrupted, it goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..data import Loader
from ..data.reading import UnreadableError
from ..engine.agreement import Together
from ..engine.alone import Alone
from ..exceptions import DataError, option_named
from ..runtime.batches import images_of, labels_of
from ..runtime.device import to_device
from ..runtime.files import user_cache
from .fingerprints import is_of_libraries, of_dataset, of_view, versions_of
from .kept import LABELS, Writer, in_cache, missing, path_of
from .networks import Features
from .subject import Subject

FORMAT, BATCH, LIMIT = 1, 256, 20.0
NO_LABEL = -1

Say = Callable[[str], None]


@dataclass(frozen=True)
class How:
    """How features are computed and kept.

    Attributes
    ----------
    device
        Where the network computes.
    precision
        "fp32", "bf16" or "fp16": autocast. Features are always kept as float32.
    batch
        How many images go through the network at a time.
    workers
        Worker processes that read images. 0: threads of this process, where the images allow it.
    cache
        The folder in which features are kept. None: they are removed when the evaluation ends.
    limit
        How many GB the folder may have. The features that were used longest ago go first.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    batch: int = BATCH
    workers: int = 0
    cache: Path | None = None
    limit: float = LIMIT


@dataclass(frozen=True)
class SetFeatures:
    """Features of all images of a set.

    Attributes
    ----------
    values
        By the features' name: (samples, dim), float32. The memory is that of files.
    labels
        (samples,), int64; below 0 if an image has none.
    """

    values: dict[str, Tensor]
    labels: Tensor


def usual_cache() -> Path | None:
    """Return the folder in which features are kept, in the user's cache; None if there is none."""
    place = user_cache()
    return place / "features" if place else None


class FeatureStore:
    """Computes features of sets, or finds them on disk.

    Parameters
    ----------
    how
        How they are computed and kept.
    ranks
        The processes, which share the chunks out. Rank 0 has the results; the others get None.
    say
        Gets lines on what is done.
    """

    def __init__(self, how: How, ranks: Alone | Together, say: Say = lambda line: None):
        self._how, self._ranks, self._say = how, ranks, say
        self._temporary: Path | None = None
        self._known: dict[int, tuple[Any, str | None]] = {}  # data sets and views that were seen, with their digests
        self._used: list[Path] = []

    def close(self) -> None:
        """Remove what is not kept."""
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def features(
        self, subject: Subject, names: Sequence[str], dataset: Any, view: Any, title: str
    ) -> SetFeatures | None:
        """Return features of all images of a set; None on all ranks but the first.

        Parameters
        ----------
        subject
            The network.
        names
            The features.
        dataset
            Map-style, of (image, label), or of images alone.
        view
            Makes of an image what the network gets. None: the images are taken as they are.
        title
            What messages call the set.

        Raises
        ------
        ConfigError
            The network has no such features, or the place of the cache is full or can't be written.
        DataError
            The network can't take the images, or features are not finite.
        """
        network = Features(subject, names)
        folder = self._ranks.from_main(lambda: self._folder(subject, dataset, view))
        with self._locked(folder):
            number = len(dataset)
            if wanted := self._ranks.from_main(lambda: missing(folder, network.names, number, self._say)):
                self._compute(Features(subject, wanted), subject.name, dataset, view, title, folder)
            else:
                self._say(f"{title}: features of {number:,} images are in the cache")
            if not self._ranks.is_main:
                return None
            values = {name: torch.from_numpy(np.load(path_of(folder, name), mmap_mode="c")) for name in network.names}
            labels = torch.from_numpy(np.load(path_of(folder, LABELS)))
        os.utime(folder)
        self._used.append(folder)
        self._make_room()
        return SetFeatures(values, labels)

    def _folder(self, subject: Subject, dataset: Any, view: Any) -> Path:
        """Return the folder for the features of a set, and make it."""
        parts = [self._digest(of_dataset, dataset), self._digest(of_view, view)]
        place = self._how.cache
        has_own_code = not is_of_libraries(subject.network)
        if place is None or None in parts or has_own_code:
            if place is not None:
                what = "code of your own may change" if has_own_code else "these images can't be told from others"
                self._say(f"{what}, so the features are not kept")
            place = self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="stable_ssl_features_"))
            parts = [part or str(id(of)) for part, of in zip(parts, (dataset, view), strict=True)]
        key = json.dumps(
            [
                FORMAT,
                *versions_of(subject.network),
                subject.digest,
                *parts,
                self._how.precision,
                self._how.device.type,
                self._how.batch,
            ]
        )
        folder = place / hashlib.sha256(key.encode()).hexdigest()[:32]
        with in_cache(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _digest(self, of: Callable[[Any], str | None], what: Any) -> str | None:
        """Return the digest of a data set or view. It is made once, since that may take a look at each file."""
        if id(what) not in self._known:
            self._known[id(what)] = what, of(what)  # while it is kept, no other object gets the same number
        return self._known[id(what)][1]

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Let one evaluation at a time compute the features in a folder."""
        if not self._ranks.is_main:
            yield
            return
        while True:
            with in_cache(folder):
                folder.mkdir(exist_ok=True)
                lock = open(folder / ".lock", "a")  # noqa: SIM115
            with lock:
                fcntl.lockf(lock, fcntl.LOCK_EX)
                if not _is_same_file(lock, folder / ".lock"):  # it was removed to make room
                    continue
                yield
                return

    def _compute(self, network: Features, name: str, dataset: Any, view: Any, title: str, folder: Path) -> None:
        number = len(dataset)
        size = self._how.batch
        chunks = [list(range(at, min(at + size, number))) for at in range(0, number, size)]
        writer = Writer(folder, network.names, number) if self._ranks.is_main else None
        start = self._ranks.from_main(lambda: writer.first if writer else 0)
        network = network.to(self._how.device).eval()
        loader = Loader(dataset, batch_sampler=chunks[start:], views=view, num_workers=self._how.workers)
        loader.bind(0, title, self._ranks.rank, self._ranks.size)
        try:
            with _named(title):
                loader.prepare(self._how.device)
            batches = loader.batches(0)
            for done in range(start, len(chunks), self._ranks.size):
                with _named(title):
                    item = next(batches, None)
                own = self._of_batch(network, name, item)
                found = [own] if isinstance(self._ranks, Alone) else self._ranks.gather_on_main(own)
                if writer is not None:
                    for part in filter(None, found or ()):
                        writer.add(*part)
                    self._say(
                        f"{title}: features of {min((done + self._ranks.size) * size, number):,} of {number:,} images"
                    )
        finally:
            loader.close()
            network.to("cpu")
        self._ranks.from_main(lambda: writer.finish() if writer else None)

    def _of_batch(
        self, network: Features, name: str, item: Any
    ) -> tuple[list[int], dict[str, np.ndarray], np.ndarray] | None:
        """Return the indices, the features and the labels of one chunk."""
        if item is None:
            return None
        indices, batch = item
        images = to_device(images_of(batch), self._how.device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._how.precision)
        with torch.autocast(self._how.device.type, dtype, enabled=dtype is not None):
            try:
                found = network(images)
            except torch.OutOfMemoryError as error:
                raise DataError(f"'{name}': {len(images)} images need more memory than there is: --batch N.") from error
            except (RuntimeError, ValueError, IndexError) as error:
                shape = " × ".join(map(str, images.shape[1:]))
                raise DataError(f"'{name}' can't take images of {shape}: {error}") from error
        values = {key: value.float().cpu().numpy() for key, value in found.items()}
        for key, value in values.items():
            is_bad = ~np.isfinite(value).all(1)
            if is_bad.any():
                raise DataError(
                    f"'{name}': the feature '{key}' is not finite for {is_bad.sum()} of the samples {indices[0]} to "
                    f"{indices[-1]}; the first one is sample {indices[int(is_bad.argmax())]}."
                )
        labels = labels_of(batch)
        return indices, values, np.full(len(indices), NO_LABEL) if labels is None else labels.cpu().numpy()

    def _make_room(self) -> None:
        """Remove the features that were used longest ago, until the folder is below its limit."""
        if self._how.cache is None:
            return
        with contextlib.suppress(FileNotFoundError):  # another evaluation makes room, too
            own = [path for path in self._how.cache.iterdir() if re.fullmatch("[0-9a-f]{32}", path.name)]
            found = [(path.stat().st_mtime, path) for path in own if path.is_dir()]
            sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for _, path in found}
            excess = sum(sizes.values()) - self._how.limit * 1e9
            for _, path in sorted(found):
                if excess > 0 and path not in self._used and _remove(path):
                    excess -= sizes[path]


@contextlib.contextmanager
def _named(title: str) -> Iterator[None]:
    """Have errors of a loader begin with a set's title, instead of a key, and leave out what runs alone can do."""
    try:
        with option_named(f"data.{title}.views", title):
            yield
    except DataError as error:
        lines = str(error).splitlines()
        if isinstance(error.__cause__, UnreadableError):  # the last line is advice for runs
            lines = [*(lines[:-1] or lines), "Mend or remove what can't be read."]
        raise DataError("\n".join(lines).replace(f"data.{title}", title)) from error


def _remove(folder: Path) -> bool:
    """Remove a folder of features, and return whether it is gone. It stays if it is in use, or of another user."""
    try:
        with open(folder / ".lock", "a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            return True
    except OSError:
        return False


def _is_same_file(file: IO[str], path: Path) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
