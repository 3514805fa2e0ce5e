"""The exceptions that end a run or a part of it, and what the checks that raise them share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

SAID_ELSEWHERE = "Another process of the run says the same."  # a note of an error


class BreakAllEpochs(Exception):
    """Raise it in a hook to end training: the state and the final weights are saved, and `after_fit` is skipped.

    The run counts as stopped. If it is started again, it does nothing, unless `optim.epochs` is larger than before.
    """


class BreakEpoch(Exception):
    """Raise it in a hook to end the current epoch and go on with the next one."""


class BreakStep(Exception):
    """Raise it in a hook to skip the rest of the current mini-batch."""


class NanError(Exception):
    """The loss or a weight is not finite."""


class DataError(Exception):
    """A sample or batch can't be read or used. The message says which one."""


class CheckpointError(Exception):
    """A checkpoint, weights file or run folder can't be used. The message says which one and why."""


class NoRunError(CheckpointError):
    """A place is not of a run."""


class PeerError(Exception):
    """Another process of the run failed, ended early or never started."""


class ConfigError(Exception):
    """A request can't be carried out as it is written.

    Parameters
    ----------
    problems
        One human sentence per mistake, or a single sentence.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


@contextmanager
def option_named(key: str, option: str | None) -> Iterator[None]:
    """Have a ConfigError of the `with` block name the option that a user gave, and not the key that it has set.

    Parameters
    ----------
    key
        The key that begins the sentences.
    option
        The name in its place. None: the user gave the key.
    """
    try:
        yield
    except ConfigError as error:
        named = [re.sub(rf"^{re.escape(key)}:", lambda _: f"{option}:", problem) for problem in error.problems]
        if option is None or named == error.problems:
            raise
        raise ConfigError(named) from error


@contextmanager
def as_config_error() -> Iterator[None]:
    """Have a ValueError of the `with` block, which names an option, be a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


class Preempted(SystemExit):
    """The run was asked to stop, has saved its state, and will continue when it is started again.

    A `SystemExit`, so that the line after `trainer()` does not take a half-trained model for a finished one.

    Attributes
    ----------
    code : int
        Exit status: 128 + the signal's number, or 75 for the time limit.
    """


def nearest(name: object, valid: Iterable[object], cutoff: float = 0.6) -> str:
    """Return the sentence " Did you mean 'x'?" for the valid name most like a mistaken one, or "" if none is like it.

    Parameters
    ----------
    name
        The mistaken name. Upper and lower case count as the same if no valid name is like it otherwise.
    valid
        The names that there are.
    cutoff
        How much alike two names must be, from 0 to 1 (equal).
    """
    import difflib

    options = [str(option) for option in valid]
    for text, names in ((str(name), options), (str(name).lower(), [option.lower() for option in options])):
        if found := difflib.get_close_matches(text, names, n=1, cutoff=cutoff):
            return f" Did you mean '{options[names.index(found[0])]}'?"
    return ""


def similar(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return the sentence " Similar names: 'x', 'y'." for the valid names most like a mistaken one, or "" if none is.

    Upper and lower case count as the same. The prefix is put before each of them.
    """
    import difflib

    names = {option.lower(): option for option in valid}
    found = [f"'{prefix}{names[option]}'" for option in difflib.get_close_matches(name.lower(), names)]
    return f" Similar names: {', '.join(found)}." if found else ""


def some_of(items: Sequence[object], most: int = 5, separator: str = ", ") -> str:
    """Return a text that lists items. If there are more than `most`, it lists the first ones, and counts the others."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*map(str, items[:most]), *more])


def in_a_line(error: BaseException) -> str:
    """Return the class of an error, and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
