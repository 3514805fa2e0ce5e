"""Time of classifiers on features: nearest neighbours, a grid of linear heads, and a path of logistic regressions.

    python benchmarks/heads.py [--rounds 3] [--device cpu] [--write docs/evaluate.md]
    python benchmarks/heads.py --queries 500 --bank 2000 --iterations 20 --images 500 --rounds 1

Neighbours: accuracies for k 10, 20, 100 and 200. This library searches once for all; scikit-learn's classifier and
lightly's function are called for each k, as a user must, lightly's with 256 queries at a time. Heads: 52 rates, SGD
with momentum, batches of 256; the others are fits of one torch.nn.Linear each by torch.optim.SGD, which read the same
batches. Regressions: the 45 values of C of dinov2-logreg in float64; scikit-learn begins each anew.

All run alternately in one process with one thread. Times are medians over the rounds, and ratios medians of those of
each round; times depend on the machine, so read the ratios. A first round, of a tenth of the size, does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tables import write_table
from torch import Tensor
from torch.nn import functional

from stable_ssl.evaluation.heads.linear import cosine, fit_heads
from stable_ssl.evaluation.heads.logistic import fit_logistic
from stable_ssl.evaluation.heads.nearest import knn_accuracies
from stable_ssl.evaluation.presets.published import INVERSE_PENALTIES
from stable_ssl.evaluation.protocol import Labelled

KS, TEMPERATURE, NUM_HEADS, BATCH = (10, 20, 100, 200), 0.07, 52, 256
OURS = "stable-ssl"
Contenders = dict[str, Callable[[], object]]


def features(num_images: int, args: argparse.Namespace, seed: int) -> Labelled:
    """Return noisy features around the means of their classes."""
    means = torch.randn(args.classes, args.dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(args.classes, (num_images,), generator=generator)
    noise = torch.randn(num_images, args.dim, generator=generator)
    return Labelled(means[labels] / 4 + noise, labels, args.classes)


def neighbours(args: argparse.Namespace, share: float) -> Contenders:
    from lightly.utils.benchmarking.knn import knn_predict
    from sklearn.neighbors import KNeighborsClassifier

    device = torch.device(args.device)
    bank, queries = (features(int(number * share), args, seed) for seed, number in enumerate((args.bank, args.queries)))

    def scikit_learn() -> list[float]:
        def weights(distances: np.ndarray) -> np.ndarray:
            return np.exp((1 - distances) / TEMPERATURE)

        classifiers = (KNeighborsClassifier(k, metric="cosine", weights=weights) for k in KS)
        return [one.fit(bank.features, bank.labels).score(queries.features, queries.labels) for one in classifiers]

    def lightly() -> list[float]:
        keys = functional.normalize(bank.features.to(device), dim=1).T
        labels, parts = bank.labels.to(device), functional.normalize(queries.features.to(device), dim=1).split(256)
        found = []
        for k in KS:
            classes = [knn_predict(part, keys, labels, args.classes, k, TEMPERATURE)[:, 0].cpu() for part in parts]
            found.append(float((torch.cat(classes) == queries.labels).double().mean()))
        return found

    return {
        OURS: lambda: list(knn_accuracies(bank, queries, KS, device, TEMPERATURE).values()),
        "scikit-learn": scikit_learn,
        "lightly": lightly,
    }


def heads(args: argparse.Namespace, share: float) -> Contenders:
    from stable_ssl.data.order import epoch_order

    device, train = torch.device(args.device), features(int(args.bank * share), args, 0)
    rates, schedule = torch.logspace(-4, 0, NUM_HEADS).tolist(), cosine(int(args.iterations * share))

    def batches() -> Iterator[Tensor]:
        for epoch in count():
            order = torch.tensor(epoch_order(len(train.labels), shuffle=True, sampler=None, seed=0, epoch=epoch))
            yield from order.split(BATCH)[: len(order) // BATCH]

    def alone() -> list[Tensor]:
        fits = []
        for rate in rates:
            linear = torch.nn.Linear(args.dim, args.classes).to(device)
            optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)
            for scale, batch in zip(schedule, batches(), strict=False):
                optimizer.param_groups[0]["lr"] = rate * scale
                optimizer.zero_grad()
                logits = linear(train.features[batch].to(device))
                functional.cross_entropy(logits, train.labels[batch].to(device)).backward()
                optimizer.step()
            fits.append(linear.weight.detach().cpu())
        return fits

    decays = [0.0] * NUM_HEADS
    return {
        OURS: lambda: fit_heads(train, rates, decays, schedule, 0, device, BATCH, batch_norm=False).weight.cpu(),
        "52 × torch.nn.Linear": alone,
    }


def regressions(args: argparse.Namespace, share: float) -> Contenders:
    from sklearn.linear_model import LogisticRegression

    train, penalties = features(int(args.images * share), args, 0), [one["C"] for one in INVERSE_PENALTIES]
    fits = [LogisticRegression(C=penalty, max_iter=1000, tol=1e-12) for penalty in penalties]
    return {
        OURS: lambda: fit_logistic(train, penalties, torch.device(args.device))[0].cpu(),
        "scikit-learn": lambda: [one.fit(train.features.double(), train.labels) for one in fits],
    }


def measure(contenders: Contenders, times: dict[str, list[float]]) -> None:
    for name, run in contenders.items():
        start = time.perf_counter()
        run()
        times.setdefault(name, []).append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--bank", type=int, default=50_000, help="images of the bank, and of the heads' training set")
    parser.add_argument("--images", type=int, default=10_000, help="images of the logistic regressions")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=200, help="of each head")
    parser.add_argument("--device", default="cpu", help="scikit-learn stays on the CPU")
    parser.add_argument("--write", type=Path, help="a Markdown file with <!-- heads --> … <!-- /heads -->")
    args = parser.parse_args()
    torch.set_num_threads(1)
    titles = {
        neighbours: f"neighbours of {args.queries:,} images among {args.bank:,}, four k",
        heads: f"{NUM_HEADS} linear heads, {args.iterations:,} iterations",
        regressions: f"logistic regression of {args.images:,} images, 45 C",
    }
    lines = ["| | | seconds | stable-ssl is faster by |", "|---|---|---|---|"]
    for make, title in titles.items():
        measure(make(args, 0.1), {})
        times: dict[str, list[float]] = {}
        contenders = make(args, 1)
        for _ in range(args.rounds):
            measure(contenders, times)
        for name, own in times.items():
            ratio = statistics.median(other / one for one, other in zip(times[OURS], own, strict=True))
            cells = [title if name == OURS else "", name, f"{statistics.median(own):,.2f}"]
            lines.append(f"| {' | '.join([*cells, '' if name == OURS else f'{ratio:.1f}'])} |")
            print(lines[-1], flush=True)
    lines += ["", f"Features have {args.dim} dimensions and {args.classes} classes; one thread, device {args.device}."]
    if args.write:
        write_table(args.write, "heads", lines)


if __name__ == "__main__":
    main()
