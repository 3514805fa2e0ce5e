"""The watch: a thread that sees what becomes of the other processes while the main thread waits for them."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch.distributed as dist

from . import launchers
from .preemption import Request
from .whereabouts import whereabouts

log = logging.getLogger("stable_ssl")

SECONDS_BETWEEN_BEATS = 2.0
MISSED_BEATS = 10  # after which a process counts as gone: others end within 30 s, and a shorter pause does no harm
SECONDS_UNTIL_TOLD = 60.0  # that processes wait for each other, before they say so
STILL_BEATS = 3  # without a move, after which processes at different places are taken to wait for each other
SECONDS_TO_ANSWER = 1.0  # a signal
STORE_IS_GONE = "rank 0, or the torchrun that started it, is gone."  # one of them keeps the store


class Beat(NamedTuple):
    """What a process tells the others every two seconds.

    Attributes
    ----------
    number
        Counts up, so that the others see that the process is there.
    still
        For how many beats its main thread has been waiting for other processes at one point; 0 if it does not wait.
    place, words
        The point, as in `Whereabouts`.
    """

    number: int = 0
    still: int = 0
    place: int = 0
    words: str = ""

    def pack(self) -> str:
        """Return the text that `unpack` reads."""
        return json.dumps(self)

    @classmethod
    def unpack(cls, text: bytes) -> Beat:
        """Return the beat that a process has packed."""
        return cls(*json.loads(text))


class Watch(threading.Thread):
    """A thread that ends this process if another process of the run has failed or is gone, or if a signal says so.

    The main thread may then be waiting for other processes in an exchange, which nothing else can interrupt: Python
    handles no signal before the exchange returns.

    **Processes that wait for each other.** Each process tells the others where its main thread waits. If all of them
    wait in exchanges, at different places, and none moves for a minute, each logs a warning. A process that works, for
    example on its last checkpoint, does not wait, so that others may wait for it as long as it takes.

    **Signals.** Python's own handler always comes first: a signal that it has seen ends nothing here. A process whose
    handler does not run for a second or more ends at once, without a save, in these cases only:

    - A second Ctrl-C. (If its handler runs, it does not save either.)
    - A second signal of any kind, if all processes are seen to wait for each other. Without this condition, SIGTERM
      would cost a last save: Slurm sends it at the begin and at the end of its GraceTime, while the process may be in a
      long computation, or wait for one that saves.
    - The first signal after the warning.

    All processes then end with the signal's status, 128 + n. torchrun hands a Ctrl-C on as one SIGINT, a second one as
    a SIGTERM, and kills what is left half a minute later. The terminal itself sends its processes nothing, because they
    have sessions of their own.

    Parameters
    ----------
    store
        A client of the store of all processes that no other thread uses.
    rank, peers
        The number of this process, and those of the others.
    on_lost
        Function that is called before the process ends, with the run's status, and the error in words if it failed.
    unanswered
        Returns what `StopRequest.unanswered` does.

    Attributes
    ----------
    is_leaving
        If true, it still reports that this process is there, but does not end it any more.
    gone
        The processes that do not report any more.
    stuck
        A sentence that says where the processes wait for each other; "" if they do not.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        peers: list[int],
        on_lost: Callable[[str, str | None], None],
        unanswered: Callable[[], Mapping[Request, tuple[int, float]]],
    ):
        super().__init__(name="watch", daemon=True)
        self._store, self._rank, self._peers = store, rank, peers
        self._on_lost, self._unanswered = on_lost, unanswered
        self._watched, self._beat = threading.get_ident(), Beat()
        self._moment: tuple[tuple[int, int], ...] = ()
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self.is_leaving = False
        self.gone: set[int] = set()
        self.stuck, self._still = "", 0  # for how many beats all processes have been waiting for each other

    def run(self) -> None:
        """Watch until `stop` is called, or this process has to end."""
        last, missed = [b""] * len(self._peers), [0] * len(self._peers)
        while not self._stopped.wait(SECONDS_BETWEEN_BEATS):
            self._look()
            try:
                self._store.set(f"beat{self._rank}", self._beat.pack())
                if request := self._unheard():
                    self._store.compare_set("failed", "", f"{request.name}: {self._why(request)}")
                if self._store.check(["failed"]):
                    return self._hear(self._store.get("failed").decode())
                beats = self._store.multi_get([f"beat{rank}" for rank in self._peers])
            except RuntimeError:
                return self._end(STORE_IS_GONE)
            # Time is counted in own beats, so that after a suspend this machine does not take the others for gone.
            missed = [0 if new != old else n + 1 for new, old, n in zip(beats, last, missed, strict=True)]
            last = beats
            self.gone = {rank for rank, n in zip(self._peers, missed, strict=True) if n >= MISSED_BEATS}
            if self.gone and not self.is_leaving:
                return self._end(f"rank {min(self.gone)} is gone.")
            self._compare({self._rank: self._beat, **dict(zip(self._peers, map(Beat.unpack, beats), strict=True))})

    def _look(self) -> None:
        """Find out where the main thread is."""
        is_exchange, moment, place, words = whereabouts(self._watched)
        still = self._beat.still + 1 if is_exchange and moment == self._moment else 0
        self._moment, self._beat = moment, Beat(self._beat.number + 1, still, place, words if still else "")

    def _compare(self, beats: Mapping[int, Beat]) -> None:
        """Find out whether all processes wait for each other, and say so once if they do for long."""
        is_apart = len({beat.place for beat in beats.values()}) > 1
        self._still = min(beat.still for beat in beats.values()) if is_apart else 0
        if self._still * SECONDS_BETWEEN_BEATS < SECONDS_UNTIL_TOLD:
            self.stuck = ""
        elif not self.stuck:
            self.stuck = (
                f"For {SECONDS_UNTIL_TOLD:.0f} s, the processes have been waiting for each other at different places: "
                f"{_places(beats)}. Usually only some of them call a module, or full_state_dict, that all must call. "
                "Ctrl-C or SIGTERM ends the run; it goes on from its newest checkpoint."
            )
            log.warning(self.stuck)

    def _unheard(self) -> Request | None:
        """Return the request of a signal that ends this process, since Python does not hear it."""
        unanswered = self._unanswered().items()
        times = {request: times for request, (times, seconds) in unanswered if seconds >= SECONDS_TO_ANSWER}
        is_hopeless = self.stuck or (self._still >= STILL_BEATS and sum(times.values()) > 1)
        return max(times) if times and (is_hopeless or times.get(Request.SIGINT, 0) > 1) else None

    def _why(self, request: Request) -> str:
        what = "waited for the other processes in an exchange" if self._beat.still else "was in a long operation"
        return f"rank {self._rank} got {request.name} while it {what}."

    def stop(self) -> None:
        """End the thread. If it is about to end the process, wait for that."""
        with self._lock:
            self._stopped.set()
        if self.ident and self is not threading.current_thread():
            self.join(SECONDS_BETWEEN_BEATS)

    def _hear(self, words: str) -> None:
        """End this process because of what a process has told all."""
        name, _, why = words.partition(": ")
        if request := Request.__members__.get(name):
            return self._end(f"{why} All end without a save. The run goes on from its newest checkpoint.", request)
        time.sleep(SECONDS_BETWEEN_BEATS)  # the main thread may notice the failure itself, and close its files
        self._end(words)

    def _end(self, why: str, request: Request | None = None) -> None:
        with self._lock:
            if self._stopped.is_set() or self.is_leaving:
                return
            log.error("Rank %d ends%s: %s", self._rank, " at once" if request else " too", why)
            if request:
                self._on_lost("preempted", None)
                time.sleep(1.5 * SECONDS_BETWEEN_BEATS)  # the others hear of it before they miss this process
            else:
                self._on_lost("failed", why)
            for child in launchers.children.values():
                child.kill()
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(request.status if request else 1)


def _places(beats: Mapping[int, Beat]) -> str:
    """Return which ranks are where, in words."""
    ranks: dict[str, list[int]] = {}
    for rank, beat in sorted(beats.items()):
        ranks.setdefault(beat.words, []).append(rank)
    return "; ".join(
        f"rank{'s' if len(found) > 1 else ''} {', '.join(map(str, found))} in {words}" for words, found in ranks.items()
    )
