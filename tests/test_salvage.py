"""Damaged dumps: everything that is there is given, what is missing is named, and check says it before."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.describe.dump import describe_report
from dumpxlate.describe.verify import describe_check
from dumpxlate.errors import FormatError, MapError
from dumpxlate.pages import PageState
from dumpxlate.verify.check import check
from tests.builders import elf_cores, kdump, lime
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


def damaged(given: Input, how: str) -> bytes:
    """A file of which something is gone."""
    whole = bytearray(given.build(given.guest))
    rng = random.Random(f"{given.name} {how}")
    if how.startswith("cut"):
        return bytes(whole[: int(len(whole) * float(how.split()[1]))])
    start = rng.randrange(len(whole) // 3, len(whole) - 6000)
    if how == "hole":
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


@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_a_truncated_file_gives_every_page_that_is_in_it(tmp_path: Path, given: Input) -> None:
    opened_at_all = 0
    compressed = given.format == "avml" or (given.format == "kdump" and "raw" not in given.name)
    for part in PARTS:
        data = damaged(given, f"cut {part}")
        path = tmp_path / "in"
        path.write_bytes(data)
        try:
            dump = opened(path, given)
        except FormatError as error:
            assert part < 0.3 or given.format in INDEX_LAST or "bitmaps" in str(error), error
            continue
        with dump:
            opened_at_all += 1
            found = whole_pages(dump, given.guest)
            wrong = [pfn for pfn, body in found.items() if body != given.guest.pages[pfn]]
            # The page at the seam may be there only in part, which a remark says.
            assert given.format in SENT_AGAIN or len(wrong) <= (
                "raw" in given.name or given.format in ("elf", "lime", "raw")
            )
            # Where memory is split at 4 GiB stands behind it in a stream: its upper part moves if that is cut.
            if not compressed and given.format not in SENT_AGAIN:
                named = {pfn for pfn, body in given.guest.pages.items() if any(body) and data.find(body) >= 0}
                twins = {pfn for pfn in named if pfn in given.guest.twins or pfn + 1 in given.guest.twins}
                assert named - twins <= found.keys()
    assert opened_at_all >= 3 or given.format in INDEX_LAST


@pytest.mark.parametrize("how", ["cut 0.4", "cut 0.7", "cut 0.93", "cut 0.999", "hole", "bits"])
@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
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
    if given.format not in SENT_AGAIN:  # it leaves out what the guest called free
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
