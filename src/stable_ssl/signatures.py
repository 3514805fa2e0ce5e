"""The arguments that a callable takes: their names, and the kinds of plain values that they stand for."""

from __future__ import annotations

import functools
import inspect
import numbers
import operator
import types
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from inspect import Parameter
from typing import Any

from .exceptions import nearest

_NUMBERS = (int, float, complex, numbers.Number, numbers.Real, numbers.Integral)
_WORDS = {bool: "true or false", int: "a whole number", str: "a text", **dict.fromkeys(_NUMBERS[1:], "a number")}


def parameters_of(target: Callable) -> Mapping[str, Parameter] | None:
    """Return the parameters of a callable by name, or None if Python can't tell them, as for some built-in ones."""
    try:
        parameters = inspect.signature(target).parameters
    except (ValueError, TypeError):
        return None
    function = inspect.unwrap(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    takes_all = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    if isinstance(target, type) and takes_all and inspect.isfunction(function):
        # These are the parameters of `__new__`, which leaves the arguments to `__init__`.
        _self, *own = inspect.signature(function).parameters.values()
        parameters = {p.name: p for p in own}  # type: ignore[assignment]
    scope = getattr(function, "__globals__", {})
    return {name: p.replace(annotation=evaluated(p.annotation, scope)) for name, p in parameters.items()}


def evaluated(annotation: Any, scope: dict[str, Any]) -> Any:
    """Return the type that the text of an annotation means, or Any if only a type checker can tell."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": annotation}), scope)["it"]
    except Exception:  # such as of a name that is imported for type checkers only
        return Any


def keywords_of(parameters: Mapping[str, Parameter]) -> list[str]:
    """Return the names that can be given as keywords."""
    return [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def check_call(
    target: Callable,
    parameters: Mapping[str, Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    path: str,
    problems: list[str],
    partial: bool,
) -> None:
    """Collect what is wrong with the arguments of a node, one sentence per argument.

    Parameters
    ----------
    target, parameters
        What the node calls, and its parameters.
    args, kwargs
        The node's arguments.
    path
        The node's key, for the sentences.
    problems
        Gets the sentences.
    partial
        More arguments come later, before those of the node: how many there are is not checked.
    """
    name = getattr(target, "__name__", str(target))
    known = keywords_of(parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    meant: list[str] = []
    for key, value in kwargs.items():
        if key in known:
            problems += wrong_kind(value, parameters[key], f"{path}.{key}", target, name)
        elif not takes_any:
            hint = nearest(key, known)
            problems.append(f"{path}.{key}: {name} has no such argument (value {value!r}).{hint}")
            meant += [one for one in known if f"'{one}'" in hint]
    if not partial:
        problems += _wrong_number(parameters, args, {**dict.fromkeys(meant), **kwargs}, path, name)
        for index, (value, parameter) in enumerate(zip(args, _positional(parameters), strict=False)):
            problems += wrong_kind(value, parameter, f"{path}._args_[{index}]", target, name)


def _positional(parameters: Mapping[str, Parameter]) -> list[Parameter]:
    return [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _wrong_number(
    parameters: Mapping[str, Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], path: str, name: str
) -> Iterator[str]:
    """Yield a sentence for each argument that is missing, given twice or one too many."""
    positional = _positional(parameters)
    if len(args) > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        yield f"{path}._args_: {name} takes at most {len(positional)} of them, not {len(args)}."
    by_place = {p.name for p in positional[: len(args)]}
    for key, parameter in parameters.items():
        is_named = key in kwargs and parameter.kind is not parameter.POSITIONAL_ONLY
        is_variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if key in by_place and is_named:
            yield f"{path}.{key}: given twice, by this name and in _args_."
        elif key not in by_place and not is_named and not is_variable and parameter.default is parameter.empty:
            place = f"{path}._args_" if parameter.kind is parameter.POSITIONAL_ONLY else f"{path}.{key}"
            yield f"{place}: missing; {name} needs {'it' if place.endswith(key) else key}."


def wrong_kind(value: Any, parameter: Parameter, path: str, target: Callable, name: str) -> Iterator[str]:
    """Yield a sentence if a number, text or yes-no value can't be meant for a parameter.

    A parameter of this package is annotated by all that it takes, so lists, dicts and null are looked at too.
    """
    is_own = str(getattr(target, "__module__", "")).startswith(f"{__package__}.")
    if is_own and parameter.annotation is not parameter.empty:
        at, item, kind = _misfit(value, parameter.annotation, path) or ("", None, None)
        if at and not (value is parameter.default or _is_documented(value, target)):
            expected = " or ".join(_own_words(kind))
            yield f"{at}: {item!r} is not {expected}, which {name} expects here.{_yes_or_no(item, kind)}"
        return
    if not isinstance(value, bool | int | float | str):
        return
    if parameter.annotation is parameter.empty:
        # The default is only a hint: most numbers may stand for something else, but words rarely do.
        kind = type(parameter.default)
        words = [_WORDS[kind]] if kind in _WORDS and kind is not str and isinstance(value, str) else []
    else:
        kind = parameter.annotation
        words = list(dict.fromkeys(_in_words(kind)))
    if not words or _fits(value, kind) or _fits(value, type(parameter.default)) or _is_documented(value, target):
        return
    yield f"{path}: {value!r} is not {' or '.join(words)}, which {name} expects here.{_yes_or_no(value, kind)}"


def _yes_or_no(value: Any, kind: Any) -> str:
    return nearest(value, ("true", "false")) if kind is bool else ""


def _misfit(value: Any, kind: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return the key, the value and the kind of what can't be meant for an annotation: all of a value, or an item."""
    members = _members(kind)
    if not _is_plain(value) or any(_fits_exactly(value, member) for member in members):
        return None
    lists = [member for member in members if _list_of(member) is not None]
    if isinstance(value, list | tuple) and len(lists) == 1:
        inner = _list_of(lists[0])
        return next(filter(None, (_misfit(item, inner, f"{path}[{index}]") for index, item in enumerate(value))), None)
    return path, value, kind


def _is_plain(value: Any) -> bool:
    """Say whether a value is one that a file can hold, and no node."""
    is_node = isinstance(value, Mapping) and "_target_" in value
    return value is None or (isinstance(value, bool | int | float | str | list | tuple | dict) and not is_node)


def _list_of(kind: Any) -> Any:
    """Return the annotation of the items of a list; None if an annotation is not of lists."""
    origin = typing.get_origin(kind) or kind
    is_list = isinstance(origin, type) and (origin is Iterable or issubclass(origin, Sequence | Set))
    if not is_list or origin is str:
        return None
    items = [item for item in typing.get_args(kind) if item is not ...]
    return functools.reduce(operator.or_, items) if items else Any


def _is_dict(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _fits_exactly(value: Any, kind: Any) -> bool:
    """Say whether a plain value is of a type that is no union. Types that this function does not know take all."""
    if kind is type(None):
        return value is None
    if kind in _WORDS:
        is_plain = isinstance(value, bool | int | float | str)
        return (value is None and kind is bool) or (is_plain and _fits(value, kind))  # null is as good as false
    if (items := _list_of(kind)) is not None:
        if isinstance(value, str):
            return _fits(value, items)
        return isinstance(value, list | tuple) and all(_misfit(item, items, "") is None for item in value)
    if _is_dict(kind):
        return isinstance(value, Mapping)
    return not (getattr(kind, "__name__", "") == "Tensor" and isinstance(value, bool | int | float | str | None))


def _own_words(kind: Any) -> list[str]:
    """Return what an annotation of this package allows beside null, in words."""
    return list(dict.fromkeys(_own_word(member) for member in _members(kind) if member is not type(None)))


def _own_word(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if (items := _list_of(kind)) is not None:
        of = " or ".join(f"{word.removeprefix('a ')}s" for word in _own_words(items) if items is not Any)
        return f"a list of {of}" if of else "a list"
    return "a dict" if _is_dict(kind) else f"a {getattr(kind, '__name__', kind)}"


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types that an annotation lists: a union's members, or the types of a Literal's values."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(inner for member in typing.get_args(kind) for inner in _members(member))
    if origin is typing.Literal:
        return tuple(type(option) for option in typing.get_args(kind))
    return (kind,)


def _in_words(kind: Any) -> list[str]:
    """Return the plain kinds of values among the members of an annotation, in words."""
    return [_WORDS[member] for member in _members(kind) if isinstance(member, type) and member in _WORDS]


def _fits(value: bool | int | float | str, kind: Any) -> bool:
    """Say whether a plain value may be meant for a type. Types that this function does not know take every value."""
    for member in _members(kind):
        if member is bool:
            fits = value in (0, 1)
        elif member in _NUMBERS:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif member is str:
            fits = isinstance(value, str)
        elif member in (type(None), Parameter.empty, type) or getattr(member, "__name__", "") == "Tensor":
            fits = False
        else:
            fits = _fits_container(value, member)
        if fits:
            return True
    return False


def _fits_container(value: bool | int | float | str, kind: Any) -> bool:
    """Say whether a plain value may be meant for a type that is not plain: a text may be for a container of texts."""
    origin, items = typing.get_origin(kind) or kind, typing.get_args(kind)
    if not isinstance(origin, type) or not issubclass(origin, Container | Iterable):
        return True
    return isinstance(value, str) and (not items or any(_fits(value, item) for item in items))


def _is_documented(value: Any, target: Callable) -> bool:
    """Say whether a text stands between quotes in the documentation of what it is for: then it is meant, whatever the
    annotation says. An example is `value='random'` of torchvision's `RandomErasing`, annotated as a float."""
    text = inspect.getdoc(target) or ""
    return isinstance(value, str) and any(f"{quote}{value}{quote}" in text for quote in "'\"`")
