"""`stable-ssl eval`: what the features of a run, or of any network, are worth."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError

SECONDS_BETWEEN_LINES = 30.0


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate the sources, write the records, and show them."""
    from ..evaluation.augmented import PRESETS
    from ..evaluation.evaluate import carry_out
    from ..evaluation.request import DEFAULT, Request, command_of
    from ..evaluation.results import IncompleteError, show

    words = [*args.sources, *rest]
    lists = (words, args.protocol or [DEFAULT], args.data or [], args.features or [])  # settings may follow any of them
    settings = [word for words in lists for word in words if is_setting(word)]
    sources, protocols, data, args.features = ([word for word in words if not is_setting(word)] for words in lists)
    request = Request(
        sources,
        protocols,
        data,
        seeds=args.seeds,
        epochs=args.epochs,
        few_shot=_amount(args.few_shot),
        overrides=settings,
        out=Path(args.out).expanduser() if args.out else None,
        **reading(args),
    )

    def shown(results: Sequence[Mapping[str, Any]]) -> None:
        if args.json and results:
            print(json.dumps(results, indent=1, ensure_ascii=False))
        else:
            show(results)

    command = command_of(sys.argv[1:], has_training=any(name in PRESETS for name in protocols))
    try:
        with saying("eval") as say:
            results = carry_out(request, command, say)
    except IncompleteError as error:
        shown(error.results)
        raise
    shown(results)  # of rank 0; the others have none
    return 0


def _amount(text: str | None) -> float | int | None:
    """Return "8" as a number of images and "10%" as a share."""
    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else int(text)
    except ValueError as error:
        raise ConfigError(f"--few-shot: '{text}' is neither a number of images nor a share such as 10%.") from error


def is_setting(word: str) -> bool:
    """Return whether an argument is key=value, and no path."""
    return "=" in word and not Path(word).expanduser().exists()


def reading(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a `Request` that say how features are computed."""
    from ..evaluation.features import LIMIT, usual_cache

    if args.size not in (None, "native") and not args.size.isdigit():
        raise ConfigError(f"--size: '{args.size}' is no number of pixels, and not native.")
    place = usual_cache() if args.cache is None else None if args.cache == "none" else Path(args.cache).expanduser()
    return {
        "features": args.features or [],
        "size": int(args.size) if args.size and args.size.isdigit() else args.size,
        "labels": args.labels,
        "backbone": args.backbone,
        "network": args.network,
        "device": args.device or "auto",
        "precision": args.precision,
        "batch": args.batch,
        "workers": args.workers or 0,
        "cache": place,
        "limit": LIMIT if args.cache_limit is None else args.cache_limit,
        "world_size": args.world_size,
    }


@contextmanager
def saying(command: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is done: on a terminal on one line, elsewhere as a line every half minute."""
    is_terminal, due = sys.stderr.isatty(), time.monotonic() + SECONDS_BETWEEN_LINES
    clear = "\r\x1b[K" if is_terminal else ""

    def say(line: str) -> None:
        nonlocal due
        if is_terminal or time.monotonic() >= due:
            due = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{clear}{command}: {line}", end="" if is_terminal else "\n", file=sys.stderr, flush=True)

    try:
        yield say
    except KeyboardInterrupt:
        print(f"{clear}{command}: interrupted. If it is started again, it takes what was kept.", file=sys.stderr)
        raise
    finally:
        print(clear, end="", file=sys.stderr, flush=True)
