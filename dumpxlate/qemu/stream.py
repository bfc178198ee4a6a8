"""The container of a migration stream: one pass over its sections.

::

    "QEVM", version 3 | CONFIGURATION | sections ... | EOF | VMDESCRIPTION

    section: type, id, [name, instance, version,] payload, [footer with the id]

Payloads have no length. That of RAM is understood; of all others only the end is looked for: a footer with the
section's id, and behind it something that can follow one. Big-endian throughout.

Sources: qemu migration/savevm.c, vmstate.c, docs/devel/migration; checked against streams of 7.2 and 10.0.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.io.window import SlidingWindow
from dumpxlate.qemu.ram import BlockTable, read_table
from dumpxlate.qemu.records import PageRecords, RecordLog

if TYPE_CHECKING:
    from dumpxlate.io.source import Source

__all__ = ["MAGIC", "Section", "Stream", "read_stream"]

MAGIC = b"QEVM"
_VERSION, _RAM_VERSION = 3, 4
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _DESCRIPTION, _CONFIGURATION, _COMMAND = range(9)
_FOOTER = 0x7E

_MOST_SECTIONS = 1 << 16
"""Sections that are kept: a machine with 4096 processors has three for each, and each counts twice."""

_LONGEST_DESCRIPTION = 16 << 20
"""Bytes of JSON that are read: a machine with one processor has 100 KB, one with a thousand has 10 MB."""

_NAMED = re.compile(rb"[\x20-\x7e]+")
_PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Section:
    """The state of one device: its payload's place."""

    name: str
    instance: int
    version: int
    offset: int
    length: int


@dataclass(slots=True)
class Stream:
    """What a stream holds.

    Attributes:
        source: the file.
        machine: type of the machine, "" where the stream does not say it.
        uuid: the guest's, where the stream has it.
        capabilities: what it was made with, as far as it says so.
        page_size: bytes a page.
        table: the RAM blocks; None until they were read.
        log: what is said of pages.
        sections: of the devices.
        description: JSON that describes the devices' sections, b"" where there is none.
        rounds: sections with pages.
        flushes: marks that pages went over other connections.
        ended: whether the end of the stream was seen.
        remarks: oddities.
        damage: what is missing.
    """

    source: Source
    machine: str = ""
    uuid: str = ""
    capabilities: frozenset[str] = frozenset()
    page_size: int = _PAGE_SIZE
    table: BlockTable | None = None
    log: RecordLog = field(default_factory=RecordLog)
    sections: list[Section] = field(default_factory=list)
    description: bytes = b""
    rounds: int = 0
    flushes: int = 0
    ended: bool = False
    remarks: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def read_stream(source: Source) -> Stream:
    """Pass over a stream; what stands before a defect is kept once the RAM blocks are known.

    Raises:
        UnsupportedFeatureError: another version.
        CorruptDumpError: the stream contradicts itself before its RAM blocks.
        TruncatedDumpError: it ends before them.
    """
    reader = _Reader(source)
    try:
        reader.read()
    except (CorruptDumpError, TruncatedDumpError) as error:
        if reader.stream.table is None:
            raise
        if reader.ram_ended:
            reader.stream.remarks.append(f"the devices' states are read up to a defect: {error}")
        else:
            reader.stream.damage.append(f"{error}; pages behind it are missing")
    finally:
        reader.close()
    stream = reader.stream
    if stream.table is None:
        raise CorruptDumpError("ends without a RAM section", offset=source.size, what="QEMU stream")
    if not reader.ram_ended and not stream.damage:
        stream.damage.append("the stream ends before its RAM does: pages are missing")
    return stream


class _Reader:
    """Walks over the sections."""

    def __init__(self, source: Source) -> None:
        self.stream = Stream(source)
        self.ram_ended = False
        self._source = source
        self._window = SlidingWindow(source, size=1 << 20)
        self._names: dict[int, str] = {}
        self._ram = -1
        self._records: PageRecords | None = None

    def close(self) -> None:
        """Let the file go."""
        self._window.close()
        if self._records:
            self._records.close()

    def _bytes(self, at: int, length: int, what: str) -> bytes:
        view, begin = self._window.at(at, length, what=what)
        return bytes(view[begin : begin + length])

    def _u32(self, at: int, what: str) -> int:
        return int.from_bytes(self._bytes(at, 4, what), "big")

    def _string(self, at: int, what: str) -> tuple[str, int]:
        """Read a name behind its length of one byte; gives what follows."""
        length = self._bytes(at, 1, what)[0]
        text = self._bytes(at + 1, length, what)
        if not _NAMED.fullmatch(text):
            raise CorruptDumpError(f"expected a name, found {text[:16].hex(' ')}", offset=at, what=what)
        return text.decode(), at + 1 + length

    def read(self) -> None:
        """Read everything."""
        magic, version = struct.unpack(">4sI", self._bytes(0, 8, "stream header"))
        if magic != MAGIC:
            raise CorruptDumpError(f"begins with {magic.hex(' ')}, expected {MAGIC!r}", offset=0, what="stream header")
        if version != _VERSION:
            raise UnsupportedFeatureError(
                f"QEMU stream of version {version}: version 3 is known, as QEMU writes it since 0.10",
                feature="stream version",
            )
        at = 8
        if self._source.size > at and self._bytes(at, 1, "stream")[0] == _CONFIGURATION:
            at = self._configuration(at + 1)
        while at < self._source.size:
            kind = self._bytes(at, 1, "section")[0]
            if kind == _EOF:
                self.stream.ended = True
                self._describe(at + 1)
                return
            at = self._section(at, kind)

    def _configuration(self, at: int) -> int:
        """Read machine type and capabilities; gives what follows."""
        length = self._u32(at, "configuration")
        if length > 255:
            raise CorruptDumpError(f"machine type of {length} bytes", offset=at, what="configuration")
        name = self._bytes(at + 4, length, "configuration")
        if not _NAMED.fullmatch(name):
            raise CorruptDumpError("the machine type is no name", offset=at, what="configuration")
        self.stream.machine = name.decode()
        at += 4 + length
        while self._bytes(at, 1, "configuration")[0] == _SUBSECTION:
            name_, after = self._string(at + 1, "configuration")
            body = after + 4
            if name_ == "configuration/target-page-bits":
                at = self._page_bits(body)
            elif name_ == "configuration/capabilities":
                at = self._capabilities(body)
            elif name_ == "configuration/uuid":
                self.stream.uuid = self._bytes(body, 16, "configuration").hex()
                at = body + 16
            else:
                raise UnsupportedFeatureError(f"subsection {name_!r}", feature=name_)
        return at

    def _page_bits(self, at: int) -> int:
        bits = self._u32(at, "configuration")
        if not 10 <= bits <= 16:
            raise CorruptDumpError(f"pages of 2^{bits} bytes", offset=at, what="configuration")
        if bits < 12:
            raise UnsupportedFeatureError(f"pages of {1 << bits} bytes", feature="page size")
        self.stream.page_size = 1 << bits
        return at + 4

    def _capabilities(self, at: int) -> int:
        count, at = self._u32(at, "configuration"), at + 4
        if count > 256:
            raise CorruptDumpError(f"{count} capabilities", offset=at - 4, what="configuration")
        names = set()
        for _ in range(count):
            name, at = self._string(at, "configuration")
            names.add(name)
        self.stream.capabilities = frozenset(names)
        return at

    def _section(self, at: int, kind: int) -> int:
        """Read one section; gives what follows."""
        if kind == _COMMAND:
            return at + 5 + int.from_bytes(self._bytes(at + 3, 2, "command"), "big")
        if kind not in (_START, _PART, _END, _FULL):
            raise CorruptDumpError(f"type {kind:#x}", offset=at, what="section")
        number = self._u32(at + 1, "section")
        body = at + 5
        name, instance, version = self._names.get(number, ""), 0, 0
        if kind in (_START, _FULL):
            name, body = self._string(body, "section")
            instance, version = struct.unpack(">II", self._bytes(body, 8, "section"))
            body += 8
            if len(self._names) + len(self.stream.sections) >= _MOST_SECTIONS:
                raise CorruptDumpError(f"more than {_MOST_SECTIONS:,}", offset=at, what="sections")
            self._names[number] = name
        elif not name:
            raise CorruptDumpError(f"number {number} was never begun", offset=at, what="section")
        if name == "ram":
            end = self._ram_section(body, kind, number, version)
            return self._footer(end, number)
        end = self._end_of(body, number, name)
        if kind == _FULL:
            self.stream.sections.append(Section(name, instance, version, body, end - body))
        return end + 5

    def _footer(self, at: int, number: int) -> int:
        """Pass over a footer, which streams have since QEMU 2.4."""
        if at >= self._source.size or self._bytes(at, 1, "section")[0] != _FOOTER:
            return at
        found = self._u32(at + 1, "section footer")
        if found != number:
            raise CorruptDumpError(f"of section {found}, expected {number}", offset=at, what="section footer")
        return at + 5

    def _ram_section(self, at: int, kind: int, number: int, version: int) -> int:
        """Read a section with pages; gives what is behind its payload."""
        if kind == _START:
            if version != _RAM_VERSION:
                raise UnsupportedFeatureError(
                    f"RAM section of version {version}: version 4 is known, as QEMU writes it since 0.14",
                    feature="RAM version",
                )
            at = self._blocks(at)
            self._ram = number
        if self._records is None or number != self._ram or kind == _FULL:
            raise CorruptDumpError(f"of type {kind}, out of order", offset=at, what="RAM section")
        try:
            end = self._records.read(at)
        finally:
            self.stream.flushes = self._records.flushes
        self.stream.rounds += 1
        self.ram_ended |= kind == _END
        return end

    def _blocks(self, at: int) -> int:
        """Read the table of RAM blocks; gives what follows."""
        stream = self.stream
        if stream.table is not None:
            raise CorruptDumpError("begins a second time", offset=at, what="RAM section")
        table = read_table(self._source, at, stream.page_size, stream.capabilities, stream.log)
        stream.table = table
        self._records = PageRecords(
            self._source,
            stream.page_size,
            {block.name.encode(): number for number, block in enumerate(table.blocks)},
            [high - low for low, high in zip(table.base, table.base[1:], strict=False)],
            table.base,
            stream.log,
        )
        return table.end

    def _end_of(self, at: int, number: int, name: str) -> int:
        """Find the footer of a section whose payload is not understood; gives where it is."""
        mark = re.compile(re.escape(bytes([_FOOTER]) + number.to_bytes(4, "big")))
        step = 1 << 20
        while at < self._source.size:
            length = min(step, self._source.size - at)
            view, begin = self._window.at(at, length)
            for match in mark.finditer(view[begin : begin + length]):
                if self._can_follow(at + match.end()):
                    return at + match.start()
            if at + length == self._source.size:
                break
            at += length - 4
        raise CorruptDumpError(
            f"no end of section {number} ({name}) is found: its content is not understood, and it has no footer",
            offset=at,
            what="section",
        )

    def _can_follow(self, at: int) -> bool:
        """Tell whether something stands here that may follow a section."""
        head = bytes(self._source.view(at, min(6, self._source.size - at)))
        if not head or head[0] == _EOF:
            return len(head) < 2 or head[1] == _DESCRIPTION or at + 1 >= self._source.size
        if head[0] in (_START, _FULL):
            return len(head) == 6 and head[5] > 0
        number = int.from_bytes(head[1:5], "big")
        if head[0] in (_PART, _END):
            return len(head) >= 5 and number in self._names
        return head[0] == _COMMAND

    def _describe(self, at: int) -> None:
        """Keep the description of the devices' sections, where there is one."""
        if at + 5 > self._source.size or self._bytes(at, 1, "stream")[0] != _DESCRIPTION:
            return
        length = self._u32(at + 1, "description")
        if length > _LONGEST_DESCRIPTION:
            self.stream.remarks.append(f"the description of the devices is not read: it has {length:,} bytes")
            return
        self.stream.description = self._bytes(at + 5, length, "description")
