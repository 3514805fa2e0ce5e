"""Checks that a change leaves training as it was: the same short runs on two trees, compared to the bit.

    python benchmarks/same.py REF [--only simclr mae] [--keep FOLDER]

REF is a commit. It is checked out into a worktree of its own, and every run below is made twice, by REF's source and
by the source beside this script. Weights, optimizer state, queues and all else that a checkpoint holds, the views of
each step, and `metrics.jsonl` (without `perf/`) must be equal to the bit. Sections and parts that REF's checkpoints
lack are named and not compared. No digest is stored: both trees compute on the same machine, with the same libraries.
Exit status 1 if anything differs.

The runs are SimCLR, DINO, MAE, I-JEPA and SwAV on scikit-learn's digits, for 20 optimizer steps in 2 epochs, with
probes, RankMe, an accuracy and the nearest neighbours. Each is made three times: by one process; by one process that
accumulates gradients, is killed in the middle of an epoch and goes on; and by two processes, which are killed as well.
Two more runs hold what is left: streams with clipping and a schedule, and a supervised run in bf16 with LARS.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
STEPS_PER_EPOCH, EPOCHS, BATCH = 10, 2, 32
DIES_AT = 14  # in the second epoch, two steps after a checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {"ranks": 1, "accumulation": 1, "dies": False},
    "accumulated, killed": {"ranks": 1, "accumulation": 2, "dies": True},
    "two ranks, killed": {"ranks": 2, "accumulation": 1, "dies": True},
}
EXTRA: dict[str, dict[str, Any]] = {
    "stream": {"ranks": 1, "accumulation": 3, "dies": True},
    "supervised": {"ranks": 2, "accumulation": 2, "dies": False},
}


# The runs, in public names of the library only: both trees must know them -------------------------------------------


def _parts(method: str) -> tuple[Any, Any, dict[str, Any], Any, dict[str, Any]]:
    """Return the trainer's class, loss, modules, views, and the trainer's own arguments."""
    from torch import nn

    from stable_ssl import losses, modules, trainers
    from stable_ssl.augmentations import Affine, BlockMasks, MultiView, RandomMask, RandomResizedCrop, View

    view = View([RandomResizedCrop(16, (0.5, 1.0)), Affine(degrees=10, translate=(0.1, 0.1))])
    local = View([RandomResizedCrop(8, (0.3, 0.6))])
    two, four = MultiView([view, view]), MultiView([view, view, local, local])
    vit = functools.partial(modules.ViT, 16, 4, dim=32, depth=2, num_heads=2, in_channels=1)
    predictor = functools.partial(modules.PatchPredictor, (4, 4), 32, hidden_dim=16, depth=1, num_heads=2)

    def backbone() -> nn.Module:
        convolutions = nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 32))

    def head() -> nn.Module:
        return modules.MLP([32, 32, 16])

    taught = functools.partial(modules.TeacherStudentModule, base_ema_coefficient=0.9)
    dino_head = functools.partial(modules.DINOHead, 32, out_dim=16, hidden_dim=16, bottleneck_dim=8)
    return {
        "simclr": lambda: (
            trainers.JointEmbeddingTrainer,
            losses.NTXEntLoss(0.2),
            {"backbone": backbone(), "projector": head(), "projector_classifier": nn.Linear(16, 10)},
            two,
            {},
        ),
        "dino": lambda: (
            trainers.DINOTrainer,
            None,
            {"backbone": taught(backbone()), "projector": taught(dino_head())},
            four,
            {"warmup_epochs_temperature_teacher": 2},
        ),
        "swav": lambda: (
            trainers.ClusteringTrainer,
            losses.SwAVLoss(16, 12, queue_size=64),
            {"backbone": backbone(), "projector": head()},
            four,
            {"queue_start_epoch": 1},
        ),
        "ijepa": lambda: (
            trainers.IJEPATrainer,
            losses.IJEPALoss(),
            {"context_encoder": vit(), "target_encoder": vit(), "predictor": predictor(32)},
            MultiView([view], [BlockMasks((4, 4), num_targets=2, min_context=2)]),
            {"base_ema_coefficient": 0.9},
        ),
        "mae": lambda: (
            trainers.MaskedTrainer,
            losses.MAELoss(),
            {"backbone": vit(), "decoder": predictor(16)},
            MultiView([view], [RandomMask((4, 4), 0.75)]),
            {},
        ),
        "stream": lambda: (trainers.SupervisedTrainer, None, {"backbone": _classifier()}, None, {}),
        "supervised": lambda: (trainers.SupervisedTrainer, None, {"backbone": _classifier()}, view, {}),
    }[method]()


def _classifier() -> Any:
    from torch import nn

    hidden = nn.Linear(256, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


class Stream:
    """Batches without a length, drawn from the default generators; it can't say where it stands."""

    def __iter__(self) -> Iterator[Any]:
        import torch

        while True:
            yield [torch.rand(BATCH, 1, 16, 16), torch.randint(10, (BATCH,))]


def _options(method: str, accumulation: int) -> dict[str, Any]:
    """Return `hardware` and `optim`: what differs between methods differs so that all of it is covered."""
    import torch

    from stable_ssl.optimizers import LARS
    from stable_ssl.schedulers import LinearWarmupCosineAnnealing

    optim: dict[str, Any] = {
        "optimizer": functools.partial(torch.optim.AdamW, lr=2e-3),
        "epochs": EPOCHS,
        "max_steps": STEPS_PER_EPOCH * accumulation,
        "accumulation_steps": accumulation,
    }
    if method in ("dino", "mae", "stream"):
        optim["grad_max_norm"] = 1.0
    if method in ("simclr", "stream"):
        schedule = functools.partial(LinearWarmupCosineAnnealing, peak_step=0.1)  # the default differs between versions
        optim.update(scheduler=schedule, exclude_bias_norm=True)
    if method == "supervised":
        optim.update(lr_batch_size=64, optimizer=functools.partial(LARS, lr=0.1, momentum=0.9), nonfinite="skip")
    return {"hardware": {"device": "cpu", "precision": "bf16" if method == "supervised" else "fp32"}, "optim": optim}


def train(method: str, folder: Path, accumulation: int, dies_at: int | None, hardware: dict | None = None) -> None:
    """Make one run, or go on with it; in step `dies_at` the process kills itself. `hardware` changes settings."""
    import torch
    from torch import nn
    from torchmetrics.classification import MulticlassAccuracy

    from stable_ssl.data import Digits, Loader
    from stable_ssl.monitors import KNN, RankMe

    torch.manual_seed(0)
    base, loss, networks, views, own = _parts(method)
    is_ssl = method not in ("stream", "supervised")
    if is_ssl:
        networks["backbone_classifier"] = nn.Linear(32, 10)
    rank = os.environ.get("RANK", "0")

    class Watched(base):  # type: ignore[misc, valid-type]
        def before_fit_step(self) -> None:
            with open(folder / f"views_{rank}.txt", "a") as file:
                file.write(f"{self.epoch} {self.batch_idx} {_digest(self.batch)}\n")

        def compute_loss(self) -> Any:
            if self.global_step + 1 == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().compute_loss()

    options = _options(method, accumulation)
    options["hardware"].update(hardware or {})
    folder.mkdir(parents=True, exist_ok=True)
    size = BATCH // int(os.environ.get("WORLD_SIZE", "1"))
    train_set: Any = (
        Stream() if method == "stream" else Loader(Digits("train"), size, views=views, shuffle=True, drop_last=True)
    )
    held_out = {
        "test": Loader(Digits("test"), 100),
        "bank": Loader(torch.utils.data.Subset(Digits("train"), range(200)), 64),
    }
    monitor = {"train": {"rankme": RankMe()}, "test": {"knn": KNN("bank", k=5)}} if is_ssl else {}
    Watched(
        data={"train": train_set, **(held_out if is_ssl else {"test": held_out["test"]})},
        module=networks,
        **options,
        logger={
            "dump_path": folder,
            "level": 40,
            "log_every_step": 3,
            "checkpoint_every_step": 6,
            "checkpoint_keep": 100,
            "save_final_model": True,
            "metric": {"test": {"accuracy": MulticlassAccuracy(10)}},
            "monitor": monitor,
        },
        loss=loss,
        **own,
    )()


def _bytes(tensor: Any) -> bytes:
    """Return the values of a tensor of any type, which may be one that NumPy lacks."""
    import torch

    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _digest(batch: Any) -> str:
    from torch.utils._pytree import tree_leaves

    found = hashlib.sha256()
    for leaf in tree_leaves(batch):
        found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode() + _bytes(leaf))
    return found.hexdigest()


# One tree's side: each run in processes of its own -------------------------------------------------------------------


def _rank(rank: int, size: int, port: int, arguments: tuple) -> None:
    if size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    import torch

    torch.set_num_threads(1)
    train(*arguments)


def start(size: int, arguments: tuple) -> list[int]:
    """Return the exit statuses of the processes of one run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stable_ssl.trainers", "torchmetrics.classification", "sklearn.datasets"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_rank, args=(rank, size, port, arguments)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def make_runs(folder: Path, names: list[str]) -> None:
    """Make the named runs, each in its folder."""
    for name in names:
        method, variant = name.split(": ")
        how = {**VARIANTS, **EXTRA}[variant]
        run = folder / name
        if how["dies"]:
            statuses = start(how["ranks"], (method, run, how["accumulation"], DIES_AT))
            assert set(statuses) == {-signal.SIGKILL}, f"{name}: was not killed, but ended with {statuses}."
        statuses = start(how["ranks"], (method, run, how["accumulation"], None))
        assert set(statuses) == {0}, f"{name}: ended with {statuses}."


# The comparison ------------------------------------------------------------------------------------------------------


def differences(one: Any, other: Any, path: str) -> Iterator[str]:
    """Yield the place of each difference between two nested states."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        # As bytes: NaN equals itself, and 0 is not -0.
        if one.dtype != other.dtype or one.shape != other.shape or _bytes(one) != _bytes(other):
            yield path
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key, "missing"), other.get(key, "missing"), f"{path}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif type(one) is not type(other) or repr(one) != repr(other):
        yield f"{path} ({one!r} and {other!r})" if len(repr(one) + repr(other)) < 100 else path


def outcome(run: Path) -> dict[str, Any]:
    """Return what a run left behind: every checkpoint, the final weights, its records, and its views by step."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(run.glob("checkpoints/step_*")):
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        del state["log_position"]  # in bytes, some of which are of `perf/`
        found[path.name] = state
    found["final weights"] = load_file(run / "weights" / "final.safetensors")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = [{k: v for k, v in record.items() if not k.startswith("perf/")} for record in records]
    for path in sorted(run.glob("views_*.txt")):
        views: dict[str, set[str]] = {}  # of each mini-batch; those after the checkpoint were seen twice
        for line in path.read_text().splitlines():
            place, _, digest = line.rpartition(" ")
            views.setdefault(place, set()).add(digest)
        found[path.stem] = {place: sorted(digests) for place, digests in views.items()}
    return found


def _take_added_sections(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Remove from later checkpoints the sections and parts that earlier ones lack, and return their names."""
    added = set()
    for name in before.keys() & after.keys():
        if name.startswith("step_"):
            for old, new in ((before[name], after[name]), (before[name]["parts"], after[name]["parts"])):
                names = new.keys() - old.keys()
                added |= names
                for each in names:
                    del new[each]
    return added


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", help="the commit to compare with")
    parser.add_argument("--only", nargs="*", default=[], metavar="METHOD", help="leave out the other methods")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs there")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)  # what a tree's own process is told
    args = parser.parse_args()
    methods = [name for name in ("simclr", "dino", "mae", "ijepa", "swav") if not args.only or name in args.only]
    names = [f"{method}: {variant}" for method in methods for variant in VARIANTS]
    names += [f"{name}: {name}" for name in EXTRA if not args.only or name in args.only]
    if args.make:
        make_runs(args.make, names)
        return 0
    if args.keep and args.keep.exists() and any(args.keep.iterdir()):
        parser.error(f"--keep: '{args.keep}' is not empty, and runs in it would go on.")
    with tempfile.TemporaryDirectory(prefix="same_") as temporary:
        folder, tree = args.keep or Path(temporary), Path(temporary) / "tree"
        root = HERE.parent.parent
        subprocess.run(["git", "-C", root, "worktree", "add", "--quiet", "--detach", tree, args.ref], check=True)
        try:
            begun = time.monotonic()
            command = [sys.executable, str(HERE), args.ref, *(["--only", *args.only] if args.only else [])]
            sides = {"before": tree / "src", "after": root / "src"}
            started = [
                subprocess.Popen(
                    [*command, "--make", str(folder / side)],
                    env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
                )
                for side, source in sides.items()
            ]
            if any([process.wait() for process in started]):
                print("A run failed.")
                return 1
        finally:
            subprocess.run(["git", "-C", root, "worktree", "remove", "--force", tree], check=True)
        num_different = 0
        for name in names:
            before, after = (outcome(folder / side / name) for side in sides)
            added = _take_added_sections(before, after)
            found = list(differences(before, after, ""))
            num_different += bool(found)
            num_steps = max(state["progress"]["global_step"] for key, state in after.items() if key.startswith("step_"))
            what = f"{num_steps} steps, {sum(key.startswith('step_') for key in after)} checkpoints"
            what += f"; new in checkpoints: {', '.join(sorted(added))}" if added else ""
            print(f"{'same' if not found else 'DIFFERENT':10} {name} ({what})")
            for place in found[:8]:
                print(f"    {place.lstrip('.')}")
            if len(found) > 8:
                print(f"    and {len(found) - 8} more")
    num_same, seconds = len(names) - num_different, time.monotonic() - begun
    print(f"{num_same} of {len(names)} runs are the same as at {args.ref} ({seconds:.0f} s).")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main())
