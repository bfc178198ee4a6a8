"""Processes of our own for a piece of work: forks of this one, which know all that it knows.

Threads take turns with Python's interpreter lock, forks do not; and nothing is opened, read or planned again. Only a
process without other threads is forked: locks that they hold would never be let go.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import select
import signal
import sys
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dumpxlate.codecs.workers import keep_buffers, ordered_map
from dumpxlate.errors import DumpxlateError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

__all__ = ["Channel", "GoneError", "Lock", "can_fork", "forked", "portable", "shared_map"]

_A = TypeVar("_A")
_B = TypeVar("_B")

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

_WAIT = 500
"""Milliseconds: a signal that comes just before Python begins to wait is heard only after that."""

_LENGTH = 8
"""Bytes of a message that say how long the rest is."""


def can_fork() -> bool:
    """Tell whether this process has no other threads; the kernel's list has those as well that Python knows not of."""
    try:
        return sys.platform == "linux" and len([*Path("/proc/self/task").iterdir()]) == 1
    except OSError:
        return False


@contextlib.contextmanager
def forked(works: Sequence[Callable[[], None]]) -> Iterator[bool]:
    """Do each of some things in a process of its own, which at the latest ends with the block.

    Gives False, and does nothing, where there can be no more processes.
    """
    keep_buffers()
    gc.freeze()  # what there is stays: looking for garbage in it would copy its pages into every process
    children: list[int] = []
    # A signal must find each process that there is in the list, and may not keep us from ending it.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        try:
            for work in works:
                children.append(_fork(work, held))  # noqa: PERF401 (those there are must be known when one fails)
        except OSError:
            _end(children)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield len(children) == len(works)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _end(children)
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _fork(work: Callable[[], None], mask: set[int | signal.Signals]) -> int:
    """Do something in a process of its own; gives its number."""
    child = os.fork()
    if not child:
        _live(work, mask)
    return child


def _live(work: Callable[[], None], mask: set[int | signal.Signals]) -> NoReturn:
    """Be a fork: nothing of what the parent does when it ends may happen here, such as removing files."""
    try:
        for each in _SIGNALS:
            if callable(signal.getsignal(each)):
                # A terminal sends it to all of them; the parent ends the others.
                signal.signal(each, signal.SIG_IGN if each == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with contextlib.suppress(GoneError):
            work()
    finally:
        os._exit(0)


def _end(children: list[int]) -> None:
    """End processes, all at once: the kernel takes some 40 ms for one that has used its queues (AIO)."""
    for child in children:
        os.kill(child, signal.SIGKILL)
    while children:
        os.waitpid(children.pop(), 0)


class GoneError(Exception):
    """The other end of a channel is there no more."""


class Channel:
    """A pipe for objects from one process to another, made before they part."""

    def __init__(self) -> None:
        source, target = os.pipe()
        self.source, self.target = FileIO(source, "rb"), FileIO(target, "wb")
        self._incoming = select.poll()
        self._incoming.register(source, select.POLLIN)

    def close(self) -> None:
        """Close both ends; harmless where one was closed before."""
        self.source.close()
        self.target.close()

    def send(self, what: object) -> None:
        """Send an object.

        Raises:
            GoneError: nobody is there to receive it.
        """
        data = pickle.dumps(what)
        message = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
        try:
            while message:
                message = message[self.target.write(message) :]
        except BrokenPipeError:
            raise GoneError from None

    def is_ready(self) -> bool:
        """Tell whether there is something to receive, or nobody who will send it."""
        return bool(self._incoming.poll(0))

    def receive(self) -> Any:
        """Wait for an object.

        Raises:
            GoneError: nobody is there to send one.
        """
        while not self._incoming.poll(_WAIT):
            pass
        return pickle.loads(self._read(int.from_bytes(self._read(_LENGTH), "little")))  # noqa: S301

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.source.read(length - len(data))
            if not more:
                raise GoneError
            data += more
        return data


class Lock:
    """What one of several forks holds at a time; the kernel takes it from one that ends."""

    def __init__(self) -> None:
        self._file = FileIO(os.memfd_create("dumpxlate"), "r+b")

    def acquire(self, *, wait: bool) -> bool:
        """Take it.

        Args:
            wait: until it is free.

        Returns:
            Whether it was taken.
        """
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let it go."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Do without it from now on."""
        self._file.close()


def portable(error: Exception) -> Exception:
    """Give an error that can be sent: where it cannot be packed or unpacked, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return DumpxlateError(f"{type(error).__name__}: {error}")
    return error


def shared_map(fn: Callable[[_A], _B], items: Iterable[_A], *, workers: int) -> Generator[_B]:
    """Apply a function to items side by side, and give the results in the items' order.

    Forks do so where there can be any, each for every n-th item, else threads as ``ordered_map`` has them. What the
    function raises is raised when its turn comes; no process outlives the generator: close it where it may be left
    early.

    Args:
        fn: what to do; it must not depend on what it did before, and give what can be pickled.
        items: with what; drawing them must take little, since each process draws them all.
        workers: how many, this process included; 0 does all in the caller's thread.

    Raises:
        DumpxlateError: a process was killed.
    """
    if workers < 2 or not can_fork():
        yield from ordered_map(fn, items, threads=workers)
        return
    items = iter(items)
    channels = [Channel() for _ in range(workers - 1)]
    try:
        works = [partial(_serve, fn, items, channels, number) for number in range(len(channels))]
        with forked(works) as there:
            if there:
                yield from _collected(fn, items, channels)
                return
    except GoneError:
        raise DumpxlateError("a process that took part was killed; was there enough memory?") from None
    finally:
        for channel in channels:
            channel.close()
    yield from ordered_map(fn, items, threads=workers)


def _serve(fn: Callable[[_A], _B], items: Iterator[_A], channels: Sequence[Channel], number: int) -> None:
    """Do a fork's share, and send each result with what went wrong instead."""
    for channel in channels:
        channel.source.close()
        if channel is not channels[number]:
            channel.target.close()
    for item in islice(items, number + 1, None, len(channels) + 1):
        try:
            channels[number].send((fn(item), None))
        except GoneError:
            raise
        except Exception as error:
            channels[number].send((None, portable(error)))
            return


def _collected(fn: Callable[[_A], _B], items: Iterator[_A], channels: Sequence[Channel]) -> Iterator[_B]:
    """Do the parent's share, and give the results of all in their order."""
    for channel in channels:
        channel.target.close()
    for number, item in enumerate(items):
        turn = number % (len(channels) + 1)
        if not turn:
            yield fn(item)
            continue
        result, error = channels[turn - 1].receive()
        if error:
            raise error
        yield result
