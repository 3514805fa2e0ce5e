"""Images a second from a prepared file to SimCLR's two views of 224 pixels, against those from the files themselves.

    python benchmarks/prepared.py [--rounds 7] [--size 256] [--write docs/images.md]

The files are those of `benchmarks/input.py`: 240 JPEGs of 500 × 375 pixels. `stable-ssl prepare` writes them in each of
its formats. One thread reads each of them by a `Loader`, with nothing held in memory, on one core; all in one process,
one epoch after another in turns. The figures are medians over the rounds, and the ratios medians of those of each
round. The first round does not count: loops are compiled, headers read and checksums compared in it. Seconds are those
of the CPU, so that other programs on the machine count little: one core, which nothing else uses, needs as many.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from input import BATCH, NUM_FILES, SIZE, ours, write_files
from tables import write_table

from stable_ssl.augmentations import SimCLRViews
from stable_ssl.cli import main as command
from stable_ssl.data import Loader, Prepared

FILES, FORMATS = "files", ("jpeg", "yuv", "raw")


def prepared(path: Path) -> Callable:
    """Return a function that reads all images of a prepared file once, in an epoch of its own."""
    loader = Loader(Prepared(path, in_memory=False), BATCH, views=SimCLRViews(SIZE), shuffle=True, num_workers=1)
    epochs = itertools.count()
    return lambda: [None for _ in loader.batches(next(epochs))]


def measure(folder: Path, rounds: int, size: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the images a second of each contender in each round, and the bytes that it reads."""
    sources = folder / "files"
    sources.mkdir()
    num_bytes = {FILES: sum(path.stat().st_size for path in write_files(sources))}
    contenders = {FILES: ours(sources, 1)}
    for name in FORMATS:
        path = folder / f"{name}.images"
        if command(["prepare", str(sources), "--format", name, "--size", str(size), "--out", str(path)]):
            raise SystemExit(f"{name} was not written.")
        num_bytes[name], contenders[name] = path.stat().st_size, prepared(path)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number, (name, read) in itertools.product(range(rounds + 1), contenders.items()):
        start = time.process_time()
        read()
        if number:
            rates[name].append(NUM_FILES / (time.process_time() - start))
    return rates, num_bytes


def table(rates: dict[str, list[float]], num_bytes: dict[str, int]) -> list[str]:
    lines = ["| | images/s | faster than the files by | size of the files' |", "|---|---|---|---|"]
    for name, own in rates.items():
        ratio = statistics.median(one / other for one, other in zip(own, rates[FILES], strict=True))
        share = num_bytes[name] / num_bytes[FILES]
        lines.append(f"| {name} | {statistics.median(own):,.0f} | {ratio:.2f} | {share:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- prepared --> … <!-- /prepared -->")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = table(*measure(Path(folder), args.rounds, args.size))
    print("\n".join(lines))
    if args.write:
        write_table(args.write, "prepared", lines)


if __name__ == "__main__":
    main()
