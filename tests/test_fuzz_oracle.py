"""The fuzzer's oracle is held to what it promises: violations are planted, and it must see each of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.fuzz import __main__ as fuzz
from tests.fuzz import uses
from tests.fuzz.bases import base, bases
from tests.fuzz.oracle import Finding, examine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLANT = """
import os, mmap, sys, tempfile, time
sys.path.insert(0, {root!r})
import numpy as np
from tests.fuzz import uses, worker
worker.SECONDS = {seconds}
plain = uses.map_pages

def planted(*args, **options):
    with open(sys.argv[1] + "/progress", "rb") as file:
        number = int.from_bytes(file.read(), "little")
    if number == 1:  # of three inputs, the one in the middle
        {what}
    return plain(*args, **options)

uses.map_pages = planted
worker.choose = lambda seed, names, look: worker.Recipe("lime", ())
os.environ["OPENBLAS_NUM_THREADS"] = "1"
worker.main()
"""
SIGBUS = """
        with tempfile.TemporaryFile() as file:
            file.truncate(8192)
            view = mmap.mmap(file.fileno(), 8192)
            file.truncate(4096)
            view[5000]
"""
PLANTED = {
    "a loop": ("while True: pass", "hang"),
    "memory": ("np.ones(600 << 20, np.uint8)", "memory in lime"),
    "more memory than there is": ("np.ones(1 << 35, np.uint8)", "MemoryError"),
    "a file that shrinks under a mapping": (SIGBUS.strip(), "worker died: -7"),
    "an end": ("os._exit(3)", "worker died: 3"),
    "a wait": ("time.sleep(600)", "hang outside of Python"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_worker_that_misbehaves_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """And one finding only: the inputs before and behind it are tried all the same."""
    what, kind = PLANTED[case]
    monkeypatch.setattr(fuzz, "WATCHDOG", 8.0 if case == "a wait" else 60.0)
    code = PLANT.format(root=str(ROOT), what=what, seconds=1 if case == "a loop" else 20)
    worker = fuzz.Worker(tmp_path, [sys.executable, "-c", code, str(tmp_path), "1", "lime"])
    run = fuzz.Run(0, 3, None)
    try:
        fuzz.drive(run, [worker])
    finally:
        worker.stop()
    assert [found.partition(" in ")[0] for found in run.findings] == [kind.partition(" in ")[0]]
    (found,) = run.findings.values()
    assert [each["number"] for each in found] == [1]
    assert run.outcomes["opened"] == 2
    assert run.outcomes["finding"] == 1
    assert list(tmp_path.glob("inputs/*")) == []


def write_beside(folder: Path) -> None:
    (folder.parent / "elsewhere").write_bytes(b"x")


def write_into_the_working_folder(folder: Path) -> None:
    with open("elsewhere", "wb") as file:  # noqa: PTH123 - a bare name
        file.write(b"x")


def rename_the_input_away(folder: Path) -> None:
    (folder / "input").rename(folder.parent / "moved")


def remove_a_stranger(folder: Path) -> None:
    (folder.parent / "moved").unlink(missing_ok=True)


def make_a_folder(folder: Path) -> None:
    (folder.parent / "made").mkdir()


def leave_a_partial(folder: Path) -> None:
    (folder / ".output.1234.partial").write_bytes(b"x")


def change_the_input(folder: Path) -> None:
    path = folder / "input"
    path.write_bytes(bytes(path.stat().st_size))


def start_a_program(folder: Path) -> None:
    import subprocess

    subprocess.run(["true"], check=True)


@pytest.mark.parametrize(
    "violation",
    [
        write_beside,
        write_into_the_working_folder,
        rename_the_input_away,
        remove_a_stranger,
        make_a_folder,
        leave_a_partial,
        change_the_input,
        start_a_program,
    ],
)
def test_what_is_written_elsewhere_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, violation: Callable[[Path], None]
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    plain = uses.describe_report

    def planted(report: object) -> object:
        violation(folder)
        return plain(report)  # type: ignore[arg-type]

    assert examine(bases()["lime"], base("lime"), folder) == "opened"
    monkeypatch.setattr(uses, "describe_report", planted)
    outcome = examine(bases()["lime"], base("lime"), folder)
    assert isinstance(outcome, Finding), outcome
    assert outcome.kind.startswith("written outside"), outcome
    assert list(folder.iterdir()) == []
