"""Threads that do jobs of this package."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class Threads:
    """Threads that do jobs in the order in which they are given.

    Unlike those of `concurrent.futures.ThreadPoolExecutor`, they do not keep Python from ending if a job hangs, such as
    one that reads from a file system that does not answer.

    Parameters
    ----------
    count
        How many there are.
    name
        Of the threads, for debuggers.
    """

    def __init__(self, count: int, name: str):
        self._jobs: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}_{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable, *args: Any) -> Future:
        """Have a thread call `job(*args)`, and return its future result."""
        future: Future = Future()
        self._jobs.put((future, job, args))
        return future

    def map(self, job: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
        """Yield `job(item)` for each item, in their order, while `ahead` further ones are worked on."""
        coming: deque[Future] = deque()
        for item in items:
            coming.append(self.submit(job, item))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def close(self, wait: bool = True) -> None:
        """End the threads. Jobs that no thread has begun are cancelled.

        Parameters
        ----------
        wait
            Return once the jobs that were begun are done.
        """
        if sys.is_finalizing():  # Python has stopped them, and taken its modules apart
            return
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads if wait else []:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except BaseException as error:
                    future.set_exception(error)
