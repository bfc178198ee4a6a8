"""The container of a migration stream: one pass over its sections.

::

    "QEVM", version 3 | CONFIGURATION | sections ... | EOF | VMDESCRIPTION

    section: type, id, [name, instance, version,] payload, [footer with the id]

Payloads have no length. That of RAM is understood; of all others only the end is looked for: a footer with the
section's id, and behind it something that can follow one. Big-endian throughout. Behind a defect among the pages, the
next place where records go on is looked for.

Sources: qemu migration/savevm.c, vmstate.c, docs/devel/migration; checked against streams of 7.2 and 10.0.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dumpxlate.errors import CorruptDumpError, TruncatedDumpError, UnsupportedFeatureError
from dumpxlate.qemu.configuration import Fields, read_configuration
from dumpxlate.qemu.heads import find_heads, next_device
from dumpxlate.qemu.pages import without_end
from dumpxlate.qemu.ram import BlockTable, read_table
from dumpxlate.qemu.records import PageRecords, RecordLog
from dumpxlate.qemu.resync import Resync, complaints

if TYPE_CHECKING:
    from dumpxlate.io.source import Source
    from dumpxlate.qemu.resync import Gap

__all__ = ["MAGIC", "Section", "Stream", "read_stream"]

MAGIC = b"QEVM"
_VERSION, _RAM_VERSION = 3, 4
_EOF, _START, _PART, _END, _FULL, _, _DESCRIPTION, _CONFIGURATION, _COMMAND = range(9)
_FOOTER = 0x7E

_MOST_SECTIONS = 1 << 16
"""Sections that are kept: a machine with 4096 processors has three for each, and each counts twice."""

_LONGEST_DESCRIPTION = 16 << 20
"""Bytes of JSON that are read: a machine with one processor has 100 KB, one with a thousand has 10 MB."""

_MOST_GAPS = 1 << 10
"""Damaged parts that are passed over."""

_MOST_PASSED = 64
"""Damaged parts among the devices that are passed over."""

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
        gaps: damaged parts among the pages that were passed over.
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
    gaps: list[Gap] = field(default_factory=list)
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
        if reader.past_ram:
            reader.stream.remarks.append(reader.without_states(error))
        else:
            reader.stream.damage.append(f"{error}; pages behind it are missing")
    finally:
        reader.close()
    stream = reader.stream
    stream.damage[:0] = complaints(stream.gaps)
    if stream.table is None:
        raise CorruptDumpError("ends without a RAM section", offset=source.size, what="QEMU stream")
    if not reader.ram_ended and not stream.damage:
        damage, remark = without_end(stream.log, stream.table.base[-1], past_ram=reader.past_ram)
        stream.damage += damage
        stream.remarks += remark
    return stream


class _Reader:
    """Walks over the sections."""

    def __init__(self, source: Source) -> None:
        self.stream = Stream(source)
        self.ram_ended = False
        self.footers = False
        self._states = False
        self._source = source
        self._fields = Fields(source)
        self._names: dict[int, str] = {}
        self._ram = -1
        self._begun = 0
        self._passed = 0
        self._resync: Resync | None = None
        self._records: PageRecords | None = None

    @property
    def past_ram(self) -> bool:
        """Whether no pages can follow: states of devices do so only behind all of them."""
        return self.ram_ended or self._states

    def without_states(self, error: Exception) -> str:
        """Say why states of devices are not read; of a stream without footers keep what stands first in some."""
        if self.footers:
            return f"the devices' states are read up to a defect: {error}"
        assert self._records is not None
        heads = find_heads(self._source, self._records.at, _MOST_SECTIONS)
        self.stream.sections = [Section(*head) for head in heads]
        known = ", but for what tells where memory lies" if heads else ""
        return f"the devices' states are not read{known}: nothing marks their ends on machine types before 2.4"

    def close(self) -> None:
        """Let the file go."""
        self._fields.close()
        if self._records:
            self._records.settle()
            self._records.close()

    def read(self) -> None:
        """Read everything."""
        magic, version = struct.unpack(">4sI", self._fields.bytes(0, 8, "stream header"))
        if magic != MAGIC:
            raise CorruptDumpError(f"begins with {magic.hex(' ')}, expected {MAGIC!r}", offset=0, what="stream header")
        if version != _VERSION:
            raise UnsupportedFeatureError(
                f"QEMU stream of version {version}: version 3 is known, as QEMU writes it since 0.10",
                feature="stream version",
            )
        at = 8
        if self._source.size > at and self._fields.bytes(at, 1, "stream")[0] == _CONFIGURATION:
            at, found = read_configuration(self._fields, at + 1)
            self.stream.machine, self.stream.uuid = found.machine, found.uuid
            self.stream.capabilities, self.stream.page_size = found.capabilities, found.page_size
        while at < self._source.size:
            try:
                at = self._next(at)
            except (CorruptDumpError, TruncatedDumpError) as error:
                at = self._pass_over(error)

    def _next(self, at: int) -> int:
        """Read what stands next, which behind a defect are records in the middle of a section; gives what follows."""
        if self.stream.gaps and self.stream.gaps[-1].stop == at:
            return self._records_behind(at)
        self._begun = at
        kind = self._fields.bytes(at, 1, "section")[0]
        if kind != _EOF:
            return self._section(at, kind)
        if self.stream.table and not self.past_ram:
            raise CorruptDumpError("ends before its RAM does", offset=at, what="stream")
        if not self._can_follow(at) and (found := self._next_device(at + 1)) is not None:
            return self._without_devices(found, "zeros that are no end of it")
        self.stream.ended = True
        self._describe(at + 1)
        return self._source.size

    def _records_behind(self, at: int) -> int:
        """Read records behind a defect; gives what follows. That RAM was at its end is told by what follows then."""
        assert self._records is not None
        self.stream.rounds += 1
        at = self._footer(self._records.read(at), self._ram)
        kind = self._fields.bytes(at, 1, "section")[0] if at < self._source.size else _EOF
        self.ram_ended |= kind in (_EOF, _FULL)
        return at

    def _pass_over(self, error: CorruptDumpError) -> int:
        """Give where records go on behind a defect.

        Raises:
            CorruptDumpError: they do not, or it is no defect among pages.
        """
        stream, records = self.stream, self._records
        if self.past_ram and (device := self._next_device(self._begun + 1)) is not None:
            return self._without_devices(device, str(error))
        if records is None or self.past_ram or stream.table is None or stream.table.mapped:
            raise error
        if self._resync is None:
            names = [block.name.encode() for block in stream.table.blocks]
            longest = max(block.length for block in stream.table.blocks)
            self._resync = Resync(self._source, stream.page_size, names, longest, self._can_follow_ram)
        start = max(self._begun, records.at)
        found = self._resync.next_records(start + 1) if len(stream.gaps) < _MOST_GAPS else None
        if found is None:
            raise error
        stream.gaps.append(records.resume(start, found, str(error)))
        return found

    def _without_devices(self, found: int, why: str) -> int:
        """Say that devices are left out up to a place, which is given back."""
        self._passed += 1
        self.stream.remarks.append(f"the states of devices from {self._begun:#x} up to {found:#x} are left out: {why}")
        return found

    def _next_device(self, at: int) -> int | None:
        """Find the next section of a device behind a defect."""
        return next_device(self._source, at) if self._passed < _MOST_PASSED else None

    def _can_follow_ram(self, at: int) -> bool:
        """Tell whether something stands here that may follow the end mark of records."""
        head = bytes(self._source.view(at, min(5, self._source.size - at)))
        if head[:1] == bytes([_FOOTER]):
            return head[1:] == self._ram.to_bytes(4, "big") and self._can_follow(at + 5)
        return len(head) == 5 and head[0] != _EOF and self._can_follow(at)

    def _section(self, at: int, kind: int) -> int:
        """Read one section; gives what follows."""
        if kind == _COMMAND:
            end = at + 5 + int.from_bytes(self._fields.bytes(at + 3, 2, "command"), "big")
            if not self._can_follow(end):
                raise CorruptDumpError(
                    f"of {end - at} bytes, behind which nothing can stand", offset=at, what="command"
                )
            return end
        if kind not in (_START, _PART, _END, _FULL):
            raise CorruptDumpError(f"type {kind:#x}", offset=at, what="section")
        number = self._fields.u32(at + 1, "section")
        body = at + 5
        name, instance, version = self._names.get(number, ""), 0, 0
        if kind in (_START, _FULL):
            name, body = self._fields.name(body, "section")
            instance, version = struct.unpack(">II", self._fields.bytes(body, 8, "section"))
            body += 8
            if len(self._names) + len(self.stream.sections) >= _MOST_SECTIONS:
                raise CorruptDumpError(f"more than {_MOST_SECTIONS:,}", offset=at, what="sections")
            self._names[number] = name
        elif not name:
            raise CorruptDumpError(f"number {number} was never begun", offset=at, what="section")
        if name == "ram":
            self._states = False
            end = self._ram_section(body, kind, number, version)
            return self._footer(end, number)
        end = self._end_of(body, number, name)
        if kind == _FULL:
            self._states = self._records is not None
            self.stream.sections.append(Section(name, instance, version, body, end - body))
        return end + 5

    def _footer(self, at: int, number: int) -> int:
        """Pass over the footer of a section with pages, which streams have since QEMU 2.4; gives what follows.

        Raises:
            CorruptDumpError: it is of another section, or missing where others have one. Behind the last section with
                pages that is damage alone: what follows are states of devices.
        """
        if at >= self._source.size:
            return at
        end, wrong = at, ""
        if self._fields.bytes(at, 1, "section")[0] == _FOOTER:
            found, end = self._fields.u32(at + 1, "section footer"), at + 5
            wrong = f"of section {found}, expected {number}" if found != number else ""
        elif self.footers:
            wrong = f"missing for section {number}"
        self.footers |= end > at
        if not wrong:
            return end
        error = CorruptDumpError(wrong, offset=at, what="section footer")
        if not self.ram_ended:
            raise error
        self.stream.damage.append(str(error))
        return end

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
            if self.stream.table and not self.stream.table.whole:
                return at
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
        stream.damage += table.damage
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
            view, begin = self._fields.window.at(at, length)
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
        if at + 5 > self._source.size or self._fields.bytes(at, 1, "stream")[0] != _DESCRIPTION:
            return
        length = self._fields.u32(at + 1, "description")
        if length > _LONGEST_DESCRIPTION:
            self.stream.remarks.append(f"the description of the devices is not read: it has {length:,} bytes")
            return
        self.stream.description = self._fields.bytes(at + 5, length, "description")
