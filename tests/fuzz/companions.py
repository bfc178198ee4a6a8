"""Inputs that are no dump by themselves: sets of files, and the files that stand beside a dump to explain it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import dumpxlate
from dumpxlate.elf.debug_files import open_debug_info
from dumpxlate.elf.symbols import read_symbols
from dumpxlate.errors import UnsupportedFeatureError
from dumpxlate.format import OpenOptions
from dumpxlate.qemu.hints import QemuHints
from dumpxlate.qemu.knowledge import read_profile
from dumpxlate.qemu.profile import Profile
from dumpxlate.registry import open_from
from tests.builders import dwarf, kdump, qemu_core, qemu_stream, symbols
from tests.builders.guest import small_guest
from tests.fuzz.bases import Base, base
from tests.fuzz.uses import plain, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump
    from dumpxlate.io.source import Source

__all__ = ["EXAMINERS", "companions", "opened_soundly", "pieces"]

NEAR = small_guest(ranges=((0, 10), (0x20, 14)), excluded=())
SPLIT = ("-machine", "q35,accel=tcg", "-m", "1")
XML = """<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>6c3b7a1e-0000-4000-8000-000000000007</uuid>
  <memory unit='KiB'>4096</memory><!-- <name>no</name> --><title><![CDATA[<name>nor this</name>]]></title>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <description>&lt;name&gt;&#27;[2J\x1b[31m</description>
</domain>
"""


@cache
def _set_of(name: str) -> tuple[bytes, ...]:
    """The files of a set."""
    how = {"kdump_set-zlib": {}, "kdump_set-old": {"version": 5, "layout": "packed", "utsname": {"machine": b"i686"}}}
    return tuple(kdump.split_set(NEAR, 3, codec=("zlib", "lzo"), **how[name]))


@cache
def _core() -> qemu_core.Core:
    return qemu_core.build(NEAR, words=SPLIT, registers=[{"eip": 1 << 12}])


def _debug_file() -> bytes:
    from tests.formats.test_qemu_core import debug_file

    return debug_file(_core().profile)


def _other_dwarf(version: int, order: str) -> bytes:
    """Debug information of other versions: members by expressions, names in place, references over units."""
    number, letter = dwarf.base("unsigned long", 8), dwarf.base("char", 1)
    inner = dwarf.structure(None, 16, dwarf.member("low", 0, number), dwarf.member("high", b"\x23\x08", number))
    outer = dwarf.structure(
        "FlatRange", 64, dwarf.member("addr", 8, inner), dwarf.member("mr", 24, letter, form="string")
    )
    made = dwarf.build([[number, letter, inner, outer], [dwarf.pointer(None)]], version=version, order=order)
    return dwarf.elf_file(
        made, order=order, compress=version == 5, symbols={"ram_list": 0x1000}, build_id=bytes(range(20))
    )


def companions() -> list[Base]:
    """Give the bases of this kind."""
    made: list[tuple[str, str, Callable[[], bytes], float]] = [
        (name, "kdump_set", partial(lambda name: b"".join(_set_of(name)), name), 1.5)
        for name in ("kdump_set-zlib", "kdump_set-old")
    ]
    made += [
        ("dwarf-qemu", "dwarf", _debug_file, 2.0),
        ("dwarf-2-big", "dwarf", partial(_other_dwarf, 2, ">"), 1.0),
        ("dwarf-5-packed", "dwarf", partial(_other_dwarf, 5, "<"), 1.0),
        ("profile", "profile", lambda: json.dumps(_core().profile).encode(), 1.5),
        ("qemu_core-known", "qemu_core_known", lambda: _core().data, 2.0),
        ("symbols-elf", "symbols", lambda: symbols.elf_symbols({"phys_base": 1 << 20, "init_top_pgt": 1 << 21}), 0.5),
        ("symbols-map", "symbols", lambda: symbols.system_map({"phys_base": 1 << 20, "_text": 1 << 21}), 0.5),
        ("libvirt-xml", "libvirt", _libvirt, 2.0),
    ]
    return [Base(name, format, make, weight=weight) for name, format, make, weight in made]


def _libvirt() -> bytes:
    return qemu_stream.libvirt(qemu_stream.save(NEAR), xml=XML, cookie=b"<cookie><cpu/></cookie>")


def _examine_set(given: Base, data: bytes, path: Path) -> str:
    """Cut where the files of the base end; what mutations added is the last one's."""
    ends = [0]
    for part in _set_of(given.name):
        ends.append(ends[-1] + len(part))
    paths = []
    for number, (low, high) in enumerate(pairwise(ends)):
        paths.append(path.with_name(f"input.{number}"))
        paths[-1].write_bytes(data[low : high if number < len(ends) - 2 else None])
    with dumpxlate.open(*paths, format="kdump") as dump:
        use(dump, path, "elf")
    return "opened"


def _examine_dwarf(given: Base, data: bytes, path: Path) -> str:
    """Ask for names that are there, and for those that a profile needs."""
    path.write_bytes(data)
    with open_debug_info(path, root=path.parent) as info:
        plain(str(info.build_id))
        for name in ("FlatRange", "unsigned long", "MemoryRegion", "Int128", "nowhere"):
            info.size(name)
        for name in ("FlatRange.addr.low", "FlatRange.addr.high", "FlatRange.mr", "RAMBlock.idstr"):
            info.field(name)
        info.address("ram_list")
        with contextlib.suppress(UnsupportedFeatureError):  # it is of another program
            plain(Profile.from_debug_info(info, str(path)).to_json().replace("\n", ""))
    return "opened"


def _examine_profile(given: Base, data: bytes, path: Path) -> str:
    """Open a sound core with what the profile says."""
    path.write_bytes(data)
    plain(read_profile(path).to_json().replace("\n", ""))
    core = path.with_name("input.core")
    core.write_bytes(_core().data)
    with dumpxlate.open(core, options=OpenOptions(qemu=QemuHints(profile=str(path)))) as dump:
        use(dump, path, "elf")
    return "opened"


def _examine_known(given: Base, data: bytes, path: Path) -> str:
    """Open a core by a sound profile, so that the structures in its heap are followed."""
    path.write_bytes(data)
    profile = path.with_name("input.json")
    profile.write_text(json.dumps(_core().profile))
    with dumpxlate.open(path, format="qemu_core", options=OpenOptions(qemu=QemuHints(profile=str(profile)))) as dump:
        use(dump, path, "elf")
    return "opened"


def _examine_symbols(given: Base, data: bytes, path: Path) -> str:
    path.write_bytes(data)
    found = read_symbols(path)
    for name in ("phys_base", "_text", "init_top_pgt", "x"):
        found.address(name)
    return "opened"


EXAMINERS = {
    "kdump_set": _examine_set,
    "dwarf": _examine_dwarf,
    "profile": _examine_profile,
    "qemu_core_known": _examine_known,
    "symbols": _examine_symbols,
}


def pieces(given: Base) -> list[bytes]:
    """Give the files that a base is made of, one behind the other: one, but for sets."""
    return list(_set_of(given.name)) if given.format == "kdump_set" else [base(given.name)]


def opened_soundly(given: Base, sources: list[Source]) -> Dump | None:
    """Open a base from sources that note where they are looked at; None where it is no dump that can be."""
    if given.format == "kdump_set":
        return open_from(sources, "kdump")
    if given.format == "qemu_core_known":
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(_core().profile))
            file.flush()
            return open_from(sources, "qemu_core", options=OpenOptions(qemu=QemuHints(profile=file.name)))
    return None
