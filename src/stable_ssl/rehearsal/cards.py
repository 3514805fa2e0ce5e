"""The cards that a run may be meant for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..exceptions import ConfigError, nearest

GIB = 2**30
_AFTER_ECC = 15 / 16  # of GDDR6: the rest holds the codes that correct its errors, which cards of servers have on


@dataclass(frozen=True)
class Card:
    """A graphics card. A figure is None if it is not known, or if the card has no such units.

    Attributes
    ----------
    name
        Such as "a100-40gb".
    memory_bytes
        Its memory.
    bf16, fp16, tf32, fp32
        Peak of FLOPs per second. The first three are those of the tensor cores, for dense matrices, with sums in fp32.
    bandwidth
        Of its memory, in bytes per second.
    """

    name: str
    memory_bytes: int
    bf16: float | None = None
    fp16: float | None = None
    tf32: float | None = None
    fp32: float | None = None
    bandwidth: float | None = None


def _card(
    name: str,
    memory: float,
    half: float,
    tf32: float | None,
    fp32: float,
    bandwidth: float,
    *,
    has_bf16: bool = True,
) -> Card:
    """Return a card; `memory` is in GiB, the peaks are in TFLOP/s, `half` that of bf16 and fp16, and GB/s."""
    tera = 1e12
    return Card(
        name,
        int(memory * GIB),
        half * tera if has_bf16 else None,
        half * tera,
        None if tf32 is None else tf32 * tera,
        fp32 * tera,
        bandwidth * 1e9,
    )


# From NVIDIA's data sheets of each card; for the RTX 3090, 4090 and 5090 from the white papers of their architectures
# (Ampere GA102, Ada, Blackwell). Where a sheet gives the peak with sparsity, it is halved here.
CARDS = {
    card.name: card
    for card in (
        _card("b200", 180, 2250, 1125, 75, 8000),  # a card of a DGX B200
        _card("h200", 141, 989.5, 494.5, 67, 4800),  # SXM
        _card("h100-80gb", 80, 989.5, 494.5, 67, 3350),  # SXM
        _card("h100-pcie", 80, 756, 378, 51, 2000),
        _card("a100-80gb", 80, 312, 156, 19.5, 2039),  # SXM
        _card("a100-40gb", 40, 312, 156, 19.5, 1555),
        _card("a40", 48 * _AFTER_ECC, 149.7, 74.8, 37.4, 696),
        _card("a30", 24, 165, 82, 10.3, 933),
        _card("a10", 24 * _AFTER_ECC, 125, 62.5, 31.2, 600),
        _card("a6000", 48, 154.8, 77.4, 38.7, 768),  # RTX A6000
        _card("rtx6000-ada", 48, 364.2, 182.1, 91.1, 960),
        _card("l40s", 48 * _AFTER_ECC, 362, 183, 91.6, 864),
        _card("l4", 24 * _AFTER_ECC, 121, 60, 30.3, 300),
        _card("v100-16gb", 16, 125, None, 15.7, 900, has_bf16=False),  # SXM2
        _card("v100-32gb", 32, 125, None, 15.7, 900, has_bf16=False),
        _card("t4", 16 * _AFTER_ECC, 65, None, 8.1, 300, has_bf16=False),
        _card("rtx3090", 24, 71, 35.6, 35.6, 936),
        _card("rtx4090", 24, 165.2, 82.6, 82.6, 1008),
        _card("rtx5090", 32, 209.5, 104.8, 104.8, 1792),
    )
}


def card_named(text: str) -> Card:
    """Return the card of a name, in upper or lower case, with or without hyphens, or one of `<N>gb` of memory.

    Raises
    ------
    ConfigError
        There is no such card. The sentence begins with "device:".

    Examples
    --------
    >>> card_named("A100 40GB").name
    'a100-40gb'
    >>> card_named("24gb").memory_bytes // 2**30
    24
    """
    plain = re.sub(r"[^a-z0-9.]", "", text.lower())
    found = next((card for name, card in CARDS.items() if name.replace("-", "") == plain), None)
    if found is not None:
        return found
    if (size := re.fullmatch(r"(\d+(?:\.\d+)?)gi?b", plain)) and float(size[1]) > 0:
        return Card(plain, int(float(size[1]) * GIB))
    alike = [f"'{name}'" for name in CARDS if plain and name.startswith(plain)]  # "a100" is one of two
    hint = f" Did you mean {' or '.join(alike)}?" if alike else nearest(text.lower(), CARDS, cutoff=0.5)
    raise ConfigError(
        f"device: '{text}' is none of the cards {', '.join(CARDS)}, nor a size of memory such as 24gb.{hint}"
    )
