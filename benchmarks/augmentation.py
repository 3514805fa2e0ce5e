"""Views a second on one core: SimCLR's two views of an image in memory, as normalised float32 tensors.

    python benchmarks/augmentation.py [--quick] [--rounds 7]

At 32 pixels as for CIFAR-10 (no blur, strength 0.5), and at 224 from 256 pixels with a blur of 23 taps at p = 0.5
(kornia and lightly: their own kinds of blur). The images are random, smooth and the same for all. torchvision, lightly
and albumentations take them one at a time, kornia and this library in batches. All run alternately in one process, and
the figures are medians over the rounds; they depend on the machine, so read the ratios. Compiling is timed apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

from stable_ssl.augmentations import SimCLRViews
from stable_ssl.augmentations.recipes import IMAGENET_MEAN, IMAGENET_STD

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


def albumentations(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    strong, hue = (max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength), (-0.2 * strength, 0.2 * strength)
    transform = A.Compose(
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


def stable_ssl(size: int, strength: float, blur: float, images: np.ndarray) -> Callable:
    views, indices = SimCLRViews(size, strength=strength, blur=blur > 0), list(range(len(images)))
    return lambda: views.make(images, seed=0, epoch=0, indices=indices)


PEERS = {
    "torchvision v2, uint8 tensors": ("torchvision", on_tensors),
    "torchvision v2, PIL": ("torchvision", on_pil),
    "lightly": ("lightly", lightly),
    "kornia": ("kornia", kornia),
    "albumentations": ("albumentations", albumentations),
}
OURS = "stable-ssl"


def measure(setting: str, rounds: int) -> None:
    size, image_size, strength, blur, many, few = SETTINGS[setting]
    images = make_images(many, image_size)
    makers: dict[str, tuple[int, Callable]] = {OURS: (many, stable_ssl(size, strength, blur, images))}
    missing = []
    for name, (package, make) in PEERS.items():
        try:
            makers[f"{name} ({version(package)})"] = few, make(size, strength, blur, images[:few])
        except ImportError:
            missing.append(name)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for step in range(rounds + 1):
        for name, (number, make_views) in makers.items():
            repetitions = 5 if name == OURS else 1
            start = time.perf_counter()
            for _ in range(repetitions):
                make_views()
            if step:  # the first round warms up
                rates[name].append(2 * number * repetitions / (time.perf_counter() - start))
    ours = statistics.median(rates[OURS])
    print(f"\n| {setting} | views/s | stable-ssl is faster by |\n|---|---|---|")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"| {name} | {rate:,.0f} | {'' if name == OURS else f'{ours / rate:.1f}'} |")
    for name in missing:
        print(f"| {name} | not installed | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert "numba" not in sys.modules
    start = time.perf_counter()
    import numba

    print(f"Importing numba: {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as cache:
        numba.config.CACHE_DIR = cache
        for when in ("First views, compiled", "The same at 224 px, which add the blur"):
            size = 32 if when.startswith("First") else 224
            start = time.perf_counter()
            SimCLRViews(size).make(make_images(2, 256), 0, 0, [0, 1])
            print(f"{when}: {time.perf_counter() - start:.1f} s")
    for setting in SETTINGS:
        measure(setting, 3 if arguments.quick else arguments.rounds)


if __name__ == "__main__":
    main()
