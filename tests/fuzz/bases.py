"""What is mutated: every sample, and every builder's output for a guest of a few pages, by name."""

from __future__ import annotations

import json
import lzma
import zlib
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import tests.test_matrix as matrix
from tests.builders import elf_cores, kdump, lime, p2m, p2m_tree, qemu_stream, xen_core, xen_host, xen_stream
from tests.builders.guest import Guest, small_guest
from tests.conftest import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEVER_WRAPPED", "Base", "base", "bases"]

NEVER_WRAPPED = (
    "p2m", "rawmap", "compressed", "libvirt", "kdump_set", "dwarf", "profile", "qemu_core_known", "symbols",
)  # fmt: skip
"""Formats that containers are not tried around."""

LOW = ((0, 10), (0x20, 14))
FULL = small_guest(ranges=[*LOW, (1 << 20, 4)], excluded=())
FILTERED = small_guest(ranges=[*LOW, (1 << 20, 4)], excluded=(3, 0x24, 0x25, (1 << 20) + 3))
NEAR = small_guest(ranges=LOW, excluded=())
_SMALLER = {id(matrix.FULL): FULL, id(matrix.FILTERED): FILTERED, id(matrix.NEAR): NEAR}


@dataclass(frozen=True)
class Base:
    """One file to mutate.

    Attributes:
        name: as recipes call it.
        format: the reader that it is for; "p2m" for a map, "rawmap" for a file beside a raw image, and those of
            ``companions``.
        make: gives its bytes.
        mfns: pfn -> mfn of the guest in it, where a map may be applied.
        weight: how often it is chosen; large ones seldom, since they take longer.
    """

    name: str
    format: str
    make: Callable[[], bytes]
    mfns: dict[int, int] | None = None
    weight: float = 1.0


def _from_matrix() -> list[Base]:
    """The inputs of the matrix test, which must know every format; a small guest where they use one of its own."""
    found = []
    for given in matrix.INPUTS:
        guest = _SMALLER.get(id(given.guest), given.guest)
        weight = 2.0 if id(given.guest) in _SMALLER else 0.5
        found.append(Base(given.name, given.format, partial(given.build, guest), guest.mfns, weight))
    return found


def _further() -> list[Base]:
    found = [
        Base(f"elf-{style}", "elf", partial(elf_cores.core, FULL, style))
        for style in elf_cores.STYLES
        if style != "plain"
    ]
    options = {"version1": {"version": 1}, "diskdump": {"signature": b"DISKDUMP"}, "raw": {"codec": "raw"}}
    found += [Base(f"kdump-{name}", "kdump", partial(kdump.build, NEAR, **how)) for name, how in options.items()]
    found.append(Base("lime-zlib", "compressed", partial(lime.build, NEAR, compressed=True)))
    found.append(Base("xen_host", "xen_host", _host, weight=0.5))
    found.append(Base("libvirt", "libvirt", lambda: qemu_stream.libvirt(qemu_stream.save(NEAR))))
    found.append(Base("qcow2", "qemu_stream", lambda: qemu_stream.qcow2({"s": qemu_stream.save(NEAR)}, disk=1 << 20)))
    found.append(Base("xen_stream-libxc", "xen_stream", partial(xen_stream.libxc, NEAR)))
    found.append(Base("qemu_stream-mapped", "qemu_stream", _mapped, weight=0.5))
    found.append(Base("qemu_stream-coded", "qemu_stream", _coded))
    found += [Base(f"xen_core-{kind}", "xen_core", partial(_kernel, kind), weight=0.5) for kind in p2m_tree.KINDS]
    return found


def _mapped() -> bytes:
    return qemu_stream.mapped_ram({"pc.ram": {pfn: NEAR.pages[pfn] for pfn in range(10)}}, {"pc.ram": 0x20000})


def _coded() -> bytes:
    """Pages in every encoding of a stream."""
    changes = bytes([0x10, 3]) + b"abc" + bytes([0xED, 0x03, 2]) + b"de"
    records = [
        qemu_stream.page(0, NEAR.pages[1], "pc.ram"),
        qemu_stream.compressed(1, zlib.compress(NEAR.pages[2])),
        qemu_stream.zero(2, fill=0xA5),
        qemu_stream.delta(0, changes),
        qemu_stream.page(3, NEAR.pages[3]),
    ]
    return qemu_stream.stream(qemu_stream.ram(qemu_stream.block_table({"pc.ram": 0x20000}), b"".join(records)))


def _kernel(kind: str) -> bytes:
    """A paravirtual guest with its kernel's p2m and page tables, so that maps are searched and tables rewritten."""
    guest = small_guest(ranges=[(0, 0x60), (0x100, 0x60)], excluded=())
    table = p2m.entries(guest, foreign={7: 0x123456}, identity=range(0x60, 0x80), invalid=[5])
    return xen_core.build(p2m_tree.with_kernel_tree(guest, table, kind, at=range(0x108, 0x160)).guest)


def _host() -> bytes:
    """A host with a PV and a hardware guest."""
    dom0 = xen_host.Guest(0, {pfn: 1024 + pfn for pfn in range(24)})
    pvh = xen_host.Guest(9, {pfn: 1200 + pfn for pfn in range(8)}, bytes(range(16)), "pvh")
    host = xen_host.Host([dom0, pvh])
    return host.build(host.crash_notes())


def _maps() -> list[Base]:
    table = p2m.entries(FULL.mfns, size=0x40, identity=(0x30, 0x31), foreign={0x33: 7})
    pairs = sorted(NEAR.mfns.items())
    made: dict[str, Callable[[], bytes]] = {
        "u64": lambda: p2m.flat(table),
        "u32": lambda: p2m.flat(p2m.entries(NEAR.mfns, width=4), width=4),
        "npy": lambda: p2m.npy(table),
        "text": lambda: p2m.text(pairs, comments=("# one", "# two")),
        "mfndump": lambda: p2m.mfndump(table),
    }
    return [Base(f"p2m-{name}", "p2m", make, weight=0.5) for name, make in made.items()]


def _raw_map() -> bytes:
    return json.dumps(
        {
            "schema": "dumpxlate.rawmap/1",
            "size": 0x10000,
            "base": "0x0",
            "page_size": 4096,
            "machine": {"arch": "x86_64", "elf_machine": 62, "word_bits": 64, "byte_order": "little"},
            "ram": [["0x0", "0x9000"], ["0xa000", "0x10000"]],
            "missing": [["0x3000", "0x4000"]],
        }
    ).encode()


def _samples() -> list[Base]:
    found = []
    for path in sorted(SAMPLES.glob("*/*.toml")):
        packed = path.with_suffix(".xz")
        read = partial(lambda packed: lzma.decompress(packed.read_bytes()), packed)
        small = packed.parent.name == "kdump"
        found.append(Base(f"samples/{path.stem}", packed.parent.name, read, weight=0.2 if small else 0.05))
    return found


@cache
def bases() -> dict[str, Base]:
    """Every base by name."""
    from tests.fuzz.companions import companions

    found = [*_from_matrix(), *_further(), *_maps(), *_samples(), Base("rawmap", "rawmap", _raw_map, weight=0.5)]
    found += companions()
    return {each.name: each for each in found}


@cache
def base(name: str) -> bytes:
    """The bytes of a base."""
    return bases()[name].make()


def guest() -> Guest:
    """The guest of most bases."""
    return FULL
