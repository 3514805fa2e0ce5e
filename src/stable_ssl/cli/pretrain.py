"""`stable-ssl pretrain`: a folder of images in, a backbone out."""

from __future__ import annotations

import argparse

from ..pretraining.request import parse
from ..pretraining.running import carry_out
from ..rehearsal.check import check_first
from .run import say_once


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Pretrain on a folder, or go on with a run that the same line began."""
    names = ("method", "backbone", "size", "epochs", "minutes", "labels", "out")
    options = {name: getattr(args, name) for name in names}
    request = parse(args.folder, [*args.overrides, *rest], **options)
    check = None if args.no_check else check_first
    carry_out(request, lambda line: say_once(f"pretrain: {line}"), check)
    return 0
