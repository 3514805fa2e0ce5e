"""`stable-ssl eval`: what the features of a run, or of any network, are worth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..exceptions import ConfigError


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Evaluate the sources, write the records, and show them."""
    from ..evaluation.evaluate import carry_out
    from ..evaluation.request import DEFAULT, Request, command_of
    from ..evaluation.results import show

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
        overrides=settings,
        out=Path(args.out).expanduser() if args.out else None,
        **reading(args),
    )
    say = saying("eval")
    results = carry_out(request, command_of(sys.argv[1:]), say)
    say("")
    if not results:  # rank 0 shows them
        return 0
    if args.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    else:
        show(results)
    return 0


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


def saying(command: str) -> Callable[[str], None]:
    """Return a function that shows on a terminal what is done, on a line that the next one overwrites."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r\x1b[K{f'{command}: {line}' if line else ''}", end="", file=sys.stderr, flush=True)
