"""No downloads: a check says what is missing, and fetches nothing."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..nodes import is_node, plain

_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
# Where libraries keep the variables that they have read, and the names there.
_READ_AT_IMPORT = {
    "huggingface_hub.constants": ("HF_HUB_OFFLINE",),
    "datasets.config": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}
_OF_NETWORK = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "OfflineError"}
_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
_state = {"is_offline": False, "is_watching": False, "was_told": False}


class NoNetworkError(ConnectionError):
    """The code of a run wanted to reach another machine while it was checked."""


@contextmanager
def offline() -> Iterator[None]:
    """Refuse connections to other machines in the `with` block, in all threads of this process.

    Libraries of Hugging Face are told that they are offline, so that they look at their caches only. Everything else
    gets a `NoNetworkError` when it connects, by a hook of Python's own audit events.
    """
    if _state["is_offline"]:  # a block inside of another one
        yield
        return
    if not _state["is_watching"]:
        _state["is_watching"] = True
        sys.addaudithook(_refuse)  # it stays until the process ends, and does nothing outside of these blocks
    _state["was_told"] = is_told_offline()
    before = {name: os.environ.get(name) for name in _VARIABLES}
    kept = [
        (sys.modules[module], name, getattr(sys.modules[module], name))
        for module, names in _READ_AT_IMPORT.items()
        if module in sys.modules
        for name in names
    ]
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    for module, name, _ in kept:
        setattr(module, name, True)
    _state["is_offline"] = True
    try:
        yield
    finally:
        _state["is_offline"] = False
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        known = {(module.__name__, name): value for module, name, value in kept}
        for place, names in _READ_AT_IMPORT.items():
            for name in names if place in sys.modules else ():
                # A library that was imported in the block has read what the block had set.
                setattr(sys.modules[place], name, known.get((place, name), is_told_offline()))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise a NoNetworkError for a connection to another machine, inside of `offline`."""
    if not _state["is_offline"] or event not in _EVENTS:
        return
    address = arguments[1] if event == "socket.connect" else arguments[0]
    if event == "socket.connect" and not isinstance(address, tuple):  # a file of this machine
        return
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    if host and not _is_this_machine(host):
        raise NoNetworkError(f"a connection to {host} is refused, since a check downloads nothing")


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified


def needs_network(error: BaseException | None) -> bool:
    """Return whether an error came about because the network was refused."""
    seen = []
    while error is not None and error not in seen:
        if type(error) in (NoNetworkError, ConnectionError) or type(error).__name__ in _OF_NETWORK:
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def is_told_offline() -> bool:
    """Return whether the run itself may not download from the hub of Hugging Face, by its environment."""
    if _state["is_offline"]:
        return bool(_state["was_told"])
    return any(str(os.environ.get(name, "")).upper() in ("1", "ON", "YES", "TRUE") for name in _VARIABLES)


def without_download(value: Any) -> Any:
    """Return a configuration in which `download` is false in each node that has it."""
    value = plain(value)
    if type(value) is dict:
        changed = {"download": False} if is_node(value) and value.get("download") is True else {}
        return {key: without_download(item) for key, item in value.items()} | changed
    return type(value)(map(without_download, value)) if type(value) in (list, tuple) else value


def places_of_caches() -> str:
    """Return the folders in which the libraries look for what they have downloaded."""
    import torch

    places = [os.path.join(torch.hub.get_dir(), "checkpoints")]
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import constants

        places.insert(0, str(constants.HF_HUB_CACHE))
    return " or ".join(f"'{place}'" for place in places)
