"""A plugin of pytest that prints the CPU time per folder and of the ten longest tests, with all processes they start."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import processes
import pytest

TESTS = Path(__file__).parent
OTHER = "imports, collection"
# Seconds per folder and per test: of this process's tests, or of all workers'.
spent: Counter[str] = Counter()
of_tests: Counter[str] = Counter()


def cpu_time() -> float:
    """Return the CPU time in seconds of this process, and of all that it started, whether they still run or not."""
    own = os.times()
    total, unseen = own.user + own.system + own.children_user + own.children_system, _children(os.getpid())
    while unseen:
        pid = unseen.pop()
        is_server = processes.server is not None and pid == processes.server.pid
        total += _of_process(pid, with_children=not is_server)
        if not is_server:  # who asked the server for a process counts that
            unseen += _children(pid)
    return total + processes.cpu_seconds


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
        ]
    except OSError:  # it has ended, or the system has no such files
        return []


def _of_process(pid: int, with_children: bool) -> float:
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[11 : 15 if with_children else 13]
    except OSError:
        return 0.0
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = cpu_time()
    result = yield
    of_tests[item.nodeid] = cpu_time() - before
    spent[item.path.relative_to(TESTS).parts[0]] += of_tests[item.nodeid]
    return result


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        spent[OTHER] = cpu_time() - spent.total()
        session.config.workeroutput["cpu_time"] = (dict(spent), dict(of_tests))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add what a worker of pytest-xdist spent."""
    for total, added in zip((spent, of_tests), getattr(node, "workeroutput", {}).get("cpu_time", ()), strict=False):
        total.update(added)


def pytest_terminal_summary(terminalreporter, config):
    if config.pluginmanager.hasplugin("dsession"):  # workers are children of this process, and have told
        own = os.times()
        spent[OTHER] += own.user + own.system
        spent[OTHER] += _of_process(processes.server.pid, with_children=False) if processes.server else 0
    else:
        spent[OTHER] += cpu_time() - spent.total()
    terminalreporter.section(f"CPU time: {spent.total():.0f} s")
    for name, seconds in spent.most_common() + of_tests.most_common(int(os.environ.get("CPU_TESTS", 10))):
        terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
