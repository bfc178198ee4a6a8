"""Digests: the same for the same guest in any format, and as docs/checksum.rst defines them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

import jsonschema
import pytest

import dumpxlate
from dumpxlate.registry import all_formats
from dumpxlate.verify.digest import checksum
from tests.builders import elf_cores, kdump, lime
from tests.builders.guest import Guest, page, pages_of, small_guest
from tests.conftest import ROOT
from tests.test_matrix import FULL, INPUTS, NEAR, Input, opened

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

FRAME, SPAN = 4096, 1024


def expected(pages: Mapping[int, bytes], page_size: int = FRAME) -> tuple[str, str]:
    """Both digests, by the definition, one frame at a time."""
    step = page_size // FRAME
    frames = {pfn * step + i: data[i * FRAME : (i + 1) * FRAME] for pfn, data in pages.items() for i in range(step)}
    content, data = hashlib.sha256(b"dumpxlate content 1\n"), hashlib.sha256(b"dumpxlate data 1\n")
    for span in sorted({frame // SPAN for frame in frames}):
        inside = {frame - span * SPAN: frames[frame] for frame in sorted(frames) if frame // SPAN == span}
        full = {frame: body for frame, body in inside.items() if any(body)}
        bits = sum(1 << frame for frame in full).to_bytes(SPAN // 8, "little")
        leaf = hashlib.sha256(bits + b"".join(full.values())).digest()
        number = span.to_bytes(8, "little")
        content.update(number + sum(1 << frame for frame in inside).to_bytes(SPAN // 8, "little") + leaf)
        if full:
            data.update(number + leaf)
    return content.hexdigest(), data.hexdigest()


def digests(path: Path, format: str | None = None) -> tuple[str, str]:
    with dumpxlate.open(path, format=format) as dump:
        found = checksum(dump)
        assert found.complete
    return found.content.hex(), found.data.hex()


@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_every_format_gives_the_digests_of_its_guest(tmp_path: Path, given: Input) -> None:
    path = tmp_path / "dump"
    path.write_bytes(given.build(given.guest))
    pages = dict(given.guest.pages)
    if given.format in ("raw", "qemu_core"):  # without a map, and in one block of RAM, holes are memory too
        pages |= {pfn: bytes(FRAME) for pfn in range(given.guest.end_pfn) if pfn not in pages}
    with opened(path, given) as dump:
        found = checksum(dump, threads=2)
        assert checksum(dump, threads=0).content == found.content
    assert (found.content.hex(), found.data.hex()) == expected(pages)
    assert found.bytes == len(pages) * FRAME
    assert found.data_bytes == sum(any(data) for data in pages.values()) * FRAME


@pytest.mark.parametrize("target", [each.name for each in all_formats() if each.writes])
@pytest.mark.parametrize("guest", [NEAR, small_guest()], ids=["full", "filtered"])
def test_a_translated_dump_has_the_digests_of_its_source(tmp_path: Path, target: str, guest: Guest) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(kdump.build(guest))
    with dumpxlate.open(source) as dump:
        dumpxlate.convert(dump, out, target, allow_loss=True)
    found = digests(out, "raw" if target == "raw" else None)
    assert digests(source) == expected(guest.pages)
    assert found == digests(source)


def test_zero_pages_count_stored_and_implied(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("shared", "raw", "elf", "left-out", "lime")]
    paths[0].write_bytes(kdump.build(FULL, shared_zero=True))
    paths[1].write_bytes(kdump.build(FULL, shared_zero=False, codec="raw"))
    paths[2].write_bytes(elf_cores.core(FULL, "plain"))
    without = small_guest(excluded=set(FULL.zeros))
    paths[3].write_bytes(kdump.build(without))
    paths[4].write_bytes(lime.build({pfn: data for pfn, data in FULL.pages.items() if any(data)}))
    found = [digests(path) for path in paths]
    assert len({content for content, _ in found[:3]}) == 1
    assert found[3][0] != found[0][0]  # zero memory is told from memory that is not there
    assert found[3] == found[4]  # and why it is not there does not matter
    assert len({data for _, data in found}) == 1


@pytest.mark.parametrize("change", ["byte", "moved", "dropped", "added", "swapped"])
def test_what_differs_shows(tmp_path: Path, change: str) -> None:
    pages = pages_of(NEAR)
    before = tmp_path / "before"
    before.write_bytes(lime.build(pages))
    other = dict(pages)
    if change == "byte":
        other[0x155] = other[0x155][:-1] + bytes([other[0x155][-1] ^ 1])
    elif change == "moved":
        other[0x300] = other.pop(0x1FF)
    elif change == "dropped":
        del other[0x42]
    elif change == "added":
        other[0x300] = page(0x300)
    else:
        other[1], other[2] = other[2], other[1]
    after = tmp_path / "after"
    after.write_bytes(lime.build(other))
    a, b = digests(before), digests(after)
    assert a[0] != b[0]
    assert a[1] != b[1]


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_page_size_does_not_matter(tmp_path: Path, page_size: int) -> None:
    guest = small_guest(page_size=page_size, ranges=[(0, 16), (0x40, 40)], excluded=[3])
    path = tmp_path / "dump"
    path.write_bytes(kdump.build(guest))
    assert digests(path) == expected(guest.pages, page_size)


def test_runs_have_the_digest_of_a_dump_that_holds_them_alone(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    guest = small_guest(ranges=[(0, 0xA0), (0x3F0, 0x900), (1 << 20, 8)], excluded=[3, 0x500, 0x501])
    path.write_bytes(lime.build(guest))
    with dumpxlate.open(path) as dump:
        found = checksum(dump, runs=4)
    assert (len(found.runs), found.total_runs) == (4, 5)
    for run in found.runs:
        first, count = run.address // FRAME, run.length // FRAME
        alone = {pfn: guest.pages[pfn] for pfn in range(first, first + count)}
        assert first + count not in guest.pages
        assert run.content.hex() == expected(alone)[0]


def test_pages_that_do_not_decode_are_told(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(kdump.build(NEAR, codec=lambda pfn, data: (1, b"\xffbad") if pfn in (7, 0x107) else (0, data)))
    with dumpxlate.open(path) as dump:
        found = checksum(dump)
    assert found.bad == 2
    assert not found.complete
    good = {pfn: data for pfn, data in NEAR.pages.items() if pfn not in (7, 0x107)}
    assert found.content.hex() == expected(good)[0]


# The command.


def test_command(cli: Cli, tmp_path: Path) -> None:
    guest = small_guest()
    (tmp_path / "a").write_bytes(kdump.build(guest))
    (tmp_path / "b").write_bytes(lime.build(guest))
    content, data = expected(guest.pages)
    run = cli("checksum", "a")
    assert run.returncode == 0, run.stderr
    assert content in run.stdout
    assert data in run.stdout
    assert cli("checksum", "b", "--expect", content.upper()).returncode == 0
    assert cli("checksum", "b", "--expect", data).returncode == 0
    other = cli("checksum", "b", "--expect", "0" * 64)
    assert other.returncode == 1
    assert other.stderr == "b: not the digest expected\n"
    found = json.loads(cli("checksum", "b", "--json", "--runs", "2").stdout)
    schema = json.loads((ROOT / "docs" / "schemas" / "checksum-1.json").read_text())
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
    assert (found["content"], len(found["runs"])) == (content, 2)


def test_a_damaged_dump_has_the_digest_of_what_is_there(cli: Cli, tmp_path: Path) -> None:
    whole = elf_cores.core(NEAR, "plain")
    (tmp_path / "cut").write_bytes(whole[: -FRAME * 3])
    run = cli("checksum", "cut", "--json")
    assert run.returncode == 4
    assert "truncated" in run.stderr
    found = json.loads(run.stdout)
    last = NEAR.stored[-3:]
    assert found["content"] == expected({pfn: data for pfn, data in NEAR.pages.items() if pfn not in last})[0]
    assert not found["complete"]
    assert cli("convert", "cut", "--salvage", "-o", "saved").returncode == 4
    assert json.loads(cli("checksum", "saved", "--json").stdout)["content"] == found["content"]


def test_commands_of_the_page_run(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    shown = re.findall(r"^    \$ dumpxlate (.*)$", (ROOT / "docs" / "checksum.rst").read_text(), re.MULTILINE)
    assert shown
    for command in shown:
        run = cli(*command.split())
        assert run.returncode == 0, run.stderr
