"""The picture of the README, docs/views.png: a photograph that scikit-learn ships, and SimCLR's two views of it.

python benchmarks/picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from stable_ssl.cli import main

PICTURE = Path(__file__).parent.parent / "docs/views.png"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            for number in range(2):  # a class needs another one beside it
                path = Path(folder, split, str(number), "flower.jpg")
                path.parent.mkdir(parents=True)
                Image.fromarray(load_sample_image("flower.jpg")).save(path)
        recipe = ["simclr", "data=folder", f"root={folder}", "backbone=resnet9", "size=192", "data.train.batch_size=2"]
        raise SystemExit(main(["views", *recipe, "--samples", "1", "--out", str(PICTURE)]))
