"""Loading weights into a network, and saying what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..exceptions import CheckpointError, some_of
from .matching import Match, Matcher
from .sources import how_to_make, parse_source, read_source

log = logging.getLogger("stable_ssl")


def load_weights(source: Any, module: nn.Module, name: str, key: str | None = None) -> str:
    """Load a network's weights from a run, a file or timm, and log and return what was found.

    Heads that do not fit are left out, position embeddings are resampled, and the first convolution is adapted to the
    network's number of channels. A network of the `meta` device has no values, and is left alone.

    Parameters
    ----------
    source
        As for `parse_source`.
    module
        The network, which is changed in place. If it has a `student` and a `teacher`, and the source has one network,
        both get its weights.
    name
        What the network is called. If the source has a part of this name, its weights are taken from there.
    key
        The source's key in the configuration, for messages. None: `module_init.<name>`.

    Raises
    ------
    ConfigError
        It is no source.
    CheckpointError
        The source can't be read or does not fit. The message names each mismatch.
    """
    wanted = parse_source(source, key or f"module_init.{name}")
    if any(parameter.is_meta for parameter in module.parameters()):
        return ""
    place, tensors, is_own = read_source(wanted)
    parts = [module]
    try:
        match = Matcher(module, name, wanted.prefix, is_own).match(tensors)
        if (match is None or not match.is_complete) and (pair := _pair_in(module)):
            parts = pair
            match = Matcher(pair[0], name, wanted.prefix, is_own).match(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"'{place}' can't be used for module '{name}'. {error}") from error
    own = parts[0].state_dict()

    def unfit(why: str) -> CheckpointError:
        advice = how_to_make(wanted.place, name) if is_own else ""
        return CheckpointError(f"'{place}' does not fit module '{name}': {why}{advice}")

    if match is None or not match.values:
        below = f" Nothing else is tried if a prefix is given, here '{wanted.prefix}'." if wanted.prefix else ""
        raise unfit(f"{_nothing(match, own, tensors)}{below}")
    if wanted.strict and not match.is_complete:
        raise unfit(f"{_partly(match)} If a part is enough, write {{source: '{wanted.place}', strict: false}}.")
    for part in parts:
        part.load_state_dict(match.values, strict=False)
    level, label = logging.INFO if match.is_complete else logging.WARNING, name if key else f"module.{name}"
    told = _told(match, own, place)
    log.log(level, "%s: %s", label, told)
    return told


def _pair_in(module: nn.Module) -> list[nn.Module]:
    """Return the student and the teacher in a module, or an empty list."""
    pair = [getattr(module, name, None) for name in ("student", "teacher")]
    return [part for part in pair if isinstance(part, nn.Module)] if None not in pair else []


def _told(match: Match, own: Mapping[str, Any], place: str) -> str:
    """Return what the log says about weights that were loaded."""
    number = sum(isinstance(value, Tensor) for value in own.values())
    below = f", below '{match.prefix.rstrip('.')}'" if match.prefix else ""
    amount = "all its" if len(match.values) == number else f"{len(match.values)} of its {number}"
    text = [f"{amount} {number if amount == 'all its' else ''} tensors are from '{place}'{below}.".replace("  ", " ")]
    text += match.changed
    if match.dropped:
        text.append(f"Left out of the file: {', '.join(f'{part} ({n})' for part, n in sorted(match.dropped.items()))}.")
    if match.new:
        text.append(f"The file has none that fit for {some_of(match.new)}, so these are new.")
    return " ".join(text if match.is_complete else [*text, _partly(match)])


def _partly(match: Match) -> str:
    """Return what keeps a file and a network from matching."""
    problems = []
    if match.misshapen:
        problems.append(f"{some_of(match.misshapen, separator='; ')}.")
    if match.missing:
        problems.append(f"The file lacks {some_of(match.missing)}.")
    if match.unexpected:
        problems.append(f"The network lacks {some_of(match.unexpected)}.")
    return " ".join(problems)


def _nothing(match: Match | None, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return why nothing of a file fits."""
    if match is not None and match.misshapen:
        return _partly(match)
    return (
        f"no key is the same. The file has keys such as {some_of([*tensors])}, and the network {some_of([*own])}. "
        "Networks of one name have other keys in another library."
    )
