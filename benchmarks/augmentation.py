"""Views a second on one core: SimCLR's two views of an image in memory, as normalised float32 tensors.

    python benchmarks/augmentation.py [--quick] [--rounds 7] [--write docs/views.md]
    python benchmarks/augmentation.py --against PATH_TO_SRC [--rounds 40]

At 32 pixels as for CIFAR-10 (no blur, strength 0.5), and at 224 from 256 pixels with a blur of 23 taps at p = 0.5
(kornia and lightly: their own kinds of blur). Crops are bilinear, except in the row that says otherwise. The images are
random, smooth and the same for all. torchvision, lightly and albumentations take them one at a time, kornia and this
library in batches. All run alternately in one process; the figures are medians over the rounds, and the ratios medians
of those of each round. They depend on the machine, so read the ratios. Compiling is timed apart. `--plain` measures
this library alone, without the instructions that `stable_ssl.augmentations.kernels.vectors` has for some processors.
`--against` measures this library and another source tree of it, such as `git worktree add ../other COMMIT` has in
../other/src: one process for each, measuring in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tables import write_table

import stable_ssl
from stable_ssl.augmentations import SimCLRViews
from stable_ssl.augmentations.recipes import IMAGENET_MEAN, IMAGENET_STD

SHORTEST = 0.3  # seconds of a measurement
# Output size, size of the images, strength of the colour changes, p of the blur, images for us, and for slower ones.
SETTINGS = {"32 px": (32, 32, 0.5, 0.0, 512, 128), "224 px from 256": (224, 256, 1.0, 0.5, 64, 16)}


def make_images(number: int, size: int) -> np.ndarray:
    """Return smooth random images, (number, size, size, 3)."""
    coarse = torch.rand(number, 3, max(4, size // 12), size // 12, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def torchvision_v2(size: int, strength: float, blur: float) -> Callable:
    from torchvision.transforms import v2

    operations = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)], 0.8),
        v2.RandomGrayscale(0.2),
    ]
    if blur:
        operations.append(v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], blur))
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose([*operations, *to_float])


def on_tensors(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    transform, tensors = torchvision_v2(size, strength, blur), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return lambda: [[transform(image) for _ in range(2)] for image in tensors]


def on_pil(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    from PIL import Image

    transform, pil = torchvision_v2(size, strength, blur), [Image.fromarray(image) for image in images]
    return lambda: [[transform(image) for _ in range(2)] for image in pil]


def lightly(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    transform = SimCLRTransform(input_size=size, cj_strength=strength, gaussian_blur=blur)
    pil = [Image.fromarray(image) for image in images]
    return lambda: [transform(image) for image in pil]


def albumentations_pipeline(size: int, strength: float, blur: float) -> Callable:
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    strong, hue = (max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength), (-0.2 * strength, 0.2 * strength)
    return A.Compose(
        [
            A.RandomResizedCrop((size, size)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(strong, strong, strong, hue, p=0.8),
            A.ToGray(p=0.2),
            *([A.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=blur)] if blur else []),
            A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ToTensorV2(),
        ]
    )


def albumentations(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    transform = albumentations_pipeline(size, strength, blur)
    return lambda: [[transform(image=image)["image"] for _ in range(2)] for image in images]


def kornia(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    import kornia.augmentation as K

    transform = torch.nn.Sequential(
        K.RandomResizedCrop((size, size)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        K.RandomGrayscale(p=0.2),
        *([K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=blur)] if blur else []),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
    )
    pixels = torch.as_tensor(images)
    return lambda: [transform(pixels.permute(0, 3, 1, 2).float() / 255) for _ in range(2)]


def ours(size: int, strength: float, blur: float, images: np.ndarray, **options: str) -> Callable:
    views = SimCLRViews(size, strength=strength, blur=blur > 0, **options)
    indices = list(range(len(images)))
    epochs = itertools.count()
    return lambda: views.make(images, seed=0, epoch=next(epochs), indices=indices)


PEERS = {
    "torchvision v2, uint8 tensors": ("torchvision", on_tensors),
    "torchvision v2, PIL": ("torchvision", on_pil),
    "lightly": ("lightly", lightly),
    "kornia": ("kornia", kornia),
    "albumentations": ("albumentations", albumentations),
}
BATCHED = {"kornia"}
OURS = "stable-ssl"


def measure(setting: str, rounds: int, peers: dict[str, tuple[str, Callable]]) -> dict[str, list[float]]:
    """Return the views a second of this library and of each peer that is installed, in each round."""
    size, image_size, strength, blur, many, few = SETTINGS[setting]
    images = make_images(many, image_size)
    makers: dict[str, tuple[int, Callable]] = {
        OURS: (many, ours(size, strength, blur, images)),
        f"{OURS}, bicubic": (many, ours(size, strength, blur, images, interpolation="bicubic")),
    }
    for name, (package, make) in peers.items():
        try:
            number = many if name in BATCHED else few
            makers[f"{name} ({version(package)})"] = number, make(size, strength, blur, images[:number])
        except ImportError:
            print(f"{name} is not installed: left out.")
    for _, make_views in makers.values():
        make_views()
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, (number, make_views) in makers.items():
            rates[name].append(2 * number * calls_a_second(make_views))
    return rates


def calls_a_second(call: Callable, clock: Callable[[], float] = time.perf_counter) -> float:
    start, repetitions = clock(), 0
    while (seconds := clock() - start) < SHORTEST:
        call()
        repetitions += 1
    return repetitions / seconds


def answer() -> None:
    """Measure each setting that is asked for on stdin, once: per second of this process, whatever else is running."""
    makers: dict[str, Callable] = {}
    for line in sys.stdin:
        size, image_size, strength, blur, many, _ = SETTINGS[setting := line.strip()]
        if setting not in makers:
            makers[setting] = ours(size, strength, blur, make_images(many, image_size))
            makers[setting]()
        print(2 * many * calls_a_second(makers[setting], time.process_time), flush=True)


def compare(other: Path, rounds: int) -> None:
    """Print how many times as many views as the other source tree this one makes."""
    trees = [Path(stable_ssl.__file__).parent.parent, other.resolve()]
    command = [sys.executable, __file__, "--answer"]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in trees
    ]

    def rate(process: subprocess.Popen, setting: str) -> float:
        process.stdin.write(f"{setting}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    print(f"| {trees[0]} / {trees[1]} | median | quartiles | views/s |\n|---|---|---|---|")
    for setting in SETTINGS:
        pairs = [[rate(process, setting) for process in processes[:: 1 - 2 * (i % 2)]] for i in range(-1, rounds)][1:]
        pairs = [pair[:: 1 - 2 * (i % 2)] for i, pair in enumerate(pairs)]  # each is first every other time
        low, middle, high = statistics.quantiles([one / another for one, another in pairs], n=4)
        own = statistics.median(pair[0] for pair in pairs)
        print(f"| {setting} | {middle:.3f} | {low:.3f} to {high:.3f} | {own:,.0f} |", flush=True)
    for process in processes:
        process.communicate()


def leave_out_instructions() -> None:
    """Have numba name all features but those that are asked for; the compiler uses them all the same."""
    from llvmlite import binding

    features = binding.get_host_cpu_features().flatten().split(",")
    os.environ["NUMBA_CPU_NAME"] = binding.get_host_cpu_name()
    os.environ["NUMBA_CPU_FEATURES"] = ",".join(name for name in features if name[1:] not in ("avx2", "avx512vbmi"))


def time_compiling() -> str:
    assert "numba" not in sys.modules
    start = time.perf_counter()
    import numba

    times = [f"importing numba {time.perf_counter() - start:.1f} s"]
    with tempfile.TemporaryDirectory() as cache:
        numba.config.CACHE_DIR = cache
        for what, size in (("compiling the first views", 32), ("compiling the blur", 224)):
            start = time.perf_counter()
            SimCLRViews(size).make(make_images(2, 256), 0, 0, [0, 1])
            times.append(f"{what} {time.perf_counter() - start:.1f} s")
    return f"Once: {', '.join(times)}; numba keeps on disk what it compiled."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--against", type=Path, help="the src folder of another version of this library")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--write",
        type=Path,
        help="a Markdown file with <!-- augmentation --> … <!-- /augmentation -->, or augmentation plain",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.answer:
        return answer()
    if arguments.against:
        return compare(arguments.against, arguments.rounds)
    if arguments.plain:
        leave_out_instructions()
    once = time_compiling()
    rounds, peers = 3 if arguments.quick else arguments.rounds, {} if arguments.plain else PEERS
    rates = [measure(setting, rounds, peers) for setting in SETTINGS]
    table = [
        f"| views/s | {' | '.join(f'{setting} | stable-ssl is faster by' for setting in SETTINGS)} |",
        f"|---|{'---|' * 2 * len(SETTINGS)}",
    ]
    for name in rates[0]:
        cells = []
        for rate in rates:
            ratio = statistics.median(ours / theirs for ours, theirs in zip(rate[OURS], rate[name], strict=True))
            cells += [f"{statistics.median(rate[name]):,.0f}", "" if name == OURS else f"{ratio:.1f}"]
        table.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join([*table, "", once]))
    if arguments.write:
        write_table(arguments.write, "augmentation plain" if arguments.plain else "augmentation", [*table, "", once])


if __name__ == "__main__":
    main()
