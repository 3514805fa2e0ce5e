"""The software and hardware of a run: they decide the last bits of its results, and no configuration names them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

_WORDS = {
    "python": "Python",
    "torch": "PyTorch",
    "numpy": "NumPy",
    "stable_ssl": "stable-ssl",
    "device_model": "The device",
    "vector_width": "The processor's vector width",
    "threads": "The number of threads",
}


def software() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    from .. import __version__

    versions = {"stable_ssl": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
    return {"python": platform.python_version(), **versions}


def environment(device: torch.device) -> dict[str, str | int]:
    """Return everything besides the configuration that the last bits of a run's results depend on.

    Parameters
    ----------
    device
        The device that the run trains on.

    Returns
    -------
    dict
        The versions of `software`; `device_model`, the name of the GPU or of the processor; `vector_width`, the widest
        vector instructions that torch uses on this processor, such as "AVX2"; `threads`, how many threads torch uses.
    """
    return {
        **software(),
        "device_model": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "vector_width": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one sentence per difference that can change the last bits of results.

    Only entries that both sides have are compared. Python 3.12.1 and 3.12.4 count as equal, because results do not
    depend on the last number.

    Parameters
    ----------
    before
        The `meta.json` of a checkpoint, or what `environment` returned earlier.
    now
        What `environment` returns now.

    Examples
    --------
    >>> meta = {"software": {"torch": "2.9.0"}, "world": {"threads": 8}}
    >>> environment_changes(meta, {"torch": "2.10.0", "threads": 8})
    ['PyTorch was 2.9.0 before and is 2.10.0 now.']
    """
    parts = (before.get(name, {}) for name in ("software", "world", "environment"))
    before = {**before, **{key: value for part in parts for key, value in part.items()}}
    return [
        f"{words} was {before[key]} before and is {now[key]} now."
        for key, words in _WORDS.items()
        if key in before and key in now and _relevant(key, before[key]) != _relevant(key, now[key])
    ]


def _relevant(key: str, value: Any) -> Any:
    """Return the part of an entry that results depend on."""
    return value.split(".")[:2] if key == "python" else value


def _processor() -> str:
    """Return the processor's model, as far as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
