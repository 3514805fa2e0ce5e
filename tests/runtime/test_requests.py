"""Requests to stop are numbers that processes compare, and say themselves what they mean."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time

import pytest

from stable_ssl.exceptions import Preempted
from stable_ssl.runtime.preemption import Request, StopRequest


def test_the_most_urgent_of_several_requests_wins_as_an_enum_and_as_a_number():
    with StopRequest() as stop:
        assert stop.request is Request.NONE
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.request is Request.SIGUSR1
    assert list(Request) == sorted(Request)
    assert max(int(stop.request), int(Request.SIGINT)) == Request.SIGINT


def test_a_closed_terminal_stops_a_run_unless_nohup_started_it():
    for handler, expected in ((signal.SIG_DFL, Request.SIGHUP), (signal.SIG_IGN, Request.NONE)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with StopRequest() as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.request is expected
        finally:
            signal.signal(signal.SIGHUP, before)


def test_a_time_limit_is_a_request_once_it_has_passed():
    assert StopRequest(time_limit=0).request is Request.TIME_LIMIT
    assert StopRequest(time_limit=1).request is Request.NONE


def test_a_request_knows_its_words_and_its_exit_status_whoever_it_was_made_to():
    assert [(StopRequest.reason(int(request)), request.status) for request in list(Request)[1:]] == [
        ("the time limit", 75),
        *((f"SIG{name}", 128 + signal.Signals[f"SIG{name}"]) for name in ("HUP", "TERM", "USR2", "USR1", "INT")),
    ]


@pytest.mark.parametrize("then", ["PENDING", "RUNNING"])
def test_a_job_that_slurm_requeues_in_the_same_moment_has_not_failed(then, tmp_path, monkeypatch):
    """A real Slurm can't be made to requeue between the question and submitit's command: so a script stands for it."""
    script = tmp_path / "scontrol"
    script.write_text(
        f"#!/bin/sh\nif [ $1 = requeue ]; then touch '{tmp_path}/asked'; exit 1; fi\n"
        f"[ -e '{tmp_path}/asked' ] && state={then} || state=RUNNING\necho \"JobId=7 JobState=$state Reason=None\"\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, lambda *_: subprocess.check_call(["scontrol", "requeue", "7"]))
    try:
        with StopRequest() as stop, pytest.raises(Preempted if then == "PENDING" else subprocess.CalledProcessError):
            stop.end_run(Request.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_signals_that_python_does_not_hear_are_known_to_other_threads_until_it_does():
    found = []

    def send(stop):
        for _ in range(2):
            time.sleep(0.2)  # the main thread is in C by now
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)
            found.append(stop.unanswered())

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # so that the other thread gets it
    try:
        with StopRequest(listens=True) as stop:
            thread = threading.Thread(target=send, args=(stop,))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            thread.start()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            ctypes.CDLL(None).sleep(1)
            assert stop.unanswered() == {}
            assert stop.request is Request.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert [unanswered[Request.SIGUSR1][0] for unanswered in found] == [1, 2]
    assert 0.2 <= found[1][Request.SIGUSR1][1] < 0.9
    assert stop.unanswered() == {}


def test_a_signal_of_a_forked_child_is_none_of_its_parent_and_the_wakeup_of_before_returns():
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    before = signal.set_wakeup_fd(wakes)
    try:
        with StopRequest(listens=True) as stop:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert (stop.unanswered(), stop.request) == ({}, Request.NONE)
            stop._note = None  # as if a user had set another handler
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.unanswered() == {}
        assert signal.set_wakeup_fd(wakes) == wakes
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wakes)
