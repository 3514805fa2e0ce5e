"""Pretrain SimCLR on handwritten digits without labels, then see what ten labels per class are worth.

python examples/demo.py [--seed 0] [overrides of the recipe simclr_digits]
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stable_ssl import instanciate_config
from stable_ssl.compose import compose
from stable_ssl.data import Digits

LABELS_PER_CLASS = 10
NUM_DRAWS = 20


@torch.no_grad()
def features(network, dataset):
    """Return the features of a whole data set, (samples, dim)."""
    images = torch.stack([image for image, _ in dataset])
    return network.eval()(images).flatten(1).numpy()


def few_label_accuracy(network):
    """Return the accuracies of a linear classifier on held-out digits, one a draw of the labels."""
    train, test = Digits("train"), Digits("test")
    x, y = features(network, train), np.array(train.targets)
    x_test, y_test = features(network, test), np.array(test.targets)
    accuracies = []
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng(draw)
        chosen = np.concatenate(
            [rng.choice(np.flatnonzero(y == digit), LABELS_PER_CLASS, replace=False) for digit in range(10)]
        )
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        accuracies.append(classifier.fit(x[chosen], y[chosen]).score(x_test, y_test))
    return np.array(accuracies)


def run(overrides):
    """Pretrain; return accuracies by row of the table, and the run's folder."""
    trainer = instanciate_config(compose("simclr_digits", overrides))
    trainer.setup()
    untrained = copy.deepcopy(trainer.module["backbone"])
    trainer.launch()
    rows = {
        "raw pixels": few_label_accuracy(torch.nn.Identity()),
        "untrained backbone": few_label_accuracy(untrained),
        "SimCLR, pretrained without labels": few_label_accuracy(trainer.module["backbone"].cpu()),
    }
    return rows, trainer.folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    args, overrides = parser.parse_known_args()
    rows, folder = run([f"hardware.seed={args.seed}", *overrides])
    table = Table(title=f"Linear classifier on {LABELS_PER_CLASS} labels per class, {NUM_DRAWS} draws, held-out digits")
    table.add_column("features")
    table.add_column("accuracy", justify="right")
    table.add_column("standard error", justify="right")
    for name, accuracies in rows.items():
        error = accuracies.std(ddof=1) / len(accuracies) ** 0.5
        table.add_row(name, f"{accuracies.mean():.3f}", f"{error:.3f}")
    console = Console()
    console.print(table)
    console.print(f"The run is in {folder}: metrics.jsonl, config.yaml, checkpoints and weights.", soft_wrap=True)


if __name__ == "__main__":
    main()
