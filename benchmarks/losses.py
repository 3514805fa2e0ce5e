"""Time and memory of NT-Xent, forward and backward, beside lightly's: embeddings of 128 dimensions on the CPU.

    python benchmarks/losses.py [--images 1024 4096 16384] [--rounds 3]

`benchmarks/gpu.py` does the same on a GPU.

Two views of each image, so that a batch of 16,384 images has 32,768 embeddings. Each measurement runs in a process of
its own; memory is the peak of the process above what it had before, time the median of the rounds. lightly's is left
out where its similarities alone would take more than half of the free memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

DIM = 128


def make(which: str) -> Callable:
    """Return the loss of a library."""
    if which == "stable-ssl":
        from stable_ssl.losses import NTXEntLoss

        return NTXEntLoss(0.5)
    from lightly.loss import NTXentLoss

    return NTXentLoss(0.5)


def measure(which: str, num_images: int, rounds: int) -> None:
    """Print median seconds and peak MB of one loss."""
    import torch

    loss = make(which)
    views = [torch.randn(num_images, DIM, requires_grad=True) for _ in range(2)]
    loss(*(view[:8] for view in views)).backward()
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(rounds):
        start = time.perf_counter()
        loss(*views).backward()
        times.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": statistics.median(times), "megabytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.images[0], args.rounds)
        return
    import os

    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    print("| embeddings | stable-ssl, s | MB | lightly, s | MB |\n|---|---|---|---|---|")
    for num_images in args.images:
        cells = [f"{2 * num_images:,} × {DIM}"]
        for which in ("stable-ssl", "lightly"):
            if which == "lightly" and 4 * (2 * num_images) ** 2 > free / 2:
                cells += ["not run", f"(similarities: {4 * (2 * num_images) ** 2 / 2**20:,.0f} each)"]
                continue
            command = [sys.executable, __file__, "--measure", which, "--images", str(num_images)]
            done = subprocess.run([*command, "--rounds", str(args.rounds)], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            cells += [f"{found['seconds']:.2f}", f"{found['megabytes']:,.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
