"""The command line, `stable-ssl`, with one file per command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

OF_JOBS = (
    "With --slurm, overrides may set the job too: slurm.partition=NAME, slurm.time=MINUTES (60), "
    "slurm.gpus=N (per node; 0), slurm.nodes=N (1), slurm.tasks=N (per node; as many as GPUs, at least 1), "
    "slurm.cpus=N (per task), slurm.mem=GB (per node), slurm.folder=PATH (for logs; runs/slurm), and any option of "
    "submitit by its name, such as slurm.account=NAME. A job that is preempted or reaches its time limit is "
    "requeued and goes on."
)
OLD_FORM = ("--config-path", "--config-name", "--config-dir", "-cp", "-cn", "-cd")
# What reads a sample, or builds a run, and so is in the traceback of every damaged file.
_LIBRARIES = (
    *("datasets", "fsspec", "huggingface_hub", "hydra", "hydra_plugins", "multiprocess", "numba", "numpy", "omegaconf"),
    *("PIL", "pyarrow", "safetensors", "simplejpeg", "sklearn", "submitit", "tensorboard", "timm", "torch"),
    *("torchvision", "wandb"),
)
SHOWING = (
    ["--cfg"],
    ["--info"],
    ["--hydra-help"],
)  # options of Hydra, with which a command of the older form may begin


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        The arguments. By default those of this process.

    Returns
    -------
    int
        Exit status: 0 finished, or stopped by BreakAllEpochs; 1 failed; 2 the request can't be carried out. A run that
        was asked to stop ends this process instead: with 75 at its time limit, or with 128 + n after signal n. If
        nobody reads what is printed, as with `| head -1`, it is 128 + SIGPIPE.
    """
    argv = sys.argv[1:] if argv is None else argv
    names = [argument.split("=")[0] for argument in argv]
    if names[:1] != ["train"] and (names[:1] in SHOWING or any(name in OLD_FORM for name in names)):
        argv = ["train", *argv]
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if args.command is None or unknown:
        parser.print_help(sys.stderr)
        if unknown:
            print(f"\nstable-ssl: unknown option {unknown[0]}", file=sys.stderr)
        return 2
    try:
        status = _commands()[args.command](args, rest)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _failed(error)


def entry() -> None:
    """Run the command of this process, as scripts of early 2025 do, and end the process if it fails."""
    if status := main():
        raise SystemExit(status)


def _failed(error: Exception) -> int:
    """Say why a command failed, and return its exit status."""
    from ..exceptions import SAID_ELSEWHERE, CheckpointError, ConfigError, DataError, PeerError
    from ..runtime.files import printable

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    is_of_training = any(
        (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("stable_ssl.base", "launch") for frame in frames
    )
    if _is_interrupt(error) and not is_of_training:
        return 130
    if isinstance(error, BrokenPipeError) and not is_of_training:  # nobody reads on, as with `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    is_of_peer = isinstance(error, PeerError)  # which shows its traceback itself
    if SAID_ELSEWHERE in getattr(error, "__notes__", ()) and not is_of_peer:
        return 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, ConfigError):
        print("\n".join(f"stable-ssl: {printable(problem, True)}" for problem in error.problems), file=sys.stderr)
        return 2
    is_explained = isinstance(error, CheckpointError | DataError) or _is_of_disk(error)
    if not is_of_peer and (not is_explained or _has_code_of_user(error)):
        traceback.print_exception(error)
    elif is_of_training and not is_of_peer:  # the log has the error
        print("stable-ssl: the run failed; its messages and its status.json say why.", file=sys.stderr)
    else:
        print(f"stable-ssl: {printable(str(error), True)}", file=sys.stderr)
    return 1


def _is_of_disk(error: Exception) -> bool:
    """Return whether a disk failed: it is full, over its quota or read-only, or does not answer."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
    return isinstance(error, OSError) and error.errno in codes


def _has_code_of_user(error: Exception) -> bool:
    """Return whether code that is neither of this package nor of a library that it reads with led to an error.

    The traceback of a worker process is known as a text only, so the files are looked for in the text.
    """
    from ..lines import PACKAGE, USER, owner, shown

    for file in re.findall(r'File "(.+?)", line', "".join(traceback.format_exception(error))):
        package = re.split(r"\W", shown(file, 0))[0]
        if owner(file) == USER or (owner(file) == PACKAGE and package not in _LIBRARIES):
            return True
    return False


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether an error arose from Ctrl-C. Code that it interrupts may raise another error while it cleans up."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands and their options."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="stable-ssl",
        description="Train self-supervised models.",
        epilog="Overrides have Hydra's syntax: key=value, +key=value, ~key. `trainer.` may be left out. "
        "The older form works too: stable-ssl --config-path P --config-name N [overrides] [--multirun].",
    )
    parser.add_argument("--version", action="version", version=f"stable-ssl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_pretrain(commands)
    train = commands.add_parser(
        "train",
        help="train a recipe or file, or a sweep over settings",
        epilog=OF_JOBS,
    )
    train.add_argument("source", nargs="?", metavar="RECIPE or FILE", help="a recipe's name or a YAML file")
    _add_settings(train, "changes of settings, such as optim.epochs=20 hardware.seed=1")
    train.add_argument("-m", "--multirun", action="store_true", help="run a sweep: key=1,2 gives two runs")
    train.add_argument("--slurm", action="store_true", help="submit a Slurm job, or a job array for a sweep")
    _add_no_check(train)
    _add_older_form(train)
    _add_options_of_hydra(train)
    _add_check(commands)
    resume = commands.add_parser("resume", help="go on with a run that was interrupted", epilog=OF_JOBS)
    resume.add_argument("run", nargs="?", metavar="RUN", help="the run's folder (the newest unfinished run in runs/)")
    _add_settings(resume, "changes of settings that may differ, such as data.train.num_workers=4")
    resume.add_argument("--slurm", action="store_true", help="go on in a Slurm job")
    _add_no_check(resume)
    branch = commands.add_parser(
        "branch",
        help="begin a new run from a checkpoint of another one, with changes",
        epilog="The new run has the other one's configuration with the overrides, and goes on with its weights, steps, "
        "epochs and place in the schedule. The log says what is not taken over. The other run's folder is only read. "
        + OF_JOBS,
    )
    branch.add_argument("run", metavar="RUN", help="the other run's folder")
    _add_settings(branch, "changes of settings, such as optim.optimizer.lr=0.01")
    branch.add_argument("--step", type=int, metavar="N", help="global step of the checkpoint (the newest valid one)")
    branch.add_argument(
        "--out", metavar="NEW", help="the new run's folder (a new one in `runs/` of RUN's working folder)"
    )
    branch.add_argument("--restart-schedule", action="store_true", help="begin the schedule anew for the epochs left")
    branch.add_argument("--slurm", action="store_true", help="train the branch in a Slurm job")
    _add_no_check(branch)
    _add_views(commands)
    _add_prepare(commands)
    _add_eval(commands)
    _add_embed(commands)
    _add_export(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or show one")
    recipes.add_argument("action", nargs="?", choices=["show"], help="print a recipe's whole configuration")
    recipes.add_argument("name", nargs="?", help="the recipe's name")
    return parser


def _add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the arguments of the form key=value."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)


def _add_no_check(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves out the check before a run."""
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="leave out the quick check of the configuration and the first samples before a job is submitted, as on a "
        "login node without the data",
    )


def _add_older_form(parser: argparse.ArgumentParser) -> None:
    """Add the options of the older form of `train`, which name a file."""
    for short, option in (("-cp", "--config-path"), ("-cd", "--config-dir"), ("-cn", "--config-name")):
        parser.add_argument(short, option, help=argparse.SUPPRESS)


def _add_check(commands: Any) -> None:
    """Add the command `check`."""
    check = commands.add_parser(
        "check",
        help="find out what can be known about a run before it waits in a queue",
        epilog="It takes what `train` takes, needs no GPU, and downloads nothing. Exit status: 0, also with warnings; "
        "2 if the run certainly fails; 1 if the check itself broke. With --slurm it looks at the job too.",
    )
    check.add_argument("source", nargs="?", metavar="RECIPE or FILE", help="a recipe's name or a YAML file")
    _add_settings(check, "changes of settings, as for train")
    check.add_argument(
        "--device",
        metavar="NAME",
        help="the card of the run, such as h100-80gb, a100-40gb or rtx4090, or its memory, such as 24gb",
    )
    check.add_argument("-m", "--multirun", action="store_true", help="a sweep: its first run, and the others in brief")
    check.add_argument("--world-size", type=int, metavar="N", help="number of processes, one per card (as configured)")
    check.add_argument("--all-data", action="store_true", help="read all samples, instead of 100 of each set")
    check.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    check.add_argument("--slurm", action="store_true", help="the run will be a Slurm job; slurm.time=MINUTES and so on")
    _add_older_form(check)


def _add_pretrain(commands: Any) -> None:
    """Add the command `pretrain`."""
    pretrain = commands.add_parser(
        "pretrain",
        help="train a backbone on a folder of images",
        epilog="The same line goes on with a run that was interrupted. All else can be set by key=value, such as "
        "views=writing for writing and symbols; the run's config.yaml holds everything.",
    )
    pretrain.add_argument("folder", metavar="FOLDER", help="the folder of the images, however deep they are")
    _add_settings(pretrain, "changes of settings, such as optim.optimizer.lr=0.001")
    for option, metavar, text in (
        ("--method", "M", "how it learns (simclr); `stable-ssl recipes` lists the methods"),
        ("--backbone", "B", "the network (resnet9), or timm/NAME"),
        ("--size", "N", "height and width of the views, in pixels (follows from the images)"),
        ("--epochs", "N", "how often each image is seen (100, or down to 20 if they are many or large)"),
        ("--minutes", "N", "how long to train: a few steps are timed first"),
        ("--labels", "L", "folder, a CSV file with the columns path,label, or none: labels only measure"),
        ("--out", "DIR", "the run's folder (runs/pretrain_<FOLDER>_<hash of the arguments>)"),
    ):
        pretrain.add_argument(option, metavar=metavar, help=text)
    pretrain.add_argument("--no-check", action="store_true", help="leave out the quick check before training")


def _add_views(commands: Any) -> None:
    """Add the command `views`."""
    views = commands.add_parser("views", help="draw samples and their views, with the parameters of each view")
    views.add_argument("source", metavar="RECIPE or FILE", help="a recipe's name or a YAML file")
    _add_settings(views, "changes of settings, such as hardware.seed=1")
    views.add_argument("--out", default="views.png", metavar="FILE", help="the picture's file (views.png)")
    views.add_argument("--samples", type=int, default=6, metavar="N", help="number of samples (6)")
    views.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch whose views are drawn (0)")


def _add_eval(commands: Any) -> None:
    """Add the command `eval`."""
    evaluation = commands.add_parser(
        "eval",
        help="measure what the features of a run, or of any network, are worth",
        epilog="key=value changes settings of a recipe in --data, such as root=/data, or of a folder, such as "
        "on_error=skip. The records go to the folder `evaluations` of each run. docs/evaluate.md states each protocol "
        "in full.",
    )
    evaluation.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a run, a file of weights, timm/NAME or torchvision/NAME"
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    evaluation.add_argument("--protocol", **several, metavar="NAME", help="how to measure (held-out)")
    evaluation.add_argument(
        "--data", **several, metavar="D", help="a folder, a file of `prepare`, or a recipe of data (the run's own sets)"
    )
    evaluation.add_argument("--seeds", type=int, metavar="N", help="how often it is repeated (as the protocol says)")
    evaluation.add_argument("--epochs", type=int, metavar="N", help="of a protocol that trains (as it says)")
    evaluation.add_argument("--few-shot", metavar="N", help="it trains on N images, or N%%, of each class (on all)")
    _add_reading(evaluation)
    evaluation.add_argument("--json", action="store_true", help="print the records as JSON")
    evaluation.add_argument("--out", metavar="DIR", help="where the records go (each run's folder `evaluations`)")


def _add_embed(commands: Any) -> None:
    """Add the command `embed`."""
    embed = commands.add_parser(
        "embed",
        help="write the features of images to a file",
        epilog="key=value changes settings of a recipe as DATA, such as root=/data, or of a folder, such as "
        "on_error=skip.",
    )
    embed.add_argument("source", metavar="SOURCE", help="a run, a file of weights, timm/NAME or torchvision/NAME")
    embed.add_argument("data", metavar="DATA", help="a folder, a file of `prepare`, or a recipe of data")
    embed.add_argument("settings", nargs="*", metavar="key=value", help="changes of a recipe's or folder's settings")
    embed.add_argument(
        "--neighbours", type=int, default=0, metavar="K", help="the nearest neighbours of each image (0)"
    )
    _add_reading(embed)
    embed.add_argument("--out", metavar="FILE", help="a .parquet or .npz file (features.parquet)")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how features are computed."""
    for option, metavar, kind, text in (
        ("--labels", "L", str, "folder, none, or a CSV file with the columns path,label (folder)"),
        ("--backbone", "NAME", str, "the network that a file of weights of no run is of"),
        ("--size", "N", str, "height and width of the images, or native: as the source sees them"),
        ("--device", "NAME", str, "where to compute (auto)"),
        ("--batch", "N", int, "images that go through the network at a time (256)"),
        ("--workers", "N", int, "processes that read images (0: threads)"),
        ("--world-size", "N", int, "processes that compute features (1)"),
        ("--cache", "DIR", str, "where features are kept, or none (~/.cache/stable_ssl/features)"),
        ("--cache-limit", "GB", float, "how large that folder may be (20)"),
    ):
        parser.add_argument(option, metavar=metavar, type=kind, help=text)
    parser.add_argument("--features", nargs="+", action="extend", metavar="F", help="such as class+patches")
    parser.add_argument("--network", choices=["teacher", "student"], help="of a run that has both (as it evaluates)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="of the network (fp32)")


def _add_prepare(commands: Any) -> None:
    """Add the command `prepare`."""
    prepare = commands.add_parser(
        "prepare",
        help="write a folder's images into one file that is read fast",
        epilog="The same line goes on with a file that is not complete.",
    )
    prepare.add_argument("folder", metavar="FOLDER", help="the folder; all images below it are taken")
    prepare.add_argument(
        "--format", choices=["jpeg", "yuv", "raw"], default="jpeg", help="how images are stored (jpeg)"
    )
    prepare.add_argument(
        "--size", type=int, default=256, metavar="N", help="the shorter side of larger images; 0 keeps all sizes (256)"
    )
    prepare.add_argument(
        "--labels", default="none", metavar="L", help="none, folder, or a CSV file of path,label (none)"
    )
    prepare.add_argument("--out", metavar="FILE", help="the file (FOLDER_FORMAT_SIZE.images)")
    prepare.add_argument(
        "--quality", type=int, default=90, metavar="Q", help="of JPEGs that are encoded, 1 to 100 (90)"
    )
    prepare.add_argument(
        "--subsampling", choices=["420", "422", "444"], default="420", help="of JPEGs that are encoded (420)"
    )
    prepare.add_argument(
        "--levels", type=float, nargs=2, metavar=("LOW", "HIGH"), help="levels that become 0 and 255, beyond 8 bits"
    )
    prepare.add_argument("--channels", type=int, choices=[1, 3], help="1: grey, 3: RGB (as the images are)")
    prepare.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="what happens to files that can't be read (raise)",
    )
    prepare.add_argument("--verify", action="store_true", help="FOLDER is a file: read all its images back")


def _add_export(commands: Any) -> None:
    """Add the command `export`."""
    export = commands.add_parser(
        "export",
        help="write a run's backbone in the format of another library",
        epilog="The library itself loads what was written, and features are compared, before the folder gets its name.",
    )
    export.add_argument("run", metavar="RUN", help="a run's folder, file of weights, or folder of a checkpoint")
    export.add_argument("--to", required=True, metavar="FORMAT", help="torchvision, timm, huggingface or onnx")
    export.add_argument("--out", metavar="DIR", help="the folder to write (exports/FORMAT in the run's folder)")
    named = "teacher, student, or a module such as encoder (the network that the run is evaluated by)"
    export.add_argument("--network", metavar="NAME", help=named)


def _add_options_of_hydra(parser: argparse.ArgumentParser) -> None:
    """Add the options of Hydra's own command line that show a configuration, or tell of Hydra, instead of training."""
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}
    infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"], **hidden)
    parser.add_argument("-p", "--package", **hidden)
    parser.add_argument("--resolve", action="store_true", **hidden)
    parser.add_argument("-i", "--info", nargs="?", const="all", choices=infos, **hidden)
    parser.add_argument("--hydra-help", action="store_true", **hidden)
    parser.add_argument("-r", "--run", action="store_true", **hidden)  # what a command without -m does anyway


def _commands() -> dict[str, Callable[[argparse.Namespace, list[str]], int]]:
    from importlib import import_module

    names = ("pretrain", "train", "check", "resume", "branch", "views", "prepare", "eval", "embed", "export", "recipes")
    return {name: lambda *args, name=name: import_module(f"{__name__}.{name}").main(*args) for name in names}
