"""The command line, `stable-ssl`: one file a command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import sys
import traceback

OLD_FORM = ("--config-path", "--config-name", "--config-dir", "-cp", "-cn", "-cd")


def main(argv: list[str] | None = None) -> int:
    """Run a command, and return its exit status.

    0: finished, or stopped by BreakAllEpochs. 1: failed. 2: bad request. 75: time limit. 128 + n: saved after signal n.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] != ["train"] and any(argument.split("=")[0] in OLD_FORM for argument in argv):
        argv = ["train", *argv]
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if args.command is None or unknown:
        parser.print_help(sys.stderr)
        if unknown:
            print(f"\nstable-ssl: unknown option {unknown[0]}", file=sys.stderr)
        return 2
    from ..exceptions import ConfigError

    try:
        return _commands()[args.command](args, rest)
    except ConfigError as error:
        print("\n".join(f"stable-ssl: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="stable-ssl",
        description="Train self-supervised models.",
        epilog="Overrides are Hydra's: key=value, +key=value, ~key; `trainer.` may be left out. "
        "The older form works too: stable-ssl --config-path P --config-name N [overrides] [--multirun].",
    )
    parser.add_argument("--version", action="version", version=f"stable-ssl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="a run, or a sweep of runs",
        epilog="With --slurm, settings of the job are overrides too: slurm.partition=NAME slurm.time=MINUTES (60) "
        "slurm.gpus=N (a node; 0) slurm.nodes=N (1) slurm.tasks=N (a node; as many as GPUs, at least 1) slurm.cpus=N "
        "(a task) slurm.mem=GB (a node) slurm.folder=PATH (for logs; runs/slurm), and submitit's by their names, as "
        "slurm.account=NAME. A job that is preempted or reaches its time limit is requeued, and goes on.",
    )
    train.add_argument("source", nargs="?", metavar="RECIPE or FILE", help="a recipe's name, or a YAML file")
    train.add_argument("overrides", nargs="*", help="e.g. optim.epochs=20 hardware.seed=1")
    train.add_argument("-m", "--multirun", action="store_true", help="a sweep: key=1,2 gives two runs")
    train.add_argument("--slurm", action="store_true", help="as a Slurm job; a sweep as a job array")
    for short, option in (("-cp", "--config-path"), ("-cd", "--config-dir"), ("-cn", "--config-name")):
        train.add_argument(short, option, help=argparse.SUPPRESS)
    resume = commands.add_parser("resume", help="go on with a run")
    resume.add_argument("run", nargs="?", metavar="RUN", help="its folder; else the newest unfinished one in runs/")
    resume.add_argument("overrides", nargs="*", help="of what may differ: data.train.num_workers=4 optim.epochs=200")
    views = commands.add_parser("views", help="a picture of samples and their views, with what was drawn for each")
    views.add_argument("source", metavar="RECIPE or FILE")
    views.add_argument("overrides", nargs="*", help="e.g. hardware.seed=1 data.train.batch_size=4")
    views.add_argument("--out", default="views.png", metavar="FILE", help="the picture (views.png)")
    views.add_argument("--samples", type=int, default=6, metavar="N", help="how many (6)")
    views.add_argument("--epoch", type=int, default=0, metavar="N", help="the epoch whose views are shown (0)")
    recipes = commands.add_parser("recipes", help="what there is to train")
    recipes.add_argument("action", nargs="?", choices=["show"], help="show NAME prints the whole configuration")
    recipes.add_argument("name", nargs="?")
    return parser


def _commands():
    from . import recipes, resume, train, views

    return {"train": train.main, "resume": resume.main, "views": views.main, "recipes": recipes.main}
