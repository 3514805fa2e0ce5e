"""Finding the values of a network among the tensors of a file, and fitting those of another shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..exceptions import CheckpointError
from .keys import as_timm, is_harmless, is_head, is_own_head, joined, position_tables, unwrapped
from .resampling import adapt_channels, grid_of, resample_positions

# Of two networks that fit, the authors publish the first of these for use, and the other one of the last.
_TEACHERS = {"teacher", "ema", "target_encoder", "target_network", "state_dict_ema", "model_ema"}
_SHADOWS = {"encoder_k", "momentum_encoder", "momentum_backbone", "backbone_momentum", "student", "context_encoder"}
_FEW = 2  # values: those of a single layer
_CONTAINERS = {"module", "state_dict", "model", "layers"}


@dataclass
class Match:
    """What a file has for a network.

    Attributes
    ----------
    prefix
        How the network's keys begin in the file.
    values
        The network's values that were found, in its shapes.
    changed
        A sentence per value that was resampled or adapted.
    dropped
        Names of parts in the file that were left out: heads and the like.
    new
        Keys of the network's own head, which the file lacks or has in another shape.
    missing, unexpected, misshapen
        What keeps the two from matching: other keys of the network, other keys of the file, and both shapes.
    """

    prefix: str
    values: dict[str, Tensor] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all of the network but its head was found, and nothing else."""
        return bool(self.values) and not (self.missing or self.unexpected or self.misshapen)


class Matcher:
    """Matches the tensors of a file with a network.

    Parameters
    ----------
    module
        The network.
    name
        What the network is called. If the file has a part of this name, its values are taken from there.
    prefix
        How the network's keys begin in the file. None: as most values fit.
    is_own
        Whether this library wrote the file. Then tables of position embeddings of the right length have the right grid.
    """

    def __init__(self, module: nn.Module, name: str, prefix: str | None, is_own: bool):
        self._name, self._prefix, self._is_own = name, prefix, is_own
        self._own = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
        self._tables = position_tables(module)
        self._first = next(
            (f"{key}.weight" for key, part in module.named_modules() if isinstance(part, nn.modules.conv._ConvNd)), ""
        )

    def match(self, tensors: Mapping[str, Tensor]) -> Match | None:
        """Return what fits of the tensors of a file; None if not one key is a key of the network.

        Raises
        ------
        CheckpointError
            Several parts of the file fit equally well.
        """
        tensors = unwrapped(tensors)
        found = self._match(self._own, tensors)
        if found is not None and found.is_complete:
            return found
        real = {as_timm(key): key for key in self._own}
        others = {as_timm(key): tensor for key, tensor in joined(tensors).items()}
        if len(real) < len(self._own) or (real.keys() == self._own.keys() and others.keys() == tensors.keys()):
            return found
        translated = self._match({name: self._own[key] for name, key in real.items()}, others, real)
        if translated is None or (found is not None and len(found.values) >= len(translated.values)):
            return found
        translated.values = {real[name]: value for name, value in translated.values.items()}
        return translated

    def _match(
        self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], real: Mapping[str, str] | None = None
    ) -> Match | None:
        """Match the file with keys of the network. `real` has the network's own names of them, if they differ."""
        prefix = self._find(own, tensors)
        if prefix is None:
            return None
        match = Match(prefix)
        under = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for key, value in own.items():
            if key in under:
                self._take((real or {}).get(key, key), key, value, under, match)
            elif not is_harmless(key):
                (match.new if is_own_head(key) else match.missing).append(key)
        for key in under.keys() - own.keys():
            if is_head(key):
                match.dropped[key.split(".")[0]] += 1
            elif not is_harmless(key):
                match.unexpected.append(key)
        match.unexpected.sort()
        return match

    def _take(self, name: str, key: str, own: Tensor, under: Mapping[str, Tensor], match: Match) -> None:
        """Take one value of the file, in the shape that it has in the network.

        Parameters
        ----------
        name, key
            The network's name of the value, and the one by which it is matched.
        own
            The network's value.
        under
            The values of the file by key, without the prefix.
        """
        value = under[key]
        if name in self._tables and value.ndim == 3 and value.shape[2] == own.shape[2]:
            fitted = self._positions(name, value, own, match)
        elif name == self._first and value.shape != own.shape and _are_alike_but_for_channels(value, own):
            fitted = adapt_channels(value.float(), own.shape[1])
            match.changed.append(f"{key} was adapted from {value.shape[1]} to {own.shape[1]} channels.")
        else:
            fitted = value
        if fitted is not None and fitted.shape == own.shape:
            match.values[key] = fitted
        elif is_own_head(key):
            match.new.append(key)
        else:
            match.misshapen.append(f"{key} is {tuple(value.shape)} there, and {tuple(own.shape)} here")

    def _positions(self, name: str, value: Tensor, own: Tensor, match: Match) -> Tensor | None:
        """Return position embeddings for the network's grid; None if the grid of the file's is not known."""
        others, grid = self._tables[name]
        if value.shape == own.shape and (self._is_own or grid[0] == grid[1]):
            return value
        old = grid_of(value.shape[1] - others, grid)
        if old is None or value.shape[1] <= others:
            return None
        if old != grid:
            there, here = (f"{rows} × {columns}" for rows, columns in (old, grid))
            match.changed.append(f"{name} was resampled from {there} to {here} patches.")
        return torch.cat([value[:, :others], resample_positions(value[:, others:], old, grid)], dim=1)

    def _find(self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
        """Return how the network's keys begin in the file; None if no key is there."""
        hits: Counter[str] = Counter()
        fits: Counter[str] = Counter()
        body = {key for key in own if not is_own_head(key)} or own.keys()
        for key, tensor in tensors.items():
            parts = key.split(".")
            for depth in range(len(parts)):
                name = ".".join(parts[depth:])
                if name in body:
                    prefix = key.removesuffix(name)
                    hits[prefix] += 1
                    fits[prefix] += self._may_fit(tensor, own[name])
        if self._prefix is not None:
            given = [prefix for prefix in hits if prefix.rstrip(".") == self._prefix.rstrip(".")]
            return given[0] if given else None
        if named := {prefix for prefix in hits if self._name in prefix.split(".")}:
            hits = Counter({prefix: hits[prefix] for prefix in named})
        best = max(((fits[prefix], number) for prefix, number in hits.items()), default=None)
        if best is None:
            return None
        prefix = self._choose([p for p in hits if (fits[p], hits[p]) == best])
        others = {*prefix.split(".")} - _CONTAINERS - _TEACHERS - _SHADOWS - {"", self._name}
        if len(body) <= _FEW and others:  # a layer of any other part would fit as well
            raise CheckpointError(
                f"It has no weights of a module '{self._name}'. If those of '{prefix.rstrip('.')}' are meant, write "
                f"{{source: …, prefix: {prefix.rstrip('.')}}}."
            )
        return prefix

    @staticmethod
    def _may_fit(value: Tensor, own: Tensor) -> bool:
        is_table = value.ndim == own.ndim == 3 and len(own) == 1 and value.shape[2] == own.shape[2]
        return value.shape == own.shape or is_table or _are_alike_but_for_channels(value, own)

    def _choose(self, prefixes: list[str]) -> str:
        """Return the one of several equally good prefixes that its authors publish for use."""
        rank = {p: bool(_TEACHERS & {*p.split(".")}) - bool(_SHADOWS & {*p.split(".")}) for p in prefixes}
        best = [prefix for prefix in prefixes if rank[prefix] == max(rank.values())]
        if len(best) == 1:
            return best[0]
        parts = [next((part for part in p.split(".") if part not in _CONTAINERS), "") for p in best]
        raise CheckpointError(
            f"It has no weights of a module '{self._name}'. Its modules are {sorted({*parts})}, and {len(best)} fit "
            f"equally well. Name one: {{source: …, prefix: {best[0].rstrip('.')}}}."
        )


def _are_alike_but_for_channels(value: Tensor, own: Tensor) -> bool:
    """Return whether two weights of a convolution on images have one shape, but for the channels of the images."""
    return value.ndim == own.ndim == 4 and value.shape[0] == own.shape[0] and value.shape[2:] == own.shape[2:]
