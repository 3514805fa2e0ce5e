"""A check reaches no other machine, and leaves the libraries as it found them."""

from __future__ import annotations

import os
import socket
import urllib.request

import huggingface_hub.constants
import pytest

from stable_ssl.rehearsal.offline import NoNetworkError, needs_network, offline


def test_connections_are_refused_in_the_block_only_and_by_hugging_face_at_once(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = socket.create_server(("127.0.0.1", 0))
    with offline():
        assert huggingface_hub.constants.is_offline_mode()
        for host in ("192.0.2.1", "example.org"):  # kept for documentation: nobody is there
            with pytest.raises(NoNetworkError):
                socket.create_connection((host, 80), timeout=1)
        with pytest.raises(OSError, match="refused, since a check downloads nothing") as caught:
            urllib.request.urlopen("http://192.0.2.1/weights.pth", timeout=1)
        assert needs_network(caught.value)
        for host in ("127.0.0.1", b"localhost", "127.0.1.1", socket.gethostname()):  # this machine may be reached
            assert socket.gethostbyname(host)
        socket.create_connection(server.getsockname()).close()
    assert not huggingface_hub.constants.is_offline_mode()
    assert "HF_HUB_OFFLINE" not in os.environ
    with pytest.raises(OSError) as caught:  # noqa: PT011 (there is no network, or a time-out)
        socket.create_connection(("192.0.2.1", 80), timeout=0.05)
    assert not isinstance(caught.value, NoNetworkError)
