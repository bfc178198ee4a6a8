"""One conversion shared by several processes, which write its batches in turn.

Threads take turns with Python's interpreter lock: with two of them a fifth of the processors' time was lost. So
process ``i`` of ``n`` does all that is to be done for batches ``i``, ``i + n`` and so on. What it cannot know by itself
is where its batch begins in the output, and what the writer has counted so far: this comes from the process before it,
and goes on to the next one as soon as the place of every byte is settled. The bytes follow, while the next one settles
its own::

      0: prepare --- settle, write --- prepare --------------- settle, write ---
                        | token                                  ^
                        v                                        | token
      1: prepare ------ settle, write --- prepare ---------------+

A batch is settled in its turn, so that the output is the same as if one process had written it. The processes are forks
of the one that opened the dump: nothing is opened, read or planned again. What goes wrong in one of them comes around
with the token, in the place of the batch that it happened to.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import sys
from collections import deque
from dataclasses import dataclass, replace
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

from dumpxlate.codecs.workers import keep_buffers
from dumpxlate.errors import DumpxlateError, OutputError
from dumpxlate.format import Resumable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dumpxlate.format import Writer
    from dumpxlate.io.sink import FileSink
    from dumpxlate.pages import PageBatch
    from dumpxlate.verify.missing import BadRuns
    from dumpxlate.writing.pump import Pump

__all__ = ["Withholding", "can_share", "share"]

_AHEAD = 2
"""Batches that a process prepares while it waits for its turn: some take far longer than others."""

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

_LENGTH = 8
"""Bytes of a message that say how long the rest is."""


@runtime_checkable
class Withholding(Protocol):
    """A writer that may keep pages back until more have come."""

    @property
    def waiting(self) -> int:
        """The last of the pages it was given that it has not written yet."""
        ...


@dataclass(frozen=True, slots=True)
class _Token:
    """What a process must know to write the next batch.

    Attributes:
        pages: pages written so far.
        marks: where the sink is.
        state: what the writer knows.
        counts: pages so far, by state.
        bad: those that did not decode.
        error: what went wrong, if anything did: nothing is written after it.
    """

    pages: int
    marks: tuple[int, int]
    state: Mapping[str, Any]
    counts: Counter[str]
    bad: BadRuns
    error: BaseException | None = None


def can_share(writer: Writer) -> bool:
    """Tell whether processes can use a writer in turn, and this one can be forked.

    A fork has one thread: locks that others hold would never be let go. The kernel's list of threads has those as well
    that Python knows nothing of.
    """
    if not isinstance(writer, Resumable) or isinstance(writer, Withholding):
        return False
    try:
        return sys.platform == "linux" and len([*Path("/proc/self/task").iterdir()]) == 1
    except OSError:
        return False


def share(pump: Pump, sink: FileSink, starts: range, processes: int, wrote: Callable[[int], object]) -> bool:
    """Write batches in turn with forks of this process.

    Args:
        pump: what prepares and writes a batch; at the end it has counted those of all processes.
        sink: what its writer writes to.
        starts: ranks at which the batches begin.
        processes: how many, this one included.
        wrote: called now and then with the pages that are written.

    Returns:
        False where there can be no more processes: nothing was done then.

    Raises:
        OutputError: one of them was killed.
    """
    keep_buffers()
    gc.freeze()  # what there is stays: looking for garbage in it would copy its pages into every process
    pipes = [_pipe() for _ in range(processes)]
    children: list[int] = []
    # A signal must find each process that there is in the list, and may not keep us from ending it.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for number in range(1, processes):
            try:
                children.append(_fork(_Member(pump, sink, starts, number, pipes).follow, held))
            except OSError:
                return False
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _Member(pump, sink, starts, 0, pipes).lead(wrote)
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for each in children:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)
        for end in chain.from_iterable(pipes):
            end.close()
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return True


def _pipe() -> tuple[FileIO, FileIO]:
    """Make a pipe; gives the ends to read from and to write to."""
    source, target = os.pipe()
    return FileIO(source, "rb"), FileIO(target, "wb")


def _fork(work: Callable[[], None], mask: set[int | signal.Signals]) -> int:
    """Do something in a process of its own, which ends then; gives its number."""
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
        work()
    finally:
        os._exit(0)


class _GoneError(Exception):
    """A neighbour in the ring is there no more."""


class _Member:
    """One process of the ring.

    Args:
        pump: what prepares and writes a batch.
        sink: what its writer writes to.
        starts: ranks at which the batches of all begin.
        number: which process this is; 0 is the parent.
        pipes: reading and writing end of a pipe for each process, from which it gets the token.
    """

    def __init__(
        self, pump: Pump, sink: FileSink, starts: range, number: int, pipes: Sequence[tuple[FileIO, FileIO]]
    ) -> None:
        self._pump, self._sink, self._starts = pump, sink, starts
        self._todo: Iterator[int] = iter(starts[number :: len(pipes)])
        self._rounds = -(-len(starts) // len(pipes))
        self._ready: deque[PageBatch | Exception] = deque()
        self._from, self._to = pipes[number][0], pipes[(number + 1) % len(pipes)][1]
        self._others = {*chain.from_iterable(pipes)} - {self._from, self._to}

    def lead(self, wrote: Callable[[int], object]) -> None:
        """Be the parent: begin, and tell how far all have come."""
        self._begin()
        token = self._token(self._starts.start)
        try:
            for number in range(self._rounds + 1):
                self._prepare(_AHEAD if number else 0)
                token = self._turn(self._receive() if number else token)
                if token.error:
                    raise token.error
                self._send(token)
                self._sink.release()
                wrote(token.pages)
            token = self._receive()
        except _GoneError:
            why = "a process that was writing it was killed; was there enough memory?"
            raise OutputError(why, path=str(self._sink.path)) from None
        if token.error:
            raise token.error
        self._adopt(token)
        wrote(token.pages)

    def follow(self) -> None:
        """Be another one. In the last round nothing is left to write but what went wrong since the one before."""
        self._begin()
        failed: Exception | None = None
        with contextlib.suppress(_GoneError):
            for _ in range(self._rounds + 1):
                self._prepare(_AHEAD)
                token = self._receive()
                token = replace(token, error=token.error or failed) if failed else self._turn(token)
                self._send(token)
                if token.error:
                    return
                try:
                    self._sink.release()
                except Exception as error:
                    failed = error

    def _begin(self) -> None:
        """Close the ends that others use: only so is it noticed when one of them is gone."""
        for end in self._others:
            end.close()
        self._incoming = select.poll()
        self._incoming.register(self._from)

    def _prepare(self, ahead: int) -> None:
        """Prepare a batch, and more while the token is elsewhere; what goes wrong has its turn as well."""
        while len(self._ready) <= ahead and not (self._ready and self._incoming.poll(0)):
            first = next(self._todo, None)
            if first is None:
                return
            try:
                last = min(first + self._starts.step, self._starts.stop)
                self._ready.append(self._pump.prepare((first, last)))
            except Exception as error:
                self._ready.append(error)
                self._todo = iter(())

    def _turn(self, token: _Token) -> _Token:
        """Settle where the bytes of the next batch go; the sink holds them."""
        if token.error or not self._ready:
            return token
        batch = self._ready.popleft()
        if isinstance(batch, Exception):
            return replace(token, error=batch)
        self._adopt(token)
        self._sink.hold()
        try:
            self._pump.write(batch)
        except Exception as error:
            return replace(token, error=error)
        return self._token(token.pages + len(batch.table))

    def _token(self, pages: int) -> _Token:
        """Put into a token what this process knows."""
        pump = self._pump
        assert isinstance(pump.writer, Resumable)
        return _Token(pages, self._sink.marks, pump.writer.state(), pump.counts, pump.bad)

    def _adopt(self, token: _Token) -> None:
        """Know what a token says."""
        pump = self._pump
        assert isinstance(pump.writer, Resumable)
        self._sink.marks = token.marks
        pump.counts, pump.bad = token.counts, token.bad
        pump.writer.restore(self._sink, token.pages, token.state)

    def _send(self, token: _Token) -> None:
        """Hand the token to the next process."""
        data = _packed(token)
        message = memoryview(len(data).to_bytes(_LENGTH, "little") + data)
        try:
            while message:
                message = message[self._to.write(message) :]
        except BrokenPipeError:
            raise _GoneError from None

    def _receive(self) -> _Token:
        """Wait for the token."""
        token: _Token = pickle.loads(self._read(int.from_bytes(self._read(_LENGTH), "little")))  # noqa: S301
        return token

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._from.read(length - len(data))
            if not more:
                raise _GoneError
            data += more
        return data


def _packed(token: _Token) -> bytes:
    """Pack a token; an error that cannot be packed is told in words."""
    try:
        data = pickle.dumps(token)
        if token.error:
            pickle.loads(data)  # noqa: S301
    except Exception:
        return pickle.dumps(replace(token, error=DumpxlateError(f"{type(token.error).__name__}: {token.error}")))
    return data
