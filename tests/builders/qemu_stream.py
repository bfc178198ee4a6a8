"""QEMU's migration stream, libvirt's header before it, and a qcow2 image around it, from their descriptions alone.

Everything is big-endian but libvirt's header, which has the order of its host.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from tests.builders.packing import align

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.builders.guest import Guest

__all__ = [
    "Device",
    "block_table",
    "compressed",
    "configuration",
    "delta",
    "device",
    "libvirt",
    "mapped_ram",
    "page",
    "qcow2",
    "ram",
    "save",
    "stream",
    "vmdescription",
    "word",
    "zero",
]

PAGE = 4096
ZERO, MEM_SIZE, DATA, EOS, CONTINUE, XBZRLE, COMPRESS = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x100
END_OF_RECORDS = struct.pack(">Q", EOS)


def word(value: int) -> bytes:
    """A number of 8 bytes."""
    return struct.pack(">Q", value)


def _name(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def configuration(machine: str, *subsections: bytes) -> bytes:
    """The section behind the stream's header."""
    return b"\x07" + struct.pack(">I", len(machine)) + machine.encode() + b"".join(subsections)


def subsection(name: str, body: bytes, version: int = 1) -> bytes:
    return b"\x05" + _name(name) + struct.pack(">I", version) + body


def capabilities(*names: str) -> bytes:
    return subsection("configuration/capabilities", struct.pack(">I", len(names)) + b"".join(map(_name, names)))


def block_table(
    blocks: Mapping[str, int], extras: Mapping[str, bytes] | None = None, total: int | None = None
) -> bytes:
    """The table of RAM blocks, with what some capabilities put behind a block."""
    size = sum(blocks.values()) if total is None else total
    rows = [_name(name) + word(length) + (extras or {}).get(name, b"") for name, length in blocks.items()]
    return word(size | MEM_SIZE) + b"".join(rows)


def record(flags: int, number: int, block: str | None, payload: bytes) -> bytes:
    """A page record; without a block it goes on with that of the one before."""
    head = word(number * PAGE | flags | (0 if block else CONTINUE))
    return head + (_name(block) if block else b"") + payload


def page(number: int, content: bytes, block: str | None = None) -> bytes:
    """A page as it is."""
    return record(DATA, number, block, content)


def zero(number: int, block: str | None = None, fill: int = 0) -> bytes:
    """A page that is one byte over and over."""
    return record(ZERO, number, block, bytes([fill]))


def delta(number: int, changes: bytes, block: str | None = None, encoding: int = 1) -> bytes:
    """Changes to a page."""
    return record(XBZRLE, number, block, struct.pack(">BH", encoding, len(changes)) + changes)


def compressed(number: int, packed: bytes, block: str | None = None) -> bytes:
    """A page in a zlib stream."""
    return record(COMPRESS, number, block, struct.pack(">I", len(packed)) + packed)


def footer(number: int) -> bytes:
    return b"\x7e" + struct.pack(">I", number)


def begin(number: int, name: str, version: int, body: bytes, kind: int = 1, instance: int = 0) -> bytes:
    """A section that names itself; 1 starts one in several parts, 4 is whole."""
    return bytes([kind]) + struct.pack(">I", number) + _name(name) + struct.pack(">II", instance, version) + body


def ram(table: bytes, *parts: bytes, number: int = 2, footers: bool = True, version: int = 4, last: int = 3) -> bytes:
    """RAM sections: the table, then parts of records, of which the last one ends it (type 3)."""
    foot = footer(number) if footers else b""
    out = begin(number, "ram", version, table + END_OF_RECORDS) + foot
    for index, records in enumerate(parts):
        kind = last if index == len(parts) - 1 else 2
        out += bytes([kind]) + struct.pack(">I", number) + records + END_OF_RECORDS + foot
    return out


Device = tuple[str, int, list[tuple[str, bytes, int]]]
"""Name, instance, and fields: name, bytes, size of an element."""


def device(number: int, given: Device) -> bytes:
    """The whole section of a device."""
    name, instance, fields = given
    return begin(number, name, 1, b"".join(body for _, body, _ in fields), 4, instance) + footer(number)


def vmdescription(devices: Sequence[Device]) -> bytes:
    """The JSON behind the end."""
    listed = [
        {
            "name": name,
            "instance_id": instance,
            "vmsd_name": name,
            "version": 1,
            "fields": [_described(field, body, size) for field, body, size in fields],
        }
        for name, instance, fields in devices
    ]
    text = json.dumps({"page_size": PAGE, "devices": listed}).encode()
    return b"\x06" + struct.pack(">I", len(text)) + text


def _described(name: str, body: bytes, size: int) -> dict[str, Any]:
    if len(body) == size:
        return {"name": name, "type": "buffer", "size": size}
    return {"name": name, "array_len": len(body) // size, "type": "uint", "size": size}


def stream(
    sections: bytes,
    *,
    machine: str | None = "pc-i440fx-7.2",
    devices: Sequence[Device] = (),
    version: int = 3,
    subsections: Sequence[bytes] = (),
    end: bool = True,
) -> bytes:
    """A whole stream."""
    out = b"QEVM" + struct.pack(">I", version)
    if machine is not None:
        out += configuration(machine, *subsections)
    out += sections
    out += b"".join(device(100 + index, each) for index, each in enumerate(devices))
    return out + b"\0" + vmdescription(devices) if end else out


def _processor(guest: Guest, number: int) -> Device:
    names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16))]
    values = [guest.register(number, name) for name in names]
    fields = {name: guest.register(number, name) for name in ("rip", "cr3")}
    return (
        "cpu",
        number,
        [
            ("env.regs", b"".join(map(word, values)), 8),
            ("env.eip", word(fields["rip"]), 8),
            ("env.cr[3]", word(fields["cr3"]), 8),
            ("env.efer", word(0x500), 8),
        ],
    )


def save(guest: Guest) -> bytes:
    """A PC with the pages of a guest: in the order of the block, in three rounds, of which the last one has it right.

    What lies above 4 GiB follows what lies below it in the block; the CMOS says how much there is.
    """
    low = align(max((pfn for pfn in guest.pages if pfn < 1 << 20), default=0) + 1, 256)
    high = align(max((pfn - (1 << 20) + 1 for pfn in guest.pages if pfn >= 1 << 20), default=0), 16)
    places = {pfn if pfn < 1 << 20 else low + pfn - (1 << 20): page for pfn, page in guest.pages.items()}
    rounds: list[list[bytes]] = [[], [], []]
    for number in sorted(places):
        content = places[number]
        block = None if any(rounds) else "pc.ram"
        again = number % 5 == 0
        rounds[0].append(page(number, bytes([0xEE]) * PAGE if again else content, block))
        if again:
            rounds[1].append(page(number, content) if any(content) else zero(number))
    cmos = bytearray(128)
    cmos[0x5B:0x5E] = (high * PAGE >> 16).to_bytes(3, "little")
    devices: list[Device] = [("mc146818rtc", 0, [("cmos_data", bytes(cmos), 128)])]
    devices += [_processor(guest, number) for number in range(guest.nr_vcpus)]
    table = block_table({"pc.ram": (low + high) * PAGE, "/rom@etc/acpi/tables": 0x20000})
    return stream(ram(table, *map(b"".join, rounds)), devices=devices)


def mapped_ram(
    blocks: Mapping[str, Mapping[int, bytes]],
    sizes: Mapping[str, int],
    *,
    before: int = 0,
    machine: str = "pc-q35-9.0",
    lies: Mapping[str, int] | None = None,
    liar: str | None = None,
) -> bytes:
    """A mapped-ram file: pages at fixed places, bitmaps for which there are.

    Args:
        blocks: content of pages by number, by block.
        sizes: bytes of each block.
        before: bytes that stand before the stream in the file, which its offsets count.
        lies: override fields of each header.
        liar: block whose header alone they are for.
    """
    out = bytearray(b"QEVM" + struct.pack(">I", 3) + configuration(machine, capabilities("mapped-ram")))
    out += begin(2, "ram", 4, word(sum(sizes.values()) | MEM_SIZE))
    for name, size in sizes.items():
        out += _name(name) + word(size)
        pages = size // PAGE
        bitmap_at = len(out) + 28
        pages_at = align(before + bitmap_at + align(pages, 64) // 8, 1 << 20) - before
        header = {"version": 1, "page_size": PAGE, "bitmap": before + bitmap_at, "pages": before + pages_at}
        if liar in (None, name):
            header |= lies or {}
        out += struct.pack(">IQQQ", *header.values())
        bits = sum(1 << number for number in blocks.get(name, {}))
        out += bits.to_bytes(align(pages, 64) // 8, "little")
        out += bytes(pages_at - len(out)) + bytes(size)
        for number, content in blocks.get(name, {}).items():
            out[pages_at + number * PAGE : pages_at + (number + 1) * PAGE] = content
    out += END_OF_RECORDS + footer(2) + b"\x03" + struct.pack(">I", 2) + END_OF_RECORDS + footer(2)
    return bytes(out) + b"\0"


def libvirt(
    body: bytes,
    *,
    xml: str = "<domain type='kvm'><name>web</name></domain>",
    order: str = "<",
    compression: int = 0,
    magic: bytes = b"LibvirtQemudSave",
    version: int = 2,
    cookie: bytes = b"",
    lies: Mapping[str, int] | None = None,
) -> bytes:
    """libvirt's header, the XML with its padding, and what follows."""
    text = xml.encode() + b"\0"
    data = text + cookie
    size = align(92 + len(data), 64 << 10) - 92
    head = {"length": size, "running": 1, "format": compression, "cookie": len(text) if cookie else 0} | (lies or {})
    return magic + struct.pack(f"{order}I4I56x", version, *head.values()) + data.ljust(size, b"\0") + body


def qcow2(
    streams: Mapping[str, bytes],
    *,
    disk: int = 1 << 30,
    bits: int = 16,
    shuffled: bool = True,
    version: int = 3,
    lies: Mapping[str, int] | None = None,
    flags: int = 0,
) -> bytes:
    """A qcow2 image whose disk is empty, with snapshots that have memory.

    Args:
        streams: state of each snapshot by its name.
        disk: bytes of the disk.
        bits: size of a cluster as a power of two.
        shuffled: put clusters in no order; the last zero ones are left out.
        lies: override fields of the header.
        flags: put into every L2 entry.
    """
    cluster = 1 << bits
    per_table = cluster // 8
    first = align(disk, cluster * per_table) // (cluster * per_table)
    image = bytearray(cluster)
    entries = b""
    for number, (name, state) in enumerate(streams.items(), 1):
        places = []
        chunks = [state[at : at + cluster].ljust(cluster, b"\0") for at in range(0, len(state), cluster)]
        order = (
            sorted(range(len(chunks)), key=lambda index: (index * 7 % 11, index)) if shuffled else range(len(chunks))
        )
        at = {}
        for index in order:
            if chunks[index].strip(b"\0"):
                at[index] = len(image)
                image += chunks[index]
        places = [at.get(index, 0) for index in range(len(chunks))]
        tables = []
        for low in range(0, len(places), per_table):
            tables.append(len(image))
            rows = [(1 << 63 | place | flags) if place else 0 for place in places[low : low + per_table]]
            image += b"".join(map(word, rows)).ljust(cluster, b"\0")
        l1 = len(image)
        rows = [0] * first + [1 << 63 | table for table in tables]
        image += b"".join(map(word, rows)).ljust(align(8 * len(rows), cluster), b"\0")
        extra = struct.pack(">QQ", len(state), disk)
        entry = struct.pack(">QIHHIIQII", l1, len(rows), 1, len(name), 1700000000, 0, 0, 0, len(extra))
        entry += extra + str(number).encode() + name.encode()
        entries += entry.ljust(align(len(entry), 8), b"\0")
    table = len(image)
    image += entries
    head: dict[str, int] = {
        "version": version,
        "backing": 0,
        "backing_size": 0,
        "bits": bits,
        "size": disk,
        "crypt": 0,
        "l1_size": 0,
        "l1": 0,
        "refcounts": 0,
        "refcount_clusters": 0,
        "snapshots": len(streams),
        "snapshot_table": table,
        "incompatible": 0,
    } | (lies or {})
    image[:80] = b"QFI\xfb" + struct.pack(">IQIIQIIQQIIQQ", *head.values())
    return bytes(image)
