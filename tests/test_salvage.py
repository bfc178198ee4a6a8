"""Damaged dumps: everything that is there is given, what is missing is named, and check says it before."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import random
import struct
import zlib
from typing import TYPE_CHECKING

import lz4.frame
import pytest
import zstandard

import dumpxlate
from dumpxlate.describe.dump import describe_report
from dumpxlate.describe.verify import describe_check
from dumpxlate.errors import FormatError, MapError
from dumpxlate.pages import PageState
from dumpxlate.verify.check import check
from tests.builders import elf_cores, flattened, kdump, lime, qemu_stream
from tests.test_matrix import FILTERED, INPUTS, NEAR, Input, opened

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump
    from tests.builders.guest import Guest

    Cli = Callable[..., subprocess.CompletedProcess[str]]

# Where no page can be placed without what stood behind the pages.
INDEX_LAST = ("xen_core",)
# Pages that a guest wrote to are sent again: of a stream that is cut, some are as they were before.
SENT_AGAIN = ("qemu_stream",)
PARTS = [n / 8 for n in range(1, 8)]


@functools.cache
def whole_file(given: Input) -> bytes:
    return given.build(given.guest)


def damaged(given: Input, how: str) -> bytes:
    """A file of which something is gone."""
    whole = bytearray(whole_file(given))
    rng = random.Random(f"{given.name} {how}")
    if how.startswith("cut"):
        return bytes(whole[: int(len(whole) * float(how.split()[1]))])
    start = rng.randrange(len(whole) // 3, len(whole) - 6000)
    if how == "head":
        start = rng.randrange(64, min(8192, len(whole) // 4))
        whole[start : start + 24] = rng.randbytes(24)
    elif how == "tail":
        start = len(whole) - rng.randrange(40, min(20_000, len(whole) // 4))
        whole[start : start + 30] = bytes(30)
    elif how == "hole":
        whole[start : start + 5000] = bytes(5000)
    else:
        for _ in range(40):
            whole[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
    return bytes(whole)


def whole_pages(dump: Dump, guest: Guest) -> dict[int, bytes]:
    """Pages of the guest that a dump has content for, and does not find bad."""
    found = dump.read_pages(guest.stored)
    good = (PageState.STORED, PageState.ZERO)
    states = dump.states(guest.stored)
    return {pfn: row.tobytes() for pfn, row, state in zip(guest.stored, found, states, strict=True) if state in good}


def where(given: Input) -> dict[int, int]:
    """Where the pages that are not zero stand as they are; -1 for those that do not."""
    whole = whole_file(given)
    return {pfn: whole.find(body) for pfn, body in given.guest.pages.items() if any(body)}


@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_a_truncated_file_gives_every_page_that_is_in_it(tmp_path: Path, given: Input) -> None:
    opened_at_all = 0
    compressed = given.format == "avml" or (given.format == "kdump" and "raw" not in given.name)
    places = {} if compressed or given.format in SENT_AGAIN else where(given)
    for part in PARTS:
        data = damaged(given, f"cut {part}")
        path = tmp_path / "in"
        path.write_bytes(data)
        try:
            with opened(path, given) as dump:
                found = whole_pages(dump, given.guest)
        except FormatError as error:
            assert part < 0.3 or given.format in INDEX_LAST or "bitmaps" in str(error), error
            continue
        opened_at_all += 1
        wrong = [pfn for pfn, body in found.items() if body != given.guest.pages[pfn]]
        # The page at the seam may be there only in part, which a remark says.
        assert given.format in SENT_AGAIN or len(wrong) <= (
            "raw" in given.name or given.format in ("elf", "lime", "raw")
        )
        # Where memory is split at 4 GiB stands behind it in a stream: its upper part moves if that is cut.
        named = {pfn for pfn, at in places.items() if 0 <= at <= len(data) - given.guest.page_size}
        twins = {pfn for pfn in named if pfn in given.guest.twins or pfn + 1 in given.guest.twins}
        assert named - twins <= found.keys()
    assert opened_at_all >= 3 or given.format in INDEX_LAST


def flat(data: bytes) -> bytes:
    """What the whole records of a flattened file and the beginning of its last one put where."""
    out, at = bytearray(), 4096
    while at + 16 <= len(data):
        offset, size = struct.unpack_from(">qq", data, at)
        if offset < 0:
            break
        piece = data[at + 16 : at + 16 + size]
        out.extend(bytes(max(offset + len(piece) - len(out), 0)))
        out[offset : offset + len(piece)] = piece
        at += 16 + size
    return bytes(out)


CONTAINERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip": (gzip.compress, lambda data: zlib.decompressobj(31).decompress(data)),
    "xz": (lzma.compress, lambda data: lzma.LZMADecompressor().decompress(data)),
    "bzip2": (lambda data: bz2.compress(data, 1), lambda data: bz2.BZ2Decompressor().decompress(data)),
    "zstd": (
        zstandard.compress,
        lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    ),
    "lz4": (
        lambda data: bytes(lz4.frame.compress(data)),
        lambda data: bytes(lz4.frame.LZ4FrameDecompressor().decompress(data)),
    ),
    "libvirt": (qemu_stream.libvirt, lambda data: data[64 << 10 :]),
    "flattened": (lambda data: flattened.wrap(data, sizes=(4096, 100, 20000)), flat),
}
"""How a container is made, and what of it can be unpacked by other means, up to where it ends."""


@pytest.mark.parametrize("name", ["elf-plain-x86_64<", "kdump-mixed", "lime", "xendump-hvm", "qemu_stream"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_container_gives_what_another_program_unpacks(tmp_path: Path, container: str, name: str) -> None:
    given = next(each for each in INPUTS if each.name == name)
    if container == "libvirt" and given.format != "qemu_stream":
        pytest.skip("libvirt saves streams of QEMU")
    pack, unpack = CONTAINERS[container]
    whole = pack(whole_file(given))
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    opened_at_all = 0
    for part in (0.3, 0.6, 0.9, 0.99):
        cut = whole[: int(len(whole) * part)]
        outer.write_bytes(cut)
        inner.write_bytes(unpack(cut))
        try:
            with opened(inner, given) as dump:
                wanted = whole_pages(dump, given.guest)
        except FormatError:
            with pytest.raises(FormatError):
                opened(outer, given)
            continue
        with opened(outer, given) as dump:
            opened_at_all += 1
            assert dump.damage
            assert whole_pages(dump, given.guest) == wanted
            checked = check(dump, first=1000)
            report = dumpxlate.convert(dump, tmp_path / "out", "elf", salvage=True, allow_loss=True, bad_pages="skip")
            (tmp_path / "out").unlink()
        assert describe_check(dump, checked)["missing"] == describe_report(report)["missing"]
    assert opened_at_all >= 2


def split_part(guest: Guest) -> bytes:
    return kdump.build(guest, split=(0, guest.end_pfn), codec="zlib")


def mapped(guest: Guest) -> bytes:
    top = (max(guest.pages) + 1) * 4096
    return qemu_stream.mapped_ram({"pc.ram": guest.pages}, {"pc.ram": top, "pc.bios": 0x40000})


WRAPPED = (
    Input("libvirt", "qemu_stream", lambda model: qemu_stream.libvirt(qemu_stream.save(model))),
    Input("qcow2", "qemu_stream", lambda model: qemu_stream.qcow2({"one": qemu_stream.save(model)})),
    Input("mapped-ram", "qemu_stream", mapped, NEAR),
    Input("flattened-elf", "elf", lambda model: flattened.wrap(elf_cores.core(model), sizes=(4096, 100, 20000))),
    Input("flattened-kdump", "kdump", lambda model: flattened.wrap(kdump.build(model, codec="zlib")), FILTERED),
    Input("kdump-part", "kdump", split_part, FILTERED),
    Input("gzip-lime", "lime", lambda model: gzip.compress(lime.build(model))),
)
"""Containers, and variants that are damaged in ways of their own."""


@pytest.mark.parametrize("how", ["cut 0.4", "cut 0.7", "cut 0.93", "cut 0.999", "hole", "bits", "head", "tail"])
@pytest.mark.parametrize("given", [*INPUTS, *WRAPPED], ids=lambda given: given.name)
def test_check_says_what_a_conversion_will_miss(tmp_path: Path, given: Input, how: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(damaged(given, how))
    try:
        with opened(path, given) as dump:
            checked = check(dump, first=1000)
            report = dumpxlate.convert(dump, tmp_path / "out", "elf", salvage=True, allow_loss=True, bad_pages="skip")
            told, did = describe_check(dump, checked), describe_report(report)
            lost = checked.pages["excluded"] - len(given.guest.excluded)
    except (FormatError, MapError):
        return  # there is nothing to salvage; that it is an error of ours is all that counts here
    assert told["missing"] == did["missing"]
    assert checked.missing.pages >= checked.pages["bad"]
    # A stream leaves out what the guest called free; what a map leads to and is not there, is told with its fit.
    if given.format not in SENT_AGAIN and not given.mapped:
        assert checked.missing.pages - checked.pages["bad"] in (lost, lost + len(given.guest.excluded)) or lost <= 0
    assert sum(run.count for run in checked.missing.first) == checked.missing.pages
    assert report.pages_out.get("bad", 0) == checked.pages["bad"]
    assert report.pages_out.get("stored", 0) == checked.pages["stored"]


def test_what_is_missing_is_told_by_address(cli: Cli, tmp_path: Path) -> None:
    broken = lambda pfn, data: (1, b"\xffbad") if pfn in (7, 8, 0x107) else (0, data)  # noqa: E731
    (tmp_path / "in").write_bytes(kdump.build(NEAR, codec=broken, truncate=-4096 * 5))
    last = NEAR.stored[-5:]
    checked = json.loads(cli("check", "in", "--json").stdout)
    assert checked["missing"] == {
        "pages": 8,
        "share": round(8 / len(NEAR.ram), 6),
        "runs": 3,
        "first": [
            {"start": "0x7000", "end": "0x9000", "pages": 2, "reason": "do not decode (zlib)"},
            {"start": "0x107000", "end": "0x108000", "pages": 1, "reason": "do not decode (zlib)"},
            {
                "start": hex(last[0] * 4096),
                "end": hex((last[-1] + 1) * 4096),
                "pages": 5,
                "reason": "the file promises them, and ends before them or never got them",
            },
        ],
    }
    arguments = ["--salvage", "--bad-pages", "skip", "-o", "out", "--report", "report"]
    run = cli("convert", "in", *arguments)
    assert run.returncode == 4
    assert json.loads((tmp_path / "report").read_text())["missing"] == checked["missing"]
    assert f"missing: 8 pages, {8 / len(NEAR.ram):.2%} of RAM, in 3 runs" in run.stderr
    assert "  0x7000 to 0x9000, 2 pages: do not decode (zlib)" in run.stderr
    assert "missing: 8 pages" in cli("check", "in").stdout


def test_what_was_left_out_on_purpose_is_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(elf_cores.core(FILTERED, "makedumpfile"))
    with dumpxlate.open(path) as dump:
        found = check(dump)
    assert found.pages["excluded"] == len(FILTERED.excluded)
    assert found.missing.pages == 0


def test_missing_as_zero_does_not_take_lost_memory_for_zero(tmp_path: Path) -> None:
    from dumpxlate.format import OpenOptions

    path = tmp_path / "in"
    path.write_bytes(elf_cores.core(FILTERED, "makedumpfile", truncate=-4096 * 3))
    with dumpxlate.open(path, options=OpenOptions(missing="zero")) as dump:
        excluded = sorted(FILTERED.excluded)
        assert set(dump.states(excluded)) == {PageState.ZERO}
        assert set(dump.states(FILTERED.stored[-3:])) == {PageState.EXCLUDED}
        assert check(dump).missing.pages == 3


def test_a_cut_range_is_memory_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(lime.build(NEAR, truncate=-4096 * 6))
    with dumpxlate.open(path) as dump:
        found = check(dump)
    assert (found.missing.pages, found.missing.ram) == (6, len(NEAR.ram))
