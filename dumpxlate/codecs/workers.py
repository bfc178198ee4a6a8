"""Work spread over threads, results in order.

The codec libraries release the interpreter lock, so nothing has to be copied between processes. What writes an output
goes further, see :mod:`dumpxlate.writing.ring`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["ahead", "default_threads", "keep_buffers", "ordered_map"]

_A = TypeVar("_A")
_B = TypeVar("_B")

_MOST_THREADS = 8
"""Beyond, the thread that writes is the bottleneck."""


_LARGEST_BLOCK = (32 << 20) - (64 << 10)
"""The most that glibc lets its threshold grow to is 32 MiB, what it adds to a block included."""


def keep_buffers() -> None:
    """Let the C library keep the buffers of finished batches for those to come.

    glibc maps a large block anew, to be faulted in page by page, until it has seen a larger one freed; then it takes
    blocks from its heap, and gives less of that back (mallopt(3), M_MMAP_THRESHOLD). Measured when comparing two raw
    images: 0.44 s a GiB instead of 1.45 s. Elsewhere this does nothing: the block is never touched.

    What indexes and maps took while they were made is given back before (malloc_trim(3)): half a million scattered
    pages leave 57 MiB behind.
    """
    with contextlib.suppress(AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
    bytes(_LARGEST_BLOCK)


def default_threads() -> int:
    """Count the processors that this process may use, at most eight."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def ordered_map(fn: Callable[[_A], _B], items: Iterable[_A], *, threads: int) -> Generator[_B]:
    """Apply a function to items in threads, and give the results in the items' order.

    Items are drawn in the caller's thread, at most two for each worker ahead of the results. What the function or
    the items raise is raised when its turn comes, after the results before it; the rest is cancelled, and no thread
    outlives the generator. Close it where it may be left early.

    Args:
        fn: what to do.
        items: with what.
        threads: number of workers; 0 does all in the caller's thread.
    """
    keep_buffers()
    if threads <= 0:
        for item in items:
            yield fn(item)
        return
    from concurrent.futures import ThreadPoolExecutor  # logging comes with it

    pool = ThreadPoolExecutor(threads, "dumpxlate")
    ahead: deque[Future[_B]] = deque()
    try:
        for future in _submitted(pool, fn, items):
            ahead.append(future)
            if len(ahead) >= 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: ThreadPoolExecutor, fn: Callable[[_A], _B], items: Iterable[_A]) -> Iterator[Future[_B]]:
    """Hand items to the pool one by one; a failure of the items themselves becomes the last future."""
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except Exception as error:
            from concurrent.futures import Future

            failed: Future[_B] = Future()
            failed.set_exception(error)
            yield failed
            return
        yield pool.submit(fn, item)


_END = object()
_DRAWN_AHEAD = 2


def ahead(items: Iterable[_A], stop: Callable[[], None]) -> Generator[_A]:
    """Draw items in a thread of their own, up to two ahead of the caller, and give them in their order.

    What drawing raises is raised when its turn comes. Close the generator where it may be left early: no thread
    outlives it.

    Args:
        items: what to draw; they may wait for something.
        stop: ends such waiting.
    """
    from concurrent.futures import ThreadPoolExecutor

    keep_buffers()
    source = iter(items)
    pool = ThreadPoolExecutor(1, "dumpxlate")
    try:
        drawn: deque[Future[Any]] = deque(pool.submit(next, source, _END) for _ in range(_DRAWN_AHEAD))
        while (item := drawn.popleft().result()) is not _END:
            drawn.append(pool.submit(next, source, _END))
            yield item
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)
