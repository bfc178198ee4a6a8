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

Only one process writes at a time: the kernel lets no more into one file, and has those that wait for it spin meanwhile,
where they could prepare their next batches.

A batch is settled in its turn, so that the output is the same as if one process had written it. The processes are forks
of the one that opened the dump: nothing is opened, read or planned again. What goes wrong in one of them comes around
with the token, in the place of the batch that it happened to.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from dumpxlate.codecs.forks import Channel, GoneError, Lock, can_fork, forked, portable
from dumpxlate.errors import OutputError
from dumpxlate.format import Resumable
from dumpxlate.io import aio

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence

    from dumpxlate.format import Writer
    from dumpxlate.io.sink import FileSink
    from dumpxlate.pages import PageBatch
    from dumpxlate.verify.missing import BadRuns
    from dumpxlate.writing.pump import Pump

__all__ = ["Withholding", "can_share", "share"]

_AHEAD = 2
"""Batches that a process prepares while it waits for its turn: some take far longer than others."""

_LAST = 2
"""Batches at the end that are read piece by piece: their time is what the kernel needs to let its queue go."""


@runtime_checkable
class Withholding(Protocol):
    """A writer that may keep pages back until more have come."""

    @property
    def waiting(self) -> int:
        """The last of the pages it was given that it has not written yet."""
        ...


class _Token(NamedTuple):
    """What a process must know to write the next batch.

    Attributes:
        pages: pages written so far.
        position: where the sink writes next.
        state: what the writer knows.
        counts: pages so far, by state.
        bad: those that did not decode.
        error: what went wrong, if anything did: nothing is written after it.
    """

    pages: int
    position: int
    state: Mapping[str, Any]
    counts: Counter[str]
    bad: BadRuns
    error: Exception | None = None


def can_share(writer: Writer) -> bool:
    """Tell whether processes can use a writer in turn, and this one can be forked."""
    return isinstance(writer, Resumable) and not isinstance(writer, Withholding) and can_fork()


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
    channels, alone = [Channel() for _ in range(processes)], Lock()
    first, *others = (_Member(pump, sink, starts, number, channels, alone) for number in range(processes))
    try:
        with forked([other.follow for other in others]) as there:
            if there:
                first.lead(wrote)
            return there
    except GoneError:
        why = "a process that was writing it was killed; was there enough memory?"
        raise OutputError(why, path=str(sink.path)) from None
    finally:
        aio.rest()
        for channel in channels:
            channel.close()
        alone.close()


class _Member:
    """One process of the ring.

    Args:
        pump: what prepares and writes a batch.
        sink: what its writer writes to.
        starts: ranks at which the batches of all begin.
        number: which process this is; 0 is the parent.
        channels: one for each process, by which it gets the token.
        alone: held by the process that writes.
    """

    def __init__(
        self, pump: Pump, sink: FileSink, starts: range, number: int, channels: Sequence[Channel], alone: Lock
    ) -> None:
        assert isinstance(pump.writer, Resumable)
        self._pump, self._writer, self._sink, self._starts, self._alone = pump, pump.writer, sink, starts, alone
        self._todo = starts[number :: len(channels)]
        self._rounds = -(-len(starts) // len(channels))
        self._ready: deque[PageBatch | Exception] = deque()
        self._channels, self._mine, self._next = channels, channels[number], channels[(number + 1) % len(channels)]

    def lead(self, wrote: Callable[[int], object]) -> None:
        """Be the parent: begin, and tell how far all have come."""
        self._begin()
        token = self._token(self._starts.start)
        for number in range(self._rounds + 1):
            self._prepare(_AHEAD if number else 0)
            token = self._turn(self._received() if number else token)
            if token.error:
                raise token.error
            self._next.send(token)
            self._write()
            wrote(token.pages)
        token = self._received()
        if token.error:
            raise token.error
        self._adopt(token)
        wrote(token.pages)

    def follow(self) -> None:
        """Be another one. In the last round nothing is left to write but what went wrong since the one before."""
        self._begin()
        failed: Exception | None = None
        for _ in range(self._rounds + 1):
            self._prepare(_AHEAD)
            token = self._received()
            if failed and not token.error:
                token = token._replace(error=portable(failed))
            token = self._turn(token)
            self._next.send(token)
            if token.error:
                return
            try:
                self._write()
            except Exception as error:
                failed = error

    def _begin(self) -> None:
        """Close the ends that others use: only so is it noticed when one of them is gone."""
        for channel in self._channels:
            if channel is not self._mine:
                channel.source.close()
            if channel is not self._next:
                channel.target.close()

    def _prepare(self, ahead: int) -> None:
        """Prepare a batch, and more while the token is elsewhere; what goes wrong has its turn as well."""
        while len(self._ready) <= ahead and not (self._ready and self._mine.is_ready()):
            if not self._prepare_next():
                return

    def _prepare_next(self) -> bool:
        """Prepare a batch; False where there are no more."""
        if not self._todo:
            return False
        first, self._todo = self._todo[0], self._todo[1:]
        if len(self._todo) < _LAST:
            aio.leave()
        try:
            last = min(first + self._starts.step, self._starts.stop)
            self._ready.append(self._pump.prepare((first, last)))
        except Exception as error:
            self._ready.append(error)
            self._todo = range(0)
        return True

    def _write(self) -> None:
        """Write what the sink holds when no other process writes; until then prepare batches."""
        while not self._alone.acquire(wait=False):
            if len(self._ready) >= _AHEAD or not self._prepare_next():
                self._alone.acquire(wait=True)
                break
        try:
            self._sink.release()
        finally:
            self._alone.release()

    def _turn(self, token: _Token) -> _Token:
        """Settle where the bytes of the next batch go; the sink holds them."""
        if token.error or not self._ready:
            return token
        batch = self._ready.popleft()
        if isinstance(batch, Exception):
            return token._replace(error=portable(batch))
        self._adopt(token)
        self._sink.hold()
        try:
            self._pump.write(batch)
        except Exception as error:
            return token._replace(error=portable(error))
        return self._token(token.pages + len(batch.table))

    def _token(self, pages: int) -> _Token:
        """Put into a token what this process knows."""
        return _Token(pages, self._sink.position, self._writer.state(), self._pump.counts, self._pump.bad)

    def _adopt(self, token: _Token) -> None:
        """Know what a token says."""
        self._sink.position = token.position
        self._pump.counts, self._pump.bad = token.counts, token.bad
        self._writer.restore(self._sink, token.pages, token.state)

    def _received(self) -> _Token:
        """Wait for the token."""
        token: _Token = self._mine.receive()
        return token
