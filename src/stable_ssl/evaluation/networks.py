"""The features that a network gives of an image, by name.

- `representation`: what a run is evaluated by; of other networks their output without the last layer.
- `embedding`: the projector's output.
- `class`: the class token of a vision transformer after its last block. `patches`: the mean over the patches.
- `class:4`: the class tokens of the last four blocks, one after the other. `class:4+patches`, `class+patches`: with the
  mean over the patches of the last block behind. All tokens go through the network's last normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..exceptions import ConfigError, nearest
from .subject import Subject

_OF_TOKENS = re.compile(r"(?P<patches>patches)|class(:(?P<blocks>[1-9]\d*))?(?P<joined>\+patches)?")
# Where vision transformers keep their blocks and their last normalisation: ours, torchvision's, timm's and DINO's.
_PLACES = (
    ("blocks.layers", "blocks.norm"),
    ("encoder.layers", "encoder.ln"),
    ("blocks", "norm"),
)
# CaiT and XCiT of timm have these too, and add the class token there.
_LATER_BLOCKS = ("blocks_token_only", "cls_attn_blocks")


class Features(nn.Module):
    """Computes features of images by name.

    Parameters
    ----------
    subject
        What is evaluated.
    names
        The features.

    Raises
    ------
    ConfigError
        The network has no such features. The message says which it has.
    """

    def __init__(self, subject: Subject, names: Sequence[str]):
        super().__init__()
        self.names = tuple(dict.fromkeys(names))
        self.network, self.backbone, self.projector = subject.network, subject.backbone, subject.projector
        self._tokens = _find_tokens(subject.backbone)
        known = feature_names(subject)
        for name in self.names:
            if name not in known and not self._has_tokens_for(name):
                more = f" Numbers of blocks go up to {len(self._tokens.blocks)}." if self._tokens else ""
                raise ConfigError(
                    f"--features: '{subject.name}' gives no '{name}'. It gives {', '.join(known)}.{more}"
                    f"{nearest(name, known)}"
                )

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the features of images (batch, channels, height, width): by name, (batch, dim)."""
        of_tokens = [name for name in self.names if _OF_TOKENS.fullmatch(name)]
        found: dict[str, Tensor] = {}
        if len(of_tokens) < len(self.names):
            found["representation"] = self.network(images).flatten(1)
        if "embedding" in self.names and self.projector is not None:
            found["embedding"] = self.projector(found["representation"]).flatten(1)
        if of_tokens and self._tokens:
            number = max(_parts(name)[0] for name in of_tokens)
            with self._tokens.kept(number) as outputs:
                self.backbone(images)
            tokens = [self._tokens.norm(output) for output in outputs]  # (batch, tokens, dim), the last block's last
            found.update((name, self._joined(name, tokens)) for name in of_tokens)
        return {name: found[name] for name in self.names}

    def _joined(self, name: str, tokens: list[Tensor]) -> Tensor:
        number, has_patches = _parts(name)
        parts = [block[:, 0] for block in tokens[len(tokens) - number :]] if name != "patches" else []
        if has_patches and self._tokens:
            parts.append(tokens[-1][:, self._tokens.num_others :].mean(1))
        return torch.cat(parts, dim=1)

    def _has_tokens_for(self, name: str) -> bool:
        if self._tokens is None or not _OF_TOKENS.fullmatch(name):
            return False
        return (name == "patches" or self._tokens.has_class) and _parts(name)[0] <= len(self._tokens.blocks)


def feature_names(subject: Subject) -> list[str]:
    """Return the names of the features that a network gives; those of several blocks stand for any number of them."""
    tokens = _find_tokens(subject.backbone)
    names = ["representation", *(["embedding"] if subject.projector is not None else [])]
    if tokens and tokens.has_class:
        few = min(4, len(tokens.blocks))
        names += ["class", "class+patches", f"class:{few}", f"class:{few}+patches"]
    return [*names, "patches"] if tokens else names


def _parts(name: str) -> tuple[int, bool]:
    """Return how many last blocks a feature needs, and whether the mean over the patches is in it."""
    found: Any = _OF_TOKENS.fullmatch(name)
    return int(found["blocks"] or 1), bool(found["patches"] or found["joined"])


class _Tokens(NamedTuple):
    """The blocks of a vision transformer, its last normalisation, and its tokens before those of the patches."""

    blocks: list[nn.Module]
    norm: nn.Module
    num_others: int
    has_class: bool

    @contextmanager
    def kept(self, number: int) -> Iterator[list[Tensor]]:
        """Keep the outputs of the last blocks, (batch, tokens, dim) each, in the list that is yielded."""
        outputs: list[Tensor] = []

        def keep(block: nn.Module, inputs: Any, output: Any) -> None:
            outputs.append(output if isinstance(output, Tensor) else output[0])

        handles = [block.register_forward_hook(keep) for block in self.blocks[len(self.blocks) - number :]]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()


def _find_tokens(network: Any) -> _Tokens | None:
    """Return the blocks of a vision transformer; None if the network is none that is known."""
    for of_blocks, of_norm in _PLACES:
        try:
            blocks, norm = network.get_submodule(of_blocks), network.get_submodule(of_norm)
        except AttributeError:
            continue
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            continue
        if any(hasattr(network, name) for name in _LATER_BLOCKS):
            return None
        has_class = any(getattr(network, name, None) is not None for name in ("cls_token", "class_token"))
        num_others = getattr(network, "num_prefix_tokens", has_class + getattr(network, "num_register_tokens", 0))
        return _Tokens([*blocks], norm, num_others, has_class)
    return None


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a vision transformer, from the first. Empty if the network is none that is known."""
    tokens = _find_tokens(network)
    return tokens.blocks if tokens else []
