"""Every sample is what its sidecar says: digest, format, number of pages, and what is in them."""

from __future__ import annotations

import hashlib
import json
import lzma
import struct
import tomllib
import zlib
from typing import TYPE_CHECKING, Any

import pytest

import dumpxlate
from dumpxlate.verify.check import check
from tests.conftest import SAMPLES

if TYPE_CHECKING:
    from pathlib import Path

SIDECARS = sorted(SAMPLES.glob("*/*.toml"))
ALL_ONES = "0xffffffffffffffff"


def load(sidecar: Path) -> tuple[Path, dict[str, Any]]:
    """The sample and its facts."""
    return sidecar.with_name(f"{sidecar.stem}.xz"), tomllib.loads(sidecar.read_text())


def every_page(dump: dumpxlate.Dump) -> dict[int, bytes]:
    """Memory in pieces of 4 KiB, whatever the size of a page (QEMU's kdump of aarch64 has 64 KiB)."""
    pfns, scale = dump.pages.stored.select(0, 1 << 40), dump.pages.page_size // 4096
    return {
        pfn * scale + at: row[at * 4096 : (at + 1) * 4096].tobytes()
        for pfn, row in zip(pfns.tolist(), dump.read_pages(pfns), strict=True)
        for at in range(scale)
    }


def test_every_sample_has_a_sidecar() -> None:
    known = {load(sidecar)[0] for sidecar in SIDECARS}
    extra = {path for path in SAMPLES.glob("*/*.xz") if ".truth." not in path.name and ".p2m." not in path.name}
    assert known == extra


@pytest.mark.parametrize("sidecar", SIDECARS, ids=lambda path: path.stem)
def test_sample(sidecar: Path) -> None:
    path, facts = load(sidecar)
    assert path.stat().st_size < 1 << 20
    raw = lzma.decompress(path.read_bytes())
    assert len(raw) == facts["bytes"]
    assert hashlib.sha256(raw).hexdigest() == facts["sha256"]
    p2m = sidecar.parent / facts["map"] if "map" in facts else None
    with dumpxlate.open(path, p2m=p2m) as dump:
        assert dump.format == facts.get("format", sidecar.parent.name)
        assert check(dump).ok
        pages = every_page(dump)
    assert len(pages) == facts["pages"]
    if "memory" in facts:
        found = hashlib.sha256()
        for pfn, page in pages.items():
            found.update(struct.pack("<Q", pfn) + page)
        assert found.hexdigest() == facts["memory"]
    if "truth" in facts:
        rows = json.loads(lzma.decompress((sidecar.parent / facts["truth"]).read_bytes()))["pages"]
        unused = (lambda pfn, mfn: ALL_ONES in (pfn, mfn)) if p2m else (lambda pfn, mfn: pfn == ALL_ONES)
        truth = {int(pfn, 16): int(crc, 16) for _, pfn, mfn, crc, _ in rows if not unused(pfn, mfn)}
        assert {pfn: zlib.crc32(page) for pfn, page in pages.items()} == truth


def test_both_files_of_a_machine_show_the_same_memory() -> None:
    for elf in SAMPLES.glob("elf/*.toml"):
        twin = SAMPLES / "kdump" / elf.name.replace(".elf.", ".kdump.")
        assert load(elf)[1]["memory"] == load(twin)[1]["memory"]


def test_save_image_keeps_the_pages_of_the_guest() -> None:
    """Page i of these guests says so itself, except those that hold its own tables."""
    with dumpxlate.open(SAMPLES / "xen_stream" / "t7.save.xz") as dump:
        pages = every_page(dump)
    tagged = {pfn: struct.unpack_from("<Q", page, 8)[0] for pfn, page in pages.items() if page[:8] == b"XLATTINY"}
    assert len(tagged) > 300
    assert all(pfn == own for pfn, own in tagged.items())
    assert list(pages) == sorted(pages)


def test_a_host_has_the_guests_of_other_samples() -> None:
    """Each guest's own ``xl dump-core``, page for page; xl leaves out what is just below 4 GiB and the VGA hole."""
    with dumpxlate.open(SAMPLES / "xen_host" / "host.elf.xz") as host:
        listed = {each.number: each.type for each in host.domains(SAMPLES / "xen_host" / "xen-syms.map")}
        assert listed == {0: "pv", **dict.fromkeys(range(1, 8), "pv"), 8: "pvh"}
        for number, name in ((2, "t1"), (8, "t5")):
            found = every_page(host.domain(number))
            with dumpxlate.open(SAMPLES / "xen_core" / f"{name}.core.xz") as core:
                wanted = every_page(core)
            more = found.keys() - wanted.keys()
            assert all(name == "t5" and (0xA0 <= pfn < 0xC0 or 0xF0000 <= pfn < 0x100000) for pfn in more)
            assert {pfn: found[pfn] for pfn in wanted} == wanted
