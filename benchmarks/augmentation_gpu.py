"""Views a second on a GPU: SimCLR's two views, of 224 from 256 pixels, of a batch of 256 images that is there already.

    python benchmarks/augmentation_gpu.py [--rounds 20] [--batch-size 256]

A blur of 23 taps at p = 0.5, normalised float32 out. This library is beside kornia, which takes the batch, and
torchvision v2's transforms, image by image on the device (of fewer images). All run alternately in one process; the
figures are medians over the rounds, by CUDA events for the device and by the clock for the time that Python takes.
Below them: the time of a training step of a ViT-S/16 in bf16 on the same number of images, and the least time that
reading the images and writing the views could take at the bandwidth of a copy on this device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from augmentation import kornia, make_images, torchvision_v2

from stable_ssl.augmentations import SimCLRViews

SIZE, IMAGE_SIZE, NUM_FEW = 224, 256, 16


def ours(images: torch.Tensor) -> Callable:
    views, indices = SimCLRViews(SIZE), list(range(len(images)))
    return lambda: views.make(images, seed=0, epoch=0, indices=indices)


def kornias(images: torch.Tensor) -> Callable:
    with torch.device(images.device):
        transform = kornia(SIZE, 1.0, 0.5, images)
    return transform


def torchvisions(images: torch.Tensor) -> Callable:
    transform = torchvision_v2(SIZE, 1.0, 0.5)
    planes = images.permute(0, 3, 1, 2).contiguous()
    return lambda: [[transform(image) for _ in range(2)] for image in planes]


def training_step(batch_size: int) -> Callable:
    """Return a step of a ViT-S/16 on two views of each image, forward, backward and AdamW, in bf16."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        SIZE, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=128
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(2 * batch_size, 3, SIZE, SIZE, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def milliseconds(jobs: dict[str, Callable], rounds: int) -> dict[str, tuple[float, float]]:
    """Return each job's median time on the device and in Python."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for step in range(rounds + 3):  # the first ones compile and warm up
        for name, job in jobs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begun = time.perf_counter()
            start.record()
            job()
            end.record()
            in_python = 1e3 * (time.perf_counter() - begun)
            torch.cuda.synchronize()
            if step >= 3:
                times[name].append((start.elapsed_time(end), in_python))
    medians = {}
    for name, rows in times.items():
        on_device, in_python = zip(*rows, strict=True)
        medians[name] = statistics.median(on_device), statistics.median(in_python)
    return medians


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA device here, so nothing to measure.")
        return 1
    images = torch.from_numpy(make_images(args.batch_size, IMAGE_SIZE)).cuda()
    jobs = {"stable-ssl": ours(images), "torchvision v2": torchvisions(images[:NUM_FEW])}
    try:
        jobs[f"kornia {version('kornia')}"] = kornias(images)
    except ImportError:
        print("kornia is not installed: left out.")
    jobs["a step of ViT-S/16, bf16"] = training_step(args.batch_size)
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    jobs["a copy of 256 MiB"] = lambda: target.copy_(source)
    times = milliseconds(jobs, args.rounds)

    bandwidth = 2 * source.nbytes / times["a copy of 256 MiB"][0]  # bytes a millisecond, read and written
    floor = 2 * (images.nbytes + 4 * 3 * SIZE * SIZE * len(images)) / bandwidth
    step = times["a step of ViT-S/16, bf16"][0]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batches of {args.batch_size}\n")
    print("| | views/s | stable-ssl is faster by | ms in Python | of a step |\n|---|---|---|---|---|")
    own = 2 * len(images) / times["stable-ssl"][0]
    for name, (on_device, in_python) in times.items():
        if name.startswith("a "):
            continue
        number = 2 * (NUM_FEW if name.startswith("torchvision") else len(images))
        rate = number / on_device
        share = f"{2 * len(images) / rate / step:.1%}"
        print(f"| {name} | {1e3 * rate:,.0f} | {own / rate:.1f} | {in_python:.2f} | {share} |")
    print(f"\nA step: {step:.1f} ms. Least time for the views at {bandwidth / 1e9:.2f} TB/s: {floor:.2f} ms,")
    print(f"{floor / times['stable-ssl'][0]:.0%} of what stable-ssl takes.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
