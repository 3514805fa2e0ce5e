"""`stable-ssl prepare`: a folder's images in one file that is read fast."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError
from ..overrides import quoted
from ..runtime.files import printable, size_in_words

WITHOUT_LABELS = ["train_split=null", "num_classes=2", "~logger.metric", "~logger.monitor.test"]
GREY = ["channels=1", "mean=[0.5]", "std=[0.25]"]
BATCH, OF_RECIPE = 256, 200  # images in a batch, and neighbours, that recipes for photographs have

_PLAIN = r"[\w./~+-]+"  # a path that is a value of an override as it stands


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Write the file, or check one."""
    if rest:
        raise ConfigError(f"prepare: '{rest[0]}' is one argument too many: it takes one folder.")
    if args.verify:
        return verify(args.folder)
    if not 1 <= args.quality <= 100:
        raise ConfigError(f"prepare: --quality {args.quality} is not from 1 to 100.")
    if args.size < 0:
        raise ConfigError(f"prepare: --size {args.size} is not a number of pixels, or 0 to keep all sizes.")
    try:
        with _reporting() as report:
            return _prepare(args, report)
    except KeyboardInterrupt:
        print("stable-ssl: stopped. The same line goes on.", file=sys.stderr)
        return 130


def _prepare(args: argparse.Namespace, report: Any) -> int:
    from ..data import Images, Prepared
    from ..data.encoding import FolderToPrepare, Format
    from ..data.preparing import prepare
    from ..data.scanning import ENDINGS

    name = f"{Path(os.path.realpath(args.folder)).name}_{args.format}_{args.size}.images"
    out = Path(args.out or name).expanduser().absolute()
    if out.is_dir():
        raise ConfigError(f"prepare: --out '{printable(out)}' is a folder; give the name of a file.")
    if out.suffix.lower() in ENDINGS:  # in a folder of images, it would be taken for one
        raise ConfigError(f"prepare: --out '{printable(out)}' is the name of an image; give it another ending.")
    images = Images(args.folder, args.labels, levels=args.levels, channels=args.channels, on_error=args.on_error)
    form = Format(args.format, args.size, args.quality, args.subsampling)
    source = FolderToPrepare(images, form, skips=args.on_error == "skip")
    is_new = prepare(source, out, report)
    before = int(source.plan.sources["size"].sum())
    what = (
        f"{len(Prepared(out)):,} images, {size_in_words(out.stat().st_size)}; their files have {size_in_words(before)}"
    )
    print(f"{printable(out)}: {'' if is_new else 'finished already: '}{what}.")
    print(f"Train on it: {printable(shlex.join(['stable-ssl', *line_to_train(out)]))}")
    return 0


def line_to_train(file: Path) -> list[str]:
    """Return the arguments of `stable-ssl` that train on a file: what the recipe has, but for what its images need."""
    from ..data import Prepared
    from ..pretraining.planning import NEIGHBOURS, choose_batch, choose_size, num_labelled

    train, test = (Prepared(file, split) for split in ("train", "test"))
    is_measured = len(train.classes) > 1 and len(test) > 0
    images = train if is_measured else Prepared(file)
    words = [
        "train",
        "simclr",
        "data=prepared",
        f"root={file if re.fullmatch(_PLAIN, str(file)) else quoted(str(file))}",
        f"size={choose_size(images.sizes)}",
    ]
    if len(images) < BATCH:
        words.append(f"data.train.batch_size={choose_batch(len(images), 'simclr', 0)}")
    if images.channels == 1:
        words += GREY
    if not is_measured:
        return words + WITHOUT_LABELS
    return words + [f"neighbours={min(num_labelled(images), NEIGHBOURS)}"] * (num_labelled(images) < OF_RECIPE)


def verify(path: str) -> int:
    """Read all images of a file back."""
    from ..data import Prepared
    from ..data.preparing import check_all

    with _reporting() as report:
        images = Prepared(path)
        check_all(images.file, report)
    print(f"{printable(path)}: {len(images):,} images, all as they were written.")
    return 0


@contextlib.contextmanager
def _reporting() -> Iterator[Any]:
    """Yield a function that shows on a terminal how much is done."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Looking at the files", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
