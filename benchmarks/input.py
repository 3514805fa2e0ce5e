"""Images a second from JPEG files to SimCLR's two views of 224 pixels, on one core, with nothing held in memory.

    python benchmarks/input.py [--rounds 7] [--write docs/views.md]
    python benchmarks/input.py --memory 100000

The files are 240 JPEGs of 500 × 375 pixels (quality 92): random parts of the two photographs that scikit-learn ships.
This library reads them by its `Loader`, in one thread and in two; the others as their users do, one at a time: lightly
with Pillow, torchvision with its own decoder, albumentations with OpenCV. All run alternately in one process that is
bound to one core, or to two for the row of two threads. The figures are medians over the rounds, and the ratios medians
of those of each round; they depend on the machine, so read the ratios. The first round, in which loops are compiled and
headers are read, does not count. The decoder's share is the part of this library's time that decoding alone takes.
`--memory` reads so many images, and prints what the process takes after each tenth of them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from augmentation import albumentations_pipeline, torchvision_v2
from PIL import Image
from sklearn.datasets import load_sample_images
from tables import write_table
from torch.utils.data import Subset

from stable_ssl.augmentations import SimCLRViews
from stable_ssl.data import Images, Loader

NUM_FILES, SIZE, BATCH = 240, 224, 60
OURS, TWO, ALONE = "stable-ssl", "stable-ssl, two threads on two cores", "decoding alone (simplejpeg)"


def write_files(folder: Path) -> list[Path]:
    """Write the JPEGs, and return their paths."""
    random = np.random.default_rng(0)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = [folder / f"{number:03}.jpg" for number in range(NUM_FILES)]
    for number, path in enumerate(paths):
        photo, scale = photos[number % len(photos)], random.uniform(0.8, 1.0)
        width, height = int(500 * scale), int(375 * scale)
        left, top = (int(random.integers(most)) for most in (photo.width - width, photo.height - height))
        photo.resize((500, 375), Image.Resampling.LANCZOS, (left, top, left + width, top + height)).save(
            path, quality=92
        )
    return paths


def ours(folder: Path, num_threads: int) -> Callable:
    """Return a function that reads all files once, in an epoch of its own."""
    images = Images(folder, in_memory=False)
    loader = Loader(images, BATCH, views=SimCLRViews(SIZE), shuffle=True, num_workers=num_threads)
    epochs = itertools.count()
    return lambda: [None for _ in loader.batches(next(epochs))]


def decoding_alone(paths: list[Path]) -> Callable:
    from simplejpeg import decode_jpeg

    pixels = np.empty((375, 500, 3), np.uint8)
    return lambda: [len(decode_jpeg(path.read_bytes(), buffer=pixels)) for path in paths]


def lightly(paths: list[Path]) -> Callable:
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=SIZE)
    return lambda: [transform(Image.open(path).convert("RGB")) and None for path in paths]


def torchvision(paths: list[Path]) -> Callable:
    from torchvision.io import decode_image

    transform = torchvision_v2(SIZE, 1.0, 0.5)

    def read(path: Path) -> None:
        pixels = decode_image(str(path), mode="RGB")
        for _ in range(2):
            transform(pixels)

    return lambda: [read(path) for path in paths]


def albumentations(paths: list[Path]) -> Callable:
    import cv2

    transform = albumentations_pipeline(SIZE, 1.0, 0.5)
    cv2.setNumThreads(1)

    def read(path: Path) -> None:
        pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        for _ in range(2):
            transform(image=pixels)

    return lambda: [read(path) for path in paths]


PEERS = {"lightly": lightly, "torchvision": torchvision, "albumentations": albumentations}


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the images a second of each contender in each round."""
    paths = write_files(folder)
    cores = sorted(os.sched_getaffinity(0))
    contenders = {OURS: ours(folder, 1), TWO: ours(folder, 2), ALONE: decoding_alone(paths)}
    for name, make in PEERS.items():
        try:
            contenders[f"{name} ({version(name)})"] = make(paths)
        except ImportError:
            print(f"{name} is not installed: left out.")
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, read in contenders.items():
            os.sched_setaffinity(0, cores[: 2 if name == TWO else 1])
            start = time.perf_counter()
            read()
            if number:
                rates[name].append(NUM_FILES / (time.perf_counter() - start))
    return rates


def table(rates: dict[str, list[float]]) -> list[str]:
    lines = ["| | images/s | stable-ssl in one thread is faster by |", "|---|---|---|"]
    for name, own in rates.items():
        ratio = statistics.median(one / other for one, other in zip(rates[OURS], own, strict=True))
        lines.append(f"| {name} | {statistics.median(own):,.0f} | {'' if name == OURS else f'{ratio:.2f}'} |")
    share = statistics.median(one / alone for one, alone in zip(rates[OURS], rates[ALONE], strict=True))
    return [*lines, "", f"Decoding takes {share:.0%} of the time of one thread."]


def watch_memory(folder: Path, num_images: int) -> None:
    """Read many images, and print the largest size that this process has had."""
    write_files(folder)
    images = Images(folder, in_memory=False)
    many = Subset(images, [number % NUM_FILES for number in range(num_images)])
    loader = Loader(many, BATCH, views=SimCLRViews(SIZE))
    seen, tenth = 0, num_images // 10
    for indices, _ in loader.batches(0):
        seen += len(indices)
        if seen // tenth > (seen - len(indices)) // tenth:
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{seen} images: {used:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=int, metavar="IMAGES")
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- input --> … <!-- /input -->")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory:
            return watch_memory(Path(folder), arguments.memory)
        lines = table(measure(Path(folder), arguments.rounds))
    print("\n".join(lines))
    if arguments.write:
        write_table(arguments.write, "input", lines)


if __name__ == "__main__":
    main()
