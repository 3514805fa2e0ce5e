"""`stable-ssl embed`: the features of images in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..exceptions import ConfigError
from .eval import is_setting, reading, saying


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Compute the features, and write the file."""
    from ..evaluation.embedding import check_out, embed
    from ..evaluation.request import Request

    features = args.features or []  # after which settings may stand, too
    settings = [*args.settings, *rest, *filter(is_setting, features)]
    args.features = [name for name in features if not is_setting(name)]
    if wrong := [word for word in settings if not is_setting(word)]:
        raise ConfigError(f"embed: '{wrong[0]}' is one argument too many: it takes a source and data.")
    out = Path(args.out or "features.parquet").expanduser()
    check_out(out)
    with saying("embed") as say:
        request = Request([args.source], data=[args.data], overrides=settings, **reading(args))
        found = embed(request, args.neighbours, say)
    if found is not None:
        found.save(out)
        arrays = ", ".join(f"{key} {' × '.join(map(str, value.shape))}" for key, value in found.columns.items())
        print(f"{out}: {arrays}")
    return 0
