"""Tiles on threads, with NumPy's BLAS held to one thread while they run.

Threads over tiles make the copies parallel as well as the products, and a product on one thread adds up in the same
order however many tiles run beside it. The pool and the hold are made at the first call that needs them, serve the
whole process, and start afresh in a forked child.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import Any

from ...primitives import Team


class _BlasHold:
    """Holds the BLAS to one thread while anybody wants that, and restores it after the last one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.saved: list[int] = []

    def __enter__(self) -> int:
        """The number of threads that the holder may use: all of the BLAS's for the first, one for those beside it."""
        libraries = blas_libraries()
        with self.lock:
            self.holders += 1
            if self.holders > 1:
                return 1
            self.saved = [library.num_threads for library in libraries]
            for library in libraries:
                _set_threads(library, 1)
            return max(self.saved, default=_cores())

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                self.restore()

    def restore(self) -> None:
        for library, threads in zip(blas_libraries(), self.saved, strict=True):
            _set_threads(library, threads)


def _set_threads(library: Any, threads: int) -> None:
    """Set how many threads a BLAS uses, from any thread.

    From version 3.8 on, threadpoolctl listens to the thread that sets the number first and to no other, until that is
    cleared. Who comes here does so one after the other, and leaves the way free for others.
    """
    if library.num_threads == threads:
        return
    _let_any_thread_set(library)
    library.set_num_threads(threads)
    _let_any_thread_set(library)


def _let_any_thread_set(library: Any) -> None:
    with suppress(AttributeError):  # another BLAS than OpenBLAS, or an older threadpoolctl
        library.clear_controlling_thread(force=True)


@cache
def blas_libraries() -> list[Any]:
    """Controllers of the BLAS that NumPy calls: its own if the wheel brought one, else every one that is loaded."""
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in found if "numpy" in library.filepath] or found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(32, _cores()), thread_name_prefix="xconv")


_hold = _BlasHold()


def _forget_threads() -> None:
    """In a forked child: its parent's threads are gone, and so is whoever held the BLAS."""
    global _hold
    _pool.cache_clear()
    held, _hold = _hold, _BlasHold()
    if held.holders:
        held.restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run(task: Callable[[int], None], count: int, team: Team) -> None:
    """Call ``task(0)`` to ``task(count - 1)``, each once, in the calling thread and up to `team` others.

    Returns when all are done. The first exception of any of them is raised, after those under way have ended.
    """
    if not team.heavy:
        for i in range(count):
            task(i)
        return
    with _hold as free:
        numbers = _Numbers(count)
        threads = min(count, team.limit, team.threads or free)
        if threads == 1:
            for i in range(count):
                task(i)
            return
        helpers = [_pool().submit(copy_context().run, _work, task, numbers) for _ in range(threads - 1)]
        try:
            _work(task, numbers)
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()


class _Numbers:
    """The numbers from 0, each handed out once, to any thread that asks."""

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.left = iter(range(count))

    def take(self) -> int | None:
        with self.lock:
            return next(self.left, None)

    def stop(self) -> None:
        with self.lock:
            self.left = iter(range(0))


def _work(task: Callable[[int], None], numbers: _Numbers) -> None:
    try:
        while (i := numbers.take()) is not None:
            task(i)
    except BaseException:
        numbers.stop()
        raise
