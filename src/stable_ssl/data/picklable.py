"""What of a data set can't be pickled, as processes that are spawned need it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from ..exceptions import DataError

_ERRORS = (pickle.PicklingError, AttributeError, TypeError)


@contextmanager
def pickling_explained(parts: Mapping[str, Any]) -> Iterator[None]:
    """Raise an error that names the value which can't be pickled, if the block starts processes and fails by that.

    Parameters
    ----------
    parts
        What the processes get, by the names for messages.

    Raises
    ------
    DataError
        One of the parts can't be pickled.
    """
    try:
        yield
    except _ERRORS as error:
        found = next(filter(None, (_unpicklable(part, name, set()) for name, part in parts.items())), "")
        if "pickle" not in str(error) or not found:
            raise
        raise DataError(
            f"{found} can't be pickled, which workers that are spawned need ({error}). Define functions at the top "
            "level of a file, and open files and locks when a sample is read; or take workers that are forked: "
            "multiprocessing_context=fork."
        ) from error


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def _unpicklable(value: Any, path: str, seen: set[int]) -> str:
    """Return path and class of the innermost part of a value that can't be pickled; "" if the value can be."""
    if id(value) in seen:
        return ""
    seen.add(id(value))
    try:
        pickle.Pickler(_Nowhere()).dump(value)
        return ""
    except _ERRORS:
        inner = (_unpicklable(part, f"{path}.{key}", seen) for key, part in _parts_of(value).items())
        return next(filter(None, inner), f"{path} ({type(value).__name__})")
    except Exception:  # as a queue, which processes get in another way
        return ""


def _parts_of(value: Any) -> Mapping[Any, Any]:
    """Return the items, or the attributes, that are pickled with a value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple | set):
        return dict(enumerate(value))
    if isinstance(value, type | FunctionType):
        return {}
    try:
        state = value.__getstate__()
    except Exception:  # of the user's code
        return {}
    return state if isinstance(state, dict) else {}
