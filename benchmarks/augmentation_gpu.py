"""What `benchmarks/gpu.py` measures of views on a device: this library, kornia and torchvision v2 on the same images.

SimCLR's two views with a blur of 23 taps at p = 0.5, normalised float32 out, of uint8 images that are on the device
already. This library and kornia take the batch, torchvision v2's transforms one image at a time. Beside them: a step of
a ViT-S/16 in bf16, and a copy, whose bandwidth gives the least time in which the images could be read and the views
written.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from augmentation import kornia, torchvision_v2

from stable_ssl.augmentations import SimCLRViews


def ours(images: torch.Tensor, size: int) -> Callable:
    views, indices, epochs = SimCLRViews(size), list(range(len(images))), itertools.count()
    return lambda: views.make(images, seed=0, epoch=next(epochs), indices=indices)


def kornias(images: torch.Tensor, size: int) -> Callable:
    with torch.device(images.device):
        transform = kornia(size, 1.0, 0.5, images)
    return transform


def torchvisions(images: torch.Tensor, size: int) -> Callable:
    transform = torchvision_v2(size, 1.0, 0.5)
    planes = images.permute(0, 3, 1, 2).contiguous()
    return lambda: [[transform(image) for _ in range(2)] for image in planes]


def training_step(num_images: int, size: int, depth: int, device: str) -> Callable:
    """Return a step of a ViT-S/16 on two views of each image, forward, backward and AdamW, in bf16."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(size, 16, depth, num_heads=6, hidden_dim=384, mlp_dim=1536, num_classes=128).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(2 * num_images, 3, size, size, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def copy(num_bytes: int, device: str) -> Callable:
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def mark(device: str) -> float | torch.cuda.Event:
    """Return this moment: on CUDA that of the device's present stream, elsewhere that of the clock."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the time between two moments of `mark`."""
    if isinstance(start, float) and isinstance(end, float):
        return 1e3 * (end - start)
    end.synchronize()
    return start.elapsed_time(end)


def measure(job: Callable, rounds: int, device: str) -> tuple[float, float]:
    """Return the median milliseconds of a job on the device and in Python, after three rounds that do not count."""
    times = []
    for _ in range(rounds + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        begun, start = time.perf_counter(), mark(device)
        job()
        end, in_python = mark(device), 1e3 * (time.perf_counter() - begun)
        times.append((milliseconds(start, end), in_python))
    on_device, in_python = zip(*times[3:], strict=True)
    return statistics.median(on_device), statistics.median(in_python)
