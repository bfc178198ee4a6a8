"""Holding maps against dumps: the right one, and ones that are wrong in one way each."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.builders import p2m as builder
from tests.builders import p2m_tree, xen_core, xendump
from tests.builders.guest import Guest, small_guest
from tests.conftest import SAMPLES

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]


def kernel() -> p2m_tree.Kernel:
    """A guest of 0x6a0 pages with page tables and a flat array."""
    guest: Guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x600)], excluded=[])
    return p2m_tree.with_kernel_tree(guest, builder.entries(guest), "pointer", at=range(0x140, 0x1C0))


@pytest.fixture
def checked(cli: Cli, tmp_path: Path) -> Callable[[list[int]], tuple[int, dict[str, float], dict[str, Any]]]:
    """Check a map on an old dump of that guest: exit code, share of each evidence, and all of it."""
    (tmp_path / "old").write_bytes(xendump.build(kernel().guest))

    def check(table: list[int]) -> tuple[int, dict[str, float], dict[str, Any]]:
        (tmp_path / "map").write_bytes(builder.flat(table))
        done = cli("p2m", "check", "old", "map", "--json")
        found = json.loads(done.stdout)
        return done.returncode, {each["name"]: each["share"] for each in found["evidence"]}, found

    return check


def test_right_map(checked: Callable[[list[int]], tuple[int, dict[str, float], dict[str, Any]]]) -> None:
    code, shares, found = checked(kernel().table)
    assert (code, found["confidence"], found["makes_sense"]) == (0, 1.0, True)
    assert shares == dict.fromkeys(("pages", "frames", "page tables", "linear map", "entries"), 1.0)
    assert found["remarks"] == ["VMCOREINFO: none in memory"]


@pytest.mark.parametrize(
    ("wrong", "told_by"),
    [
        ("shifted by a page of entries", {"linear map", "entries"}),
        ("shifted by one", {"linear map", "entries"}),
        ("in disorder", {"linear map", "entries"}),
        ("half of it", {"frames", "page tables", "entries"}),
        ("of another guest", {"pages", "frames", "page tables", "linear map", "entries"}),
    ],
)
def test_wrong_maps(
    checked: Callable[[list[int]], tuple[int, dict[str, float], dict[str, Any]]], wrong: str, told_by: set[str]
) -> None:
    table = kernel().table
    frames = [entry for entry in table if entry != builder.INVALID]
    other = {
        "shifted by a page of entries": [builder.INVALID] * 512 + table,
        "shifted by one": table[1:],
        "in disorder": random.Random(2).sample(frames, len(frames)),
        "half of it": table[: len(table) // 2],
        "of another guest": [entry if entry == builder.INVALID else entry + 0x1000000 for entry in table],
    }[wrong]
    code, shares, found = checked(other)
    assert (code, found["makes_sense"]) == (1, False)
    assert {name for name, share in shares.items() if share < 0.95} == told_by
    assert found["confidence"] == min(shares.values())


def test_lists_that_the_guest_told_of(cli: Cli, tmp_path: Path) -> None:
    """Their own pages must be in the map; here it lacks those."""
    guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x600)], excluded=[])
    at = range(0x108, 0x140)
    made = builder.with_frame_lists(guest, builder.entries(guest), at=at)
    (tmp_path / "core").write_bytes(xen_core.build(made.guest, shared_info=made.shared_info))
    lacking = [builder.INVALID if pfn in at else entry for pfn, entry in enumerate(made.table)]
    (tmp_path / "map").write_bytes(builder.flat(lacking))
    done = cli("p2m", "check", "core", "map", "--json")
    found = {each["name"]: (each["agree"], each["total"]) for each in json.loads(done.stdout)["evidence"]}
    leaves = -(-len(made.table) // 512)
    assert found["lists"] == (0, 2 + leaves)
    assert found["entries"] == (len(guest.mfns) - len(at), len(guest.mfns))
    assert done.returncode == 1


def test_torn_lists_are_said_to_be(cli: Cli, tmp_path: Path) -> None:
    guest = small_guest(ranges=[(0, 0xA0), (0x100, 0x600)], excluded=[])
    made = builder.with_frame_lists(guest, builder.entries(guest), at=range(0x108, 0x140), cut_top=0x77777)
    (tmp_path / "core").write_bytes(xen_core.build(made.guest, shared_info=made.shared_info))
    (tmp_path / "map").write_bytes(builder.flat(made.table))
    done = cli("p2m", "check", "core", "map")
    words = " ".join(done.stdout.split())
    assert "not asked: lists: no p2m map found in it: shared-info: list of frame lists: its page at" in words
    assert "map makes sense on core: 100.0%" in words
    assert done.returncode == 0


def test_map_that_is_found_in_the_dump(cli: Cli) -> None:
    done = cli("p2m", "check", SAMPLES / "xen_core/t1.core.xz", "dump:shared-info")
    assert (done.returncode, "by shared-info: linear list at 0x3000" in done.stderr) == (0, True)


def test_save_image_has_the_list_that_was_saved(cli: Cli) -> None:
    save = SAMPLES / "xen_stream/t7.save.xz"
    done = cli("p2m", "check", save, "dump:sections", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, [each["agree"] for each in found["evidence"]]) == (0, [909])
    assert cli("p2m", "check", save, SAMPLES / "xendump/t1.map").returncode == 1


def test_dump_without_machine_frames(cli: Cli) -> None:
    done = cli("p2m", "check", SAMPLES / "xen_core/t5.core.xz", SAMPLES / "xendump/t1.map")
    assert (done.returncode, "without machine frames" in done.stderr) == (2, True)
