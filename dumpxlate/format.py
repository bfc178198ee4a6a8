"""What a format is to the rest of the program: something that recognises, opens, and plans to write."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from dumpxlate.dump import Space
from dumpxlate.errors import MapError, UnsupportedFeatureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dumpxlate.codecs import Codec
    from dumpxlate.dump import Dump
    from dumpxlate.io.pipe import Pipe
    from dumpxlate.io.sink import Output, Sink
    from dumpxlate.io.source import Source
    from dumpxlate.pages import CodecId, PageBatch
    from dumpxlate.pageset import PageSet
    from dumpxlate.qemu.hints import QemuHints

__all__ = [
    "Accompanied",
    "Concatenating",
    "Confidence",
    "Format",
    "Loss",
    "Match",
    "OnePass",
    "OnePassWrapper",
    "OpenOptions",
    "Remarking",
    "Resumable",
    "Wrapper",
    "WriteOptions",
    "Writer",
    "only_one",
    "require_physical",
]


class Confidence(IntEnum):
    """How sure a format is that a file is one of its own."""

    FALLBACK = 1
    """Nothing speaks against it (raw)."""
    SIGNATURE = 2
    """A magic number fits, and others may share it (ELF)."""
    SPECIFIC = 3
    """Nothing else looks like this."""


class Match(NamedTuple):
    """A format's claim to a file; ``detail`` says what it saw."""

    confidence: Confidence
    detail: str


class Loss(NamedTuple):
    """Something of the source that the target cannot carry.

    Attributes:
        what: what is lost ("vcpu 2: fpu state").
        why: the reason ("lime has no place for registers").
    """

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} ({self.why})"


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What the user says of an input that its content does not tell.

    Attributes:
        addresses: physical address of each file of a set of raw pieces; empty where none was given.
        missing: what RAM is that a file has no bytes for: left out, or all zero.
        machine: type of a QEMU machine, as ``-machine`` has it; None for what the file says.
        ram_below_4g: bytes of RAM below 4 GiB of a QEMU machine; None for what the file or the machine's type says.
        snapshot: name or id of a snapshot in an image that may have several; None for the only one.
        qemu: what is known of the build of QEMU whose process dumped core.
    """

    addresses: tuple[int, ...] = ()
    missing: Literal["excluded", "zero"] = "excluded"
    machine: str | None = None
    ram_below_4g: int | None = None
    snapshot: str | None = None
    qemu: QemuHints | None = None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What the user asks of an output; a writer refuses what it cannot do.

    Attributes:
        compress: codec and level for pages, as "zlib" or "zstd:3"; None for the format's own choice.
        begin: first physical address to write.
        length: bytes of physical memory to write from there; None for all.
        part: (k, n) for the k-th of n files of a split set, counted from 1.
        paging: give memory its virtual addresses, as the guest's page tables map it: all RAM, with address 0 for what
            nothing maps, or only what is mapped.
    """

    compress: str | None = None
    begin: int = 0
    length: int | None = None
    part: tuple[int, int] | None = None
    paging: Literal["all", "mapped"] | None = None

    @property
    def cuts(self) -> bool:
        """Whether only a window of memory is wanted."""
        return self.begin != 0 or self.length is not None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that were given."""
        return tuple(name for name, default in _WRITE_DEFAULTS.items() if getattr(self, name) != default)

    def only(self, honoured: tuple[str, ...], format: str) -> None:
        """Refuse what was asked for beyond the options that a format honours.

        Raises:
            UnsupportedFeatureError: another option was given.
        """
        for name in self.given:
            if name not in honoured:
                raise UnsupportedFeatureError(f"{format} output takes no {name} option", format=format, feature=name)


_WRITE_DEFAULTS = {field.name: field.default for field in fields(WriteOptions)}


class Writer(Protocol):
    """Writes one dump: planned when made, so that its losses are known before a byte is written."""

    @property
    def pages(self) -> PageSet:
        """The pages it wants, a subset of the dump's stored ones."""
        ...

    @property
    def accepts(self) -> frozenset[CodecId]:
        """Codecs whose bytes may pass unchanged."""
        ...

    @property
    def seeks(self) -> bool:
        """Whether it must go back in its output, so that a pipe will not do."""
        ...

    @property
    def codec(self) -> Codec | None:
        """What to encode other pages with; None for raw pages."""
        ...

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What the target cannot carry."""
        ...

    def begin(self, sink: Sink) -> None:
        """Write what stands before the pages."""
        ...

    def write(self, batch: PageBatch) -> None:
        """Write the next pages, ascending; all of them stored in an accepted codec, or zero."""
        ...

    def finish(self) -> None:
        """Write what stands behind the pages, or could be known only now."""
        ...


@runtime_checkable
class Accompanied(Protocol):
    """A writer with something to say that goes into a small file beside the output."""

    @property
    def companion_suffix(self) -> str:
        """What that file's name has behind the output's."""
        ...

    @property
    def companion_holds(self) -> str:
        """What is lost without it."""
        ...

    def companion(self) -> bytes:
        """Give its content, once the output is complete."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """A writer with something to say of its plan that is no loss."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the output."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A writer that can go on behind what another one, planned from the same dump and options, has written.

    What it puts into the file must not depend on how pages are cut into batches, nor on the time.
    """

    def begin(self, sink: Sink) -> None:
        """Write what stands before the pages."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Give what it could not know again: plain values for JSON, few, and nothing of the pages' content."""
        ...

    def restore(self, sink: Sink, done: int, state: Mapping[str, Any]) -> None:
        """Do instead of ``begin``, or after it: ``done`` pages are in the sink, which is where it was behind them."""
        ...


class Format(Protocol):
    """One dump format."""

    @property
    def name(self) -> str:
        """Its folder's name, as users type it."""
        ...

    @property
    def title(self) -> str:
        """What it is, in half a line."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names that ask for this format when writing."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it can be written."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of WriteOptions that it honours."""
        ...

    @property
    def codecs(self) -> tuple[str, ...]:
        """Codecs that its pages may have, by name; "none" for raw pages."""
        ...

    def detect(self, source: Source) -> Match | None:
        """Recognise a file by its content."""
        ...

    def open(self, sources: Sequence[Source], options: OpenOptions) -> Dump:
        """Read headers and tables, never pages.

        Args:
            sources: the file; several where a dump is split into a set, in any order.
            options: what the user says of it.

        Raises:
            UnsupportedFeatureError: recognised, but this variant is not handled.
            CorruptDumpError: the file contradicts itself.
        """
        ...

    def writer(self, dump: Dump, options: WriteOptions) -> Writer:
        """Plan to write a dump.

        Raises:
            UnsupportedFeatureError: the format cannot be written, or cannot hold such a dump.
        """
        ...


@runtime_checkable
class OnePass(Protocol):
    """A format that can be read in one pass: each byte's place in memory is known when it comes."""

    def pieces(self, pipe: Pipe) -> Iterator[Dump]:
        """Give memory as it comes: dumps of a few MiB each, ascending, no page in two of them.

        What is missing is the damage of the last one.

        Raises:
            FormatError: it is no such dump, or not one that can be read so.
        """
        ...


@runtime_checkable
class Concatenating(Protocol):
    """A format whose files, each of the next window of memory, are one file when they stand one behind the other."""

    @property
    def concatenates(self) -> bool:
        """That they are."""
        ...


class Wrapper(Protocol):
    """A container around one file of another format: compression, or records for a pipe."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        ...

    @property
    def title(self) -> str:
        """What it is, in half a line."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it can be put around an output."""
        ...

    def detect(self, source: Source) -> Match | None:
        """Recognise a file by its content."""
        ...

    def unwrap(self, source: Source) -> Source:
        """Give the file inside; closing it closes the outer one.

        It may have a ``complaint``, what the container lacks, and ``attributes``, what it tells of the dump.

        Raises:
            CorruptDumpError: the container is broken before anything of use.
        """
        ...

    def wrap(self, sink: Output) -> Output | None:
        """Give a sink that seeks and puts what it is given into the container; None where writing is not supported."""
        ...


@runtime_checkable
class OnePassWrapper(Protocol):
    """A container that can be read in one pass."""

    def records(self, pipe: Pipe) -> Iterator[Sequence[tuple[int, memoryview]]]:
        """Give what the file inside holds as it comes: offset there, and bytes; a few MiB at once.

        Raises:
            CorruptDumpError: the container is broken, or ends too early.
        """
        ...


def only_one(sources: Sequence[Source], format: str) -> Source:
    """Give the only file of a dump.

    Raises:
        UnsupportedFeatureError: there are several, and this format has no sets.
    """
    if len(sources) != 1:
        raise UnsupportedFeatureError(
            f"{len(sources)} files were given, but a {format} dump is one file", format=format, feature="sets"
        )
    return sources[0]


def require_physical(dump: Dump, format: str) -> None:
    """Refuse to write a dump whose pfns nobody knows in a format that is keyed by them.

    Raises:
        MapError: the dump is keyed by machine frames; says where a map comes from.
    """
    if dump.space is not Space.PHYSICAL:
        raise MapError(
            f"{dump.name}: this {dump.format} dump of a paravirtual guest is keyed by machine frames (mfn), and "
            f"{format} by the guest's own (pfn): find the guest's map in the dump (--p2m dump; find_p2m in Python), or "
            "give it with --p2m MAP; on the host, xen-mfndump dump-p2m DOMID prints it while the guest exists"
        )
