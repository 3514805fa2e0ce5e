"""`stable-ssl check`: everything that can be known about a run before the queue."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..compose import compose_with_hydra, find, importable, origin_of
from ..exceptions import ConfigError
from ..resolvers import stand_ins
from . import slurm
from .sweep import Point, Sweep
from .train import source_of

if TYPE_CHECKING:
    from ..rehearsal.report import Report


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Check the run that `train` would make of the same arguments, and show what was found."""
    from ..rehearsal.report import Report
    from ..rehearsal.screen import show

    try:
        with _orderly_end():
            report = _checked(args, rest)
    except ConfigError as error:
        report = Report()
        report.refuse("configuration", error)
    if args.json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        show(report)
    return report.status


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM end this process by an exception in the block, so that the temporary folder is removed."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    asked: list[int] = []

    def end(signum: int, _: object) -> NoReturn:
        asked.append(signum)
        raise KeyboardInterrupt  # which no code of a run takes for an error of its own

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if asked:  # some code may have caught the exception
            raise SystemExit(128 + asked[0])


def _checked(args: argparse.Namespace, rest: list[str]) -> Report:
    """Check a run; of a sweep the first one, and the configuration and first samples of the others."""
    from ..rehearsal.cards import card_named
    from ..rehearsal.check import check_others, rehearse

    card = card_named(args.device) if args.device is not None else None
    source, folder, overrides = source_of(args, rest)
    config_folder, name = find(source, folder)
    settings, overrides = slurm.split(overrides, args.slurm, "check")
    job = slurm.read_settings(settings)[1] if args.slurm else None
    options = {"card": card, "world_size": args.world_size, "slurm": job}
    with importable(Path.cwd(), config_folder, *origin_of(config_folder, name)[1]):
        others: list[Point] = []
        with stand_ins() as told:
            if args.multirun:
                first, *others = Sweep(config_folder, name, overrides).points
                config = first.config
            else:
                config, _ = compose_with_hydra(str(source), overrides, folder)
        say = _say if sys.stderr.isatty() else lambda _: None
        report = rehearse(config, **options, all_data=args.all_data, say=say)
        check_others(report, config, {point.name: point.config for point in others}, **options, say=say)
        report.complete("configuration", told)
        say("")
        return report


def _say(line: str) -> None:
    """Show which part of the check has begun, on a line that the next one overwrites; an empty one clears it."""
    print(f"\r\x1b[K{f'check: {line} …' if line else ''}", end="", file=sys.stderr, flush=True)
