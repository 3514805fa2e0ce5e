"""The optimizer LARS, and the parameter groups of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .exceptions import ConfigError, nearest
from .runtime.distributed import local, norms


def param_groups(
    modules: Mapping[str, nn.Module],
    exclude_bias_norm: bool = False,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters of some modules as groups for an optimizer. Shared parameters appear once.

    Parameters
    ----------
    modules
        The modules by name.
    exclude_bias_norm
        Whether biases, scale and shift of normalisations, and all other one-dimensional parameters get groups of their
        own, without weight decay and without LARS's scaling. Tokens do not belong to them, even if they have one
        dimension: parameters whose names end with "token".
    groups
        `{pattern: options}`: a module's name, or a pattern (as in `fnmatch`) of the parameters' names,
        `<module>.<parameter>`. If several match a parameter, the last one counts. `lr` and `weight_decay` of the
        options are the group's.

    Returns
    -------
    list of dict
        Parameters that no pattern matches come first, then those of each pattern, under `name`. With
        `exclude_bias_norm`, each has two groups. Empty groups are left out.

    Raises
    ------
    ConfigError
        A pattern matches no trainable parameter.

    Examples
    --------
    >>> from stable_ssl.optimizers import param_groups
    >>> weights, others = param_groups({"head": nn.Linear(8, 4)}, exclude_bias_norm=True)
    >>> [tuple(p.shape) for p in weights["params"]], [tuple(p.shape) for p in others["params"]]
    ([(4, 8)], [(4,)])
    >>> plain, slow = param_groups({"head": nn.Linear(8, 4)}, groups={"*.bias": {"lr": 0.01}})
    >>> slow["name"], slow["lr"], len(slow["params"])
    ('*.bias', 0.01, 1)
    """
    made: list[dict[str, Any]] = []
    for pattern, parameters in _by_pattern(modules, list(groups or {})).items():
        options = (groups or {}).get(pattern, {})
        own = {key: options[key] for key in ("lr", "weight_decay") if options.get(key) is not None}
        own.update({"name": pattern} if pattern else {})
        if exclude_bias_norm:
            made.append({"params": [p for name, p in parameters if _decays(name, p)], **own})
            others = [p for name, p in parameters if not _decays(name, p)]
            made.append({"params": others, **own, "weight_decay": 0.0, "lars_exclude": True})
        else:
            made.append({"params": [p for _, p in parameters], **own})
    return [group for group in made if group["params"]]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter decays although biases and normalisations do not.

    Tokens decay, as in the code of MAE (main_pretrain.py, where the mask token has three dimensions), I-JEPA
    (src/helper.py), DINO (utils.py) and lightly.
    """
    return parameter.ndim > 1 or name.endswith("token")


def _by_pattern(modules: Mapping[str, nn.Module], patterns: list[str]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the trainable parameters with their names, by the last pattern that matches each, or "" if none does."""
    members: dict[str, list[tuple[str, nn.Parameter]]] = {"": [], **{pattern: [] for pattern in patterns}}
    matched: set[str] = set()
    seen: set[int] = set()
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters(module_name):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                matching = [pattern for pattern in patterns if is_named(pattern, module_name, name)]
                matched.update(matching)
                members[matching[-1] if matching else ""].append((name, parameter))
    if missing := [pattern for pattern in patterns if pattern not in matched]:
        names = list(modules)
        raise ConfigError([f"optim.groups.{p}: no trainable parameter of {names} has such a name." for p in missing])
    return members


def is_named(pattern: str, module_name: str, name: str) -> bool:
    """Say whether a pattern, or a module's name, means the parameter `name` of a module."""
    return pattern == module_name or fnmatchcase(name, pattern)


def freeze(modules: Mapping[str, nn.Module], patterns: Iterable[str]) -> list[nn.Parameter]:
    """Freeze the parameters that patterns mean, and return them. See `param_groups` for the patterns.

    Raises
    ------
    ConfigError
        A pattern matches no parameter.
    """
    named = [(key, *found) for key, module in modules.items() for found in module.named_parameters(key)]
    frozen: list[nn.Parameter] = []
    problems = []
    for pattern in patterns:
        found = [parameter for key, name, parameter in named if is_named(pattern, key, name)]
        frozen += found
        if not found:
            near = nearest(pattern, [*modules, *(name for _, name, _ in named)])
            problems.append(f"optim.frozen: '{pattern}' is no parameter of {list(modules)}.{near}")
    if problems:
        raise ConfigError(problems)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def frozen_norms(modules: Mapping[str, nn.Module], patterns: Iterable[str]) -> list[nn.Module]:
    """Return the batch normalisations whose running statistics are to stay.

    Parameters
    ----------
    modules
        The modules by name.
    patterns
        Patterns (as in `fnmatch`) of the names of normalisations, or of modules that hold some. Names are
        `<module>.<submodule>`.

    Raises
    ------
    ConfigError
        A pattern matches no batch normalisation that has running statistics.
    """
    named = [found for key, module in modules.items() for found in module.named_modules(prefix=key)]
    norms: list[nn.Module] = []
    problems = []
    for pattern in patterns:
        inside = [part for name, module in named if fnmatchcase(name, pattern) for part in module.modules()]
        found = [part for part in inside if getattr(part, "running_mean", None) is not None]
        norms += found
        if not found:
            near = nearest(pattern, [name for name, part in named if getattr(part, "running_mean", None) is not None])
            problems.append(f"optim.frozen_norm: '{pattern}' is, or has, no batch normalisation.{near}")
    if problems:
        raise ConfigError(problems)
    return norms


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg, "Large batch training of convolutional networks",
    arXiv:1708.03888, algorithm 1).

    For each parameter w with gradient g, SGD with momentum follows q (g + β w) instead of g. β is the weight decay, and
    q is the trust ratio of the parameter:

    $$ q = η ‖w‖ / (‖g‖ + β ‖w‖ + ε) $$

    q is 1 if ‖w‖ or ‖g‖ is 0, so a weight with a gradient of zero decays unscaled. solo-learn and lightly have the same
    formula, but leave such a weight as it is. With `decay_in_norm`, the decay is part of what is measured:

    $$ q = η ‖w‖ / (‖g + β w‖ + ε) $$

    q is then 1 if ‖w‖ or ‖g + β w‖ is 0. The authors' code of SimCLR (lars_optimizer.py), BYOL
    (byol/utils/optimizers.py), Barlow Twins (main.py) and VICReg (main_vicreg.py) has this form.

    q is always 1 for parameter groups with `lars_exclude: True`.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov
        As for `torch.optim.SGD`.
    eta
        The trust coefficient η.
    epsilon
        The constant ε in the denominator.
    clip_lr
        Whether q is replaced by min(q / lr, 1). Then η sets the step size, and `lr` is only its upper limit (LARC, as
        in NVIDIA's Apex).
    decay_in_norm
        Whether q has the second form.

    Raises
    ------
    ValueError
        `lr`, `momentum`, `eta` or `weight_decay` is below 0, or `nesterov` is combined with no momentum or with
        dampening.

    Examples
    --------
    >>> from stable_ssl.optimizers import LARS
    >>> weight = nn.Parameter(torch.full((4,), 2.0))  # ‖w‖ = 4
    >>> optimizer = LARS([weight], lr=1.0, eta=0.1)
    >>> weight.sum().backward()  # ‖g‖ = 2, so q = 0.1 × 4 / 2 = 0.2
    >>> optimizer.step()
    >>> weight
    Parameter containing:
    tensor([1.8000, 1.8000, 1.8000, 1.8000], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1.0,
        momentum: float = 0,
        eta: float = 1e-3,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        epsilon: float = 0,
        clip_lr: bool = False,
        decay_in_norm: bool = False,
    ):
        for name, value in (("lr", lr), ("momentum", momentum), ("eta", eta), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}: {value} is below 0; give 0 or more.")
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov: true needs a momentum above 0 and a dampening of 0.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "eta": eta,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "epsilon": epsilon,
            "clip_lr": clip_lr,
            "decay_in_norm": decay_in_norm,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state. States without `decay_in_norm` get this optimizer's value."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decay_in_norm", self.defaults.get("decay_in_norm", False))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters. This never waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Update the parameters of one group, all of which have gradients."""
        values, directions = [local(p) for p in params], [local(p.grad) for p in params]  # type: ignore[arg-type]
        if group["weight_decay"]:
            decayed = list(torch._foreach_add(directions, values, alpha=group["weight_decay"]))
        else:
            decayed = directions
        if not group["lars_exclude"]:
            has_decay = group["decay_in_norm"]
            weights = norms(params)  # (parameters,)
            grads = norms([_like(p, d) for p, d in zip(params, decayed if has_decay else directions, strict=True)])
            whole = grads if has_decay else grads + group["weight_decay"] * weights
            trust = group["eta"] * weights / (whole + group["epsilon"])
            trust = torch.where((weights > 0) & (grads > 0), trust, torch.ones_like(trust))
            if group["clip_lr"]:
                trust = (trust / group["lr"]).clamp(max=1.0)
            decayed = list(torch._foreach_mul(decayed, list(trust.unbind())))
        if group["momentum"]:
            decayed = self._with_momentum(group, params, decayed)
        torch._foreach_add_(values, decayed, alpha=-group["lr"])

    def _with_momentum(self, group: dict[str, Any], params: list[Tensor], steps: list[Tensor]) -> list[Tensor]:
        """Return the steps of the parameters with momentum, and update the momentum buffers."""
        buffers = []
        for p, step in zip(params, steps, strict=True):
            state = self.state[p]
            if "momentum_buffer" in state:
                buffer = local(state["momentum_buffer"])
                buffer.mul_(group["momentum"]).add_(step, alpha=1 - group["dampening"])
            else:
                state["momentum_buffer"] = _like(p, step.clone())
                buffer = local(state["momentum_buffer"])
            buffers.append(buffer)
        if group["nesterov"]:
            return list(torch._foreach_add(steps, buffers, alpha=group["momentum"]))
        return buffers


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    """Return this rank's part of a tensor as a sharded one, laid out as a parameter, if that is sharded."""
    if not hasattr(parameter, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())
