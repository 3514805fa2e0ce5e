"""What an operation is said to do on a GPU, by a rehearsal on `meta`. Where there is a GPU, it does it."""

from __future__ import annotations

import pytest
import torch
from operations import OPERATIONS

from stable_ssl.rehearsal.device.waits import ERRORS, Findings, noticing


def arguments(device):
    """Return floats (4, 3), whole numbers (4,) and truths (4,)."""
    like = {"device": device}
    return torch.ones(4, 3, **like), torch.ones(4, dtype=torch.long, **like), torch.ones(4, dtype=torch.bool, **like)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_noticed_as_what_it_is(name, monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # only a machine with a GPU has it
    kind, operation = OPERATIONS[name]
    findings = Findings()
    with findings.counting_waits(), noticing(findings):
        operation(*arguments("meta"))
    assert {finding.kind for finding in findings.all} == ({kind} if kind else set())
    assert all("operations.py:" in finding.place for finding in findings.all)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_does_what_is_noticed(name):
    kind, operation = OPERATIONS[name]
    given = arguments("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("default" if kind in ERRORS else "error")
    try:
        if kind is None:
            operation(*given)
        else:
            with pytest.raises((RuntimeError, TypeError)):
                operation(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
