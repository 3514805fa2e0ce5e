"""`stable-ssl branch`: a new run that begins from a checkpoint of another one, with changes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..api import branch_config
from ..compose import importable, origin_of
from . import slurm
from .run import Run


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Train the branch, or go on with it if it has begun, here or as a Slurm job."""
    settings, overrides = slurm.split([*args.overrides, *rest], args.slurm, "branch")
    home, own = origin_of(Path(args.run), "config")
    folders = [*own, Path.cwd()]
    with importable(*folders):
        config = branch_config(
            args.run, overrides, args.step, args.out and Path(args.out).absolute(), args.restart_schedule
        )
        if home:
            os.chdir(home)  # relative paths in the configuration, such as those of data, begin there
        if args.slurm:
            slurm.submit([config], config["trainer"]["_target_"].split(".")[-1], settings, folders)
        else:
            Run(config, folders=())()
    return 0
