"""Writes the folder of a short run that was preempted, and how it ends if it is left alone, for `tests/resume`.

    python tests/data/write_run.py tests/data/runs/behaviour_N

Before a change raises `behaviour` to N + 1, the version before it writes the folder of behaviour N in this way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

VIEW = {
    "_target_": "stable_ssl.augmentations.View",
    "operations": [{"_target_": "stable_ssl.augmentations.Affine", "degrees": 15, "translate": [0.1, 0.1]}],
}
MULTI_VIEW = {"_target_": "stable_ssl.augmentations.MultiView", "views": [VIEW, VIEW]}
DIGITS = "stable_ssl.data.Digits"
CONFIG = {
    "_target_": "stable_ssl.trainers.JointEmbeddingTrainer",
    "data": {
        "train": {
            "_target_": "stable_ssl.data.Loader",
            "dataset": {"_target_": DIGITS, "split": "train"},
            "batch_size": 32, "shuffle": True, "drop_last": True, "views": MULTI_VIEW,
        },
        "test": {
            "_target_": "stable_ssl.data.Loader",
            "dataset": {"_target_": DIGITS, "split": "test"},
            "batch_size": 256,
        },
    },
    "module": {
        "backbone": {"_target_": "stable_ssl.modules.load_backbone", "name": "resnet9", "in_channels": 1,
                     "widths": [2, 4, 4, 8]},
        "projector": {"_target_": "stable_ssl.modules.MLP", "sizes": [8, 8, 4]},
        "backbone_classifier": {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 10},
    },
    "hardware": {"seed": 3, "device": "cpu"},
    "optim": {
        "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.002},
        "scheduler": {"_target_": "stable_ssl.schedulers.LinearWarmupCosineAnnealing", "_partial_": True,
                      "peak_step": 0.1},
        "epochs": 2, "max_steps": 8, "accumulation_steps": 2,
    },
    "logger": {
        "metric": {"test": {"accuracy": {"_target_": "torchmetrics.classification.MulticlassAccuracy",
                                         "num_classes": 10, "average": "micro"}}},
        "monitor": {"train": {"rankme": {"_target_": "stable_ssl.monitors.RankMe"}}},
        "log_every_step": 1, "checkpoint_keep": 1, "save_final_model": True, "level": 40,
    },
    "loss": {"_target_": "stable_ssl.losses.NTXEntLoss", "temperature": 0.5},
}  # fmt: skip


def train(folder: Path, stops_at: int | None = None) -> None:
    """Make the run. It gets a signal after its optimizer step `stops_at`."""
    import torch

    from stable_ssl import instanciate_config

    torch.set_num_threads(1)
    trainer = instanciate_config({"trainer": {**CONFIG, "logger": {**CONFIG["logger"], "dump_path": str(folder)}}})

    def after_fit_step() -> None:
        if trainer.stepped and trainer.global_step == stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.after_fit_step = after_fit_step
    trainer()


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        stopped, whole = Path(temporary) / "preempted", Path(temporary) / "whole"
        with contextlib.suppress(SystemExit):
            train(stopped, stops_at=3)
        train(whole)
        (meta,) = stopped.glob("checkpoints/step_*/meta.json")
        # Of the place where it was written, nothing is kept.
        found = json.loads(meta.read_text())
        for key in ("working_folder", "import_from"):
            (found.get("config") or {}).pop(key, None)
        meta.write_text(json.dumps(found, indent=1))
        config = (stopped / "config.yaml").read_text()
        config = re.sub(r"^(working_folder|import_from):.*\n(^[- ] .*\n)*", "", config, flags=re.MULTILINE)
        (out / "preempted").mkdir(parents=True)
        (out / "preempted" / "config.yaml").write_text(config)
        for name in ("metrics.jsonl", "checkpoints"):
            (shutil.copytree if name == "checkpoints" else shutil.copy)(stopped / name, out / "preempted" / name)
        progress = found["progress"]
        status = {"format": 1, "status": "preempted", "progress": progress, "time": 0.0, "pid": 1}
        (out / "preempted" / "status.json").write_text(json.dumps(status))
        (out / "ending").mkdir()
        shutil.copy(whole / "metrics.jsonl", out / "ending")
        shutil.copy(whole / "weights" / "final.safetensors", out / "ending")


if __name__ == "__main__":
    main()
