"""`stable-ssl branch`: a new run that begins from a checkpoint of another one, with changes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..api import branch_config
from ..compose import importable, origin_of
from .run import Run


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Train the branch, or go on with it if it has begun."""
    overrides = [*args.overrides, *rest]
    home, own = origin_of(Path(args.run), "config")
    with importable(*own, Path.cwd()):
        config = branch_config(
            args.run, overrides, args.step, args.out and Path(args.out).absolute(), args.restart_schedule
        )
        if home:
            os.chdir(home)  # relative paths in the configuration, such as those of data, begin there
        Run(config, folders=())()
    return 0
