"""What `${…:…}` means in a configuration: arithmetic, and what a recipe reads off its backbone and its data set.

A configuration that was composed holds the values, so that a run's `config.yaml` does not depend on them.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .exceptions import ConfigError
from .nodes import build


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf."""
    from omegaconf import OmegaConf

    resolvers: dict[str, Any] = {
        "eval": arithmetic,
        "feature_dim": _feature_dim,
        "patch_side": _patch_side,
        "num_classes": _num_classes,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


_told: ContextVar[list[str] | None] = ContextVar("_told", default=None)


@contextmanager
def stand_ins() -> Iterator[list[str]]:
    """Let a number that can't be read off a network or a data set be any other one in the block, which goes on so.

    Yields
    ------
    list of str
        Gets what is wrong.
    """
    told: list[str] = []
    token = _told.set(told)
    try:
        yield told
    finally:
        _told.reset(token)


Resolver = Callable[..., int]


def _or_stand_in(number: int) -> Callable[[Resolver], Resolver]:
    """Return a decorator that has a resolver return a number inside of `stand_ins` if it fails.

    What it decorates stays a function of the module, which launchers of Hydra can send to other processes.
    """

    def decorated(resolver: Resolver) -> Resolver:
        @functools.wraps(resolver)
        def resolve(key: str, *, _root_: Any) -> int:
            try:
                return resolver(key, _root_=_root_)
            except ConfigError as error:
                if (told := _told.get()) is None:
                    raise
                told.extend(problem.removeprefix("trainer.") for problem in error.problems)
                return number

        return resolve

    return decorated


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


_FUNCTIONS: dict[str, Any] = {"min": min, "max": max, "abs": abs, "int": int, "float": float, "round": round}


def arithmetic(text: str) -> int | float | bool:
    """Compute an expression of numbers. This is the resolver `${eval:…}`.

    It may have + - * / // %, parentheses, one comparison (< <= > >=), `a if condition else b`, and the functions min,
    max, abs, int, float and round.

    Raises
    ------
    ValueError
        The expression contains anything else.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.operand))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
            return _OPERATORS[type(node.ops[0])](value(node.left), value(node.comparators[0]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*map(value, node.args))
        if isinstance(node, ast.IfExp):
            return value(node.body) if value(node.test) else value(node.orelse)
        raise ValueError(f"eval: '{text}' is not arithmetic on numbers.")

    try:
        result: int | float = value(ast.parse(str(text), mode="eval").body)
        return result
    except SyntaxError:
        raise ValueError(f"eval: '{text}' is not arithmetic on numbers.") from None


@_or_stand_in(512)
def _feature_dim(key: str, *, _root_: Any) -> int:
    """Return the width of a backbone's representations. This is the resolver `${feature_dim:KEY}`.

    The node at KEY is built, and sees empty images of `channels` channels and `size` × `size` pixels.
    """
    size = _integer(_root_, "size")
    images = (2, _integer(_root_, "channels"), size, size)
    return _width(key, _content(_root_, key), images)


@_or_stand_in(4)
def _patch_side(key: str, *, _root_: Any) -> int:
    """Return the height and width of a vision transformer's patches. This is the resolver `${patch_side:KEY}`.

    The node at KEY is built.
    """
    return _side(key, _content(_root_, key))


def _bare(node: str) -> Any:
    """Return the node of a network without weights to begin with: its width is the same, and nothing is downloaded."""
    content = json.loads(node)
    is_known = isinstance(content, dict) and str(content.get("_target_", "")).startswith(
        ("stable_ssl.modules", "torchvision.models")
    )
    return {**content, "weights": None} if is_known and "weights" in content else content


@functools.lru_cache(maxsize=64)
def _side(key: str, node: str) -> int:
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build(_bare(node), key)
    side = getattr(network, "patch_size", None) or getattr(getattr(network, "patch_embed", None), "patch_size", None)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    if not isinstance(height, int) or height != width:
        raise ConfigError(
            f"{key}: the method hides square patches, so it needs a ViT, which {type(network).__name__} is not, or not "
            "with such patches."
        )
    return height


def _integer(root: Any, key: str) -> int:
    """Return a positive integer of a configuration.

    Raises
    ------
    ConfigError
        The value is anything else.
    """
    value = root[key]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{key}: {value!r} is not an integer from 1.")
    return value


@functools.lru_cache(maxsize=64)
def _width(key: str, node: str, images: tuple[int, ...]) -> int:
    import torch

    # On the meta device, nothing is drawn or computed. Networks that need real values are built on the CPU.
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]), torch.no_grad():
                outputs = build(_bare(node), key).eval()(torch.zeros(images))
                return int(outputs.shape[1])
        except ConfigError:
            raise
        except Exception as error:
            failed = error
    shape = " × ".join(map(str, images[1:]))
    raise ConfigError(f"{key}: it can't embed images of {shape}: {type(failed).__name__}: {failed}") from failed


@_or_stand_in(2)
def _num_classes(key: str, *, _root_: Any) -> int:
    """Return `num_classes` if it is set, else the number of classes of a data set, which is built to count them.

    This is the resolver `${num_classes:KEY}`. (OmegaConf would call it if `num_classes` itself referred to it and were
    overridden.)
    """
    given = _root_.get("num_classes")
    if given is not None:
        return int(given)
    if (number := _classes(key, _content(_root_, key))) < 2:
        has = "has no labels" if number < 1 else "has one class only"
        raise ConfigError(f"{key}: it {has}, so nothing can be measured. Leave that out: {_without_labels(_root_)}")
    return number


@functools.lru_cache(maxsize=64)
def _classes(key: str, node: str) -> int:
    dataset = build(json.loads(node), key)
    if named := getattr(dataset, "classes", None):
        return len(named)
    labels = [label for label in _labels(dataset) if label is not None]
    if text := next((label for label in labels if isinstance(label, str)), None):
        raise ConfigError(f"{key}: its labels are texts, such as '{text}'. Number them from 0.")
    return 1 + max(map(int, labels), default=-1)


def _without_labels(root: Any) -> str:
    """Return the overrides that leave out what needs labels."""
    from omegaconf import OmegaConf

    keys = ["logger.metric", "logger.monitor.test", "data.bank"]
    keys += [
        f"module.{name}" for name in OmegaConf.select(root, "trainer.module") or () if name.endswith("_classifier")
    ]
    there = [f"~{key}" for key in keys if OmegaConf.select(root, f"trainer.{key}") is not None]
    return " ".join(["num_classes=2", *there])


def _labels(dataset: Any) -> Iterable[Any]:
    """Return all labels of a data set, without reading its images."""
    if hasattr(dataset, "targets"):
        return dataset.targets  # type: ignore[no-any-return]
    table, column = getattr(dataset, "dataset", None), getattr(dataset, "y", None)
    return table[column] if table is not None and column is not None else ()


def _content(root: Any, key: str) -> str:
    """Return a node of a configuration as JSON."""
    from omegaconf import OmegaConf

    node = OmegaConf.select(root, key)
    return json.dumps(
        OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
    )
