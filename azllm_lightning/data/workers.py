"""Apply a function to items on all cores, in order and in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import TypeVar

from azllm_lightning.cli.messages import tr

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`count` processes, started when there is more than one item to work on.

    Leaving the context ends them. They ignore Ctrl+C, which the process that uses them handles, and
    end when it dies.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order; a few items and results are in memory at once.

        An exception of `function` or of `items` is raised when its turn comes. Raises ValueError
        if a process was killed.
        """
        iterator = iter(items)
        first = list(_take(iterator, 2))
        items = chain(first, iterator)
        if self.count == 1 or len(first) < 2:
            yield from map(function, items)
            return
        pending: deque[Future[Result]] = deque()
        try:
            pool = self._start()
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * self.count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                tr(
                    "a process that prepares the text ended, most likely because memory ran out: "
                    "close other programs, or use fewer processes (data.prepare_workers=1); what "
                    "is finished is kept"
                )
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Forking is quick and, unlike spawning, works in scripts without a __main__ guard. The
            # children call neither PyTorch nor anything else that threads may have left locked.
            method = "fork" if sys.platform == "linux" else "spawn"
            context = multiprocessing.get_context(method)
            # Windows waits for at most 63 processes at once, of which Python needs two.
            count = min(self.count, 61) if sys.platform == "win32" else self.count
            self._pool = ProcessPoolExecutor(count, context, _set_up)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
                try:
                    self._pool.submit(os.getpid).result()
                except BrokenProcessPool:
                    if method == "spawn":
                        raise unguarded() from None
                    raise
        return self._pool


def check_guarded() -> None:
    """Raise ValueError in a process that runs a script a second time, to import it.

    Without a guard, the script would prepare its text again there, and wait for the process that
    started it for the same reason.
    """
    # What multiprocessing itself asks before it starts a process, which here would be too late.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise unguarded()


def unguarded() -> ValueError:
    """The error of a script that a new process cannot import."""
    return ValueError(
        tr(
            "this script is run again by each process that prepares the text: put what it does "
            'under `if __name__ == "__main__":`, or use one process (data.prepare_workers=1)'
        )
    )


def num_cores() -> int:
    """The CPU cores that this process may use; a container may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _take(iterator: Iterator[Item], count: int) -> Iterator[Item]:
    for _ in range(count):
        try:
            yield next(iterator)
        except StopIteration:
            return


def _set_up() -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
