"""Several processes of one run: how they exchange values, and how they end together."""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..exceptions import SAID_ELSEWHERE, ConfigError, PeerError
from . import launchers
from .peers import Peers
from .preemption import Request
from .watch import SECONDS_BETWEEN_BEATS, STORE_IS_GONE, Beat, Watch

SECONDS_TO_MEET = 60.0

_runs = itertools.count()


class World:
    """The processes of one run, at least two.

    Parameters
    ----------
    place
        This process's number, and the address at which the processes meet.

    Attributes
    ----------
    rank, local_rank, size
        The number of this process, its number on its machine, and the number of processes.
    is_main
        Whether this process writes the files: rank 0 does.
    on_lost
        Function that is called before this process ends because of another one, or of a signal that Python does not
        hear. It gets the status of the run, and the error in words if the run failed.
    unanswered
        Returns the signals that Python has not heard, as `StopRequest.unanswered` does.

    Raises
    ------
    PeerError
        Some processes did not join in time.
    """

    def __init__(self, place: launchers.Place):
        self.rank, self.local_rank, self.size = place.rank, place.local_rank, place.size
        self.is_main = self.rank == 0
        self.on_lost: Callable[[str, str | None], None] = lambda status, error: None
        self.unanswered: Callable[[], Mapping[Request, tuple[int, float]]] = dict
        self._meetings = itertools.count()
        self._has_left = False
        self._join(place)

    def _join(self, place: launchers.Place) -> None:
        if dist.is_initialized():
            raise ConfigError("torch.distributed has a process group already; leave it to the trainer to make one.")
        # The same store serves all runs of a script, the points of a sweep, and the restarts by torchrun. Each run has
        # keys of its own.
        names = ("TORCHELASTIC_RESTART_COUNT", "STABLE_SSL_POINT")
        prefix = "/".join(["stable_ssl", *(os.environ.get(name, "0") for name in names), str(next(_runs))])
        self._store = dist.PrefixStore(prefix, launchers.connect(place))
        self._peers = [rank for rank in range(self.size) if rank != self.rank]
        self._store.set(f"beat{self.rank}", Beat().pack())
        missing = self._await("beat", launchers.SECONDS_TO_JOIN)
        if missing:
            ended = {rank: launchers.children[rank].poll() for rank in missing if rank in launchers.children}
            how = (
                f" Started as '{' '.join(sys.orig_argv)}' in '{launchers.FOLDER}', they ended with {ended}."
                if ended
                else ""
            )
            raise PeerError(f"Of {self.size} processes, ranks {missing} did not come.{how}")
        # The watch has a client of its own, because the main thread may block the first one while it waits.
        store = dist.PrefixStore(prefix, launchers.connect(place).clone())
        self._watch = Watch(store, self.rank, self._peers, lambda *end: self.on_lost(*end), lambda: self.unanswered())
        self._watch.start()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
        self._host_group: Any = dist.new_group(backend="gloo")

    def _await(self, what: str, seconds: float) -> list[int]:
        """Wait until each other process has set its key, and return the ranks that did not.

        Parameters
        ----------
        what
            The beginning of the key. A process adds its rank.
        seconds
            The longest wait. It ends early if a process that this one started has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            missing = [rank for rank in self._peers if not self._store.check([f"{what}{rank}"])]
            ended = [
                rank for rank in missing if rank in launchers.children and launchers.children[rank].poll() is not None
            ]
            if not missing or ended or time.monotonic() > deadline:
                return ended or missing
            time.sleep(0.02)

    @cached_property
    def peers(self) -> Peers:
        """These processes, for checkpoints, whose exchanges a thread makes, and for checks in the set-up.

        All of them have to ask for it at the same place in the program.
        """
        return Peers(self.rank, self.size, dist.new_group(backend="gloo"))

    @property
    def stuck(self) -> str:
        """Where the processes wait for each other, in a sentence; "" if they do not."""
        return self._watch.stuck

    # What the processes tell each other -------------------------------------------------------------------------------

    def largest(self, *numbers: int) -> list[int]:
        """Return each whole number's largest value over the processes."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def smallest(self, number: int) -> int:
        """Return a whole number's smallest value over the processes."""
        return self._reduced([number], dist.ReduceOp.MIN)[0]

    def any(self, is_true: bool) -> bool:
        """Return whether something is true on any process."""
        return self.largest(is_true)[0] > 0

    def ask(self, is_true: bool) -> Callable[[], bool]:
        """Begin to ask whether something is true on any process. The function that is returned waits for the answer."""
        found = torch.tensor([int(is_true)])
        work = dist.all_reduce(found, dist.ReduceOp.MAX, group=self._host_group, async_op=True)

        def answer() -> bool:
            work.wait()
            return bool(found)

        return answer

    def _reduced(self, numbers: Sequence[int], operation: Any) -> list[int]:
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values, operation, group=self._host_group)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank. A value is anything that can be pickled."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._host_group)
        return values

    def send(self, value: Any, size: int) -> Callable[[], list[Any]]:
        """Begin to exchange a value, without waiting for the other processes.

        Parameters
        ----------
        value
            Anything that can be pickled.
        size
            Bytes that it may need, the same number on every process. If one of the values needs more, `receive` takes
            a second exchange.

        Returns
        -------
        receive
            Waits for the values of all processes, and returns them by rank.
        """
        data = pickle.dumps(value)
        fits = len(data) < size - 4
        mine = torch.frombuffer(
            bytearray((len(data) if fits else 0).to_bytes(4, "big") + (data if fits else b"").ljust(size - 4)),
            dtype=torch.uint8,
        )
        found = [torch.empty_like(mine) for _ in range(self.size)]
        work = dist.all_gather(found, mine, group=self._host_group, async_op=True)

        def receive() -> list[Any]:
            work.wait()
            rows = [row.numpy().tobytes() for row in found]
            lengths = [int.from_bytes(row[:4], "big") for row in rows]
            if not all(lengths):  # one of them is too long
                return self.gather(value)
            return [pickle.loads(row[4 : 4 + length]) for row, length in zip(rows, lengths, strict=True)]

        return receive

    def gather_on_main(self, value: Any) -> list[Any] | None:
        """Return the values of all processes, by rank, on rank 0. Other ranks get None."""
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, 0, group=self._host_group)
        return values

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 only, and return its result on every process. Its error is raised on all."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, 0, group=self._host_group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def meet(self, why: str) -> None:
        """Wait until all processes are here.

        Parameters
        ----------
        why
            The event that made this process wait, for the error.

        Raises
        ------
        PeerError
            Some processes do not arrive within a minute.
        """
        number = next(self._meetings)
        self._store.set(f"met{number}.{self.rank}", "")
        if missing := self._await(f"met{number}.", SECONDS_TO_MEET):
            raise PeerError(f"{why} on rank {self.rank}, but not on ranks {missing}: there it must be raised on all.")

    # Tensors ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors, in place, by those of rank 0."""
        for tensor in tensors:
            data = tensor.detach().reshape(-1).clone().view(torch.uint8)
            dist.broadcast(data, 0)
            tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their mean over the processes."""
        for tensor in tensors:
            total = tensor.contiguous()
            dist.all_reduce(total)
            tensor.copy_(total.div_(self.size))

    # The end ----------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Tell the other processes that this one failed, so that they end too.

        An error that another process explains is shown as a sentence if nothing catches it. It is an error of an
        exchange, or the same error as there.

        Raises
        ------
        PeerError
            Another process failed first, so the error here may be a consequence.
        """
        self._watch.stop()
        words, is_of_exchange = f"{type(error).__name__}: {error}", isinstance(error, dist.DistError)
        if "gloo" in str(error):
            is_of_exchange = True
            error.add_note("Either another process is gone, or the processes did different things.")
        try:
            first = self._store.compare_set("failed", "", f"rank {self.rank} failed: {words}").decode()
        except RuntimeError:
            first = STORE_IS_GONE
        if first.startswith(f"rank {self.rank} "):
            return
        ends = PeerError(first) if isinstance(error, RuntimeError) else error
        is_explained = is_of_exchange or first.endswith(f" failed: {words}")
        if is_explained:
            ends.add_note(SAID_ELSEWHERE)
            sys.excepthook = partial(_show, sys.excepthook, f"Rank {self.rank} ends too: {first}")
        if ends is not error:
            raise ends from (None if is_explained else error)

    def leave(self) -> None:
        """Leave the run together with the other processes. The next trainer of the script may form another run.

        Rank 0 keeps the store, and Slurm may end all processes when the first one exits. So each process waits until
        all others have arrived here or are gone. Some may still write files, or ask Slurm to requeue the job.
        """
        if self._has_left:
            return
        self._has_left = self._watch.is_leaving = True
        has_failed = True
        try:
            has_failed = self._store.check(["failed"])
            if not has_failed:
                self._store.set(f"left{self.rank}", "")
                while self._watch.is_alive() and not set(self._await("left", 1.0)) <= self._watch.gone:
                    if self._store.check(["failed"]):
                        break
            self._watch.stop()
            self._store.set(f"bye{self.rank}", "")
            if self.is_main:  # the store ends with rank 0
                self._await("bye", SECONDS_BETWEEN_BEATS)
        except RuntimeError:
            pass  # rank 0 is gone
        self._watch.stop()
        # After a failure, NCCL might wait for ever for the other processes.
        if dist.is_initialized() and not (has_failed and torch.cuda.is_available()):
            dist.destroy_process_group()


def _show(otherwise: Callable[..., Any], sentence: str, *error: Any) -> None:
    """Show an error that nothing has caught: as a sentence if another process explains it, else in full."""
    if SAID_ELSEWHERE in getattr(error[1], "__notes__", ()):
        print(sentence, file=sys.stderr)
    else:
        otherwise(*error)
