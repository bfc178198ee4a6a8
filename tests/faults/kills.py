"""Real conversions that are killed, and real disks that are full."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.builders import lime
from tests.builders.guest import named_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PAGE = 4096
OLD = b"what was there before"
FORMATS = ("elf", "kdump", "raw", "lime", "avml", "xendump", "xen_core")
POINTS = "import dumpxlate.writing.resume as r; r.EVERY_BYTES = 4 << 20; from dumpxlate.cli import main; main()"


@dataclass
class Tally:
    """What came of killing.

    Attributes:
        kills: conversions that were killed while they ran.
        late: conversions that were done before.
        ends: what the target's name held after a kill.
        strays: temporary files left behind.
        resumed: pages that later runs did not have to write again.
        finished: resumed conversions that came to their end.
        wrong: everything that must not be.
    """

    kills: int = 0
    late: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    strays: int = 0
    resumed: int = 0
    finished: int = 0
    wrong: list[str] = field(default_factory=list)


def write_source(path: Path, megabytes: int) -> None:
    """Write a LiME dump of named pages, a seventh of it zero."""
    with path.open("wb") as file:
        per = (1 << 20) // PAGE
        blocks = [bytes(1 << 20) if at % 7 == 3 else named_block(at * per, per) for at in range(megabytes)]
        head = lime.build({0: bytes(PAGE)})[:32]
        end = (megabytes << 20) - 1
        file.write(head[:16] + end.to_bytes(8, "little") + head[24:])
        file.writelines(blocks)


def digest(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command(source: Path, out: Path, format: str, *more: str, points: bool = False) -> list[str]:
    """Make the command of a conversion."""
    program = ["-c", POINTS] if points else ["-m", "dumpxlate"]
    return [sys.executable, *program, "convert", str(source), "-t", format, "--allow-loss", "-o", str(out), *more]


def run_and_kill(command: Sequence[str], delay: float) -> bool:
    """Start a conversion and kill it after some seconds; tells whether it was still running."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def measure(source: Path, folder: Path, format: str, *more: str) -> tuple[str, float, float]:
    """Convert undisturbed; gives the digest of the output, seconds until it begins to convert, and until it ends."""
    out = folder / "whole"
    started = time.monotonic()
    whole = [*command(source, out, format, *more), "--progress", "json"]
    with subprocess.Popen(whole, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        process.stderr.readline()
        began = time.monotonic() - started
        process.stderr.read()
    assert process.returncode == 0
    taken = time.monotonic() - started
    found = digest(out)
    for path in folder.glob("whole*"):
        path.unlink()
    return found, began, taken


def kill(folder: Path, *, kills: int, seed: int, formats: Sequence[str] = FORMATS, megabytes: int = 96) -> Tally:
    """Kill conversions at random moments, half of them over an existing file, and look at what is left."""
    rng, tally = random.Random(seed), Tally()
    source, place = folder / "source", folder / "place"
    write_source(source, megabytes)
    place.mkdir(exist_ok=True)
    known = {format: measure(source, place, format) for format in formats}
    out = place / "out"
    while tally.kills < kills:
        format = formats[tally.kills % len(formats)]
        whole, began, taken = known[format]
        existing = rng.random() < 0.5
        if existing:
            out.write_bytes(OLD)
        # Most of the moments from the first page on, some while the program starts.
        delay = rng.uniform(began * 0.9, taken * 1.02) if rng.random() < 0.9 else rng.uniform(0, began)
        if not run_and_kill(command(source, out, format, *["--force"] * existing), delay):
            tally.late += 1
        else:
            tally.kills += 1
            look(tally, out, whole, existing=existing, format=format)
        for path in place.iterdir():
            path.unlink()
    return tally


def look(tally: Tally, out: Path, whole: str, *, existing: bool, format: str) -> None:
    """Look at what a killed conversion left."""
    others = {path.name for path in out.parent.iterdir()} - {"out", "out.dxmap"}
    tally.strays += len(others)
    if not out.exists():
        tally.ends["nothing"] += 1
        if existing:
            tally.wrong.append(f"{format}: the old file is gone")
    elif out.stat().st_size == len(OLD):
        tally.ends["old"] += 1
        if out.read_bytes() != OLD or not existing:
            tally.wrong.append(f"{format}: neither old nor new")
    elif digest(out) == whole:
        tally.ends["new"] += 1
    else:
        tally.wrong.append(f"{format}: half written")


def resume(folder: Path, *, kills: int, seed: int, formats: Sequence[str] = FORMATS, megabytes: int = 96) -> Tally:
    """Kill conversions that keep what they wrote, each until it comes to its end, and compare what came of them."""
    rng, tally = random.Random(seed), Tally()
    source, place = folder / "source", folder / "place"
    write_source(source, megabytes)
    place.mkdir(exist_ok=True)
    known = {format: measure(source, place, format) for format in formats}
    out = place / "out"
    number = 0
    while tally.kills < kills:
        format = formats[number % len(formats)]
        whole, began, taken = known[format]
        number += 1
        for _ in range(min(rng.randrange(1, 5), kills - tally.kills)):
            delay = began + rng.random() * (taken - began)
            if not run_and_kill(command(source, out, format, "--resume", points=True), delay):
                tally.late += 1
                break
            tally.kills += 1
            if out.exists() and digest(out) != whole:
                tally.wrong.append(f"{format}: half written")
        else:
            finish(tally, source, out, format, exists=out.exists())
        if digest(out) != whole:
            tally.wrong.append(f"{format}: not the same as without interruption")
        strays = {path.name for path in place.iterdir()} - {"out", "out.dxmap"}
        tally.wrong += [f"{format}: {name} is left" for name in sorted(strays)]
        tally.finished += 1
        for path in place.iterdir():
            path.unlink()
    return tally


def finish(tally: Tally, source: Path, out: Path, format: str, *, exists: bool) -> None:
    """Let an interrupted conversion come to its end."""
    import json

    report = out.parent / "report"
    arguments = ["--resume", "--report", str(report), *["--force"] * exists]
    done = subprocess.run(command(source, out, format, *arguments, points=True), capture_output=True, text=True)
    if done.returncode:
        tally.wrong.append(f"{format}: {done.stderr.strip()}")
        return
    tally.resumed += json.loads(report.read_text())["resumed"]
    report.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, kind: str, kilobytes: int) -> Iterator[tuple[Path | None, str]]:
    """Mount a file system with little room; gives where, or None and why not."""
    mount = folder / "disk"
    mount.mkdir()
    if kind == "tmpfs":
        how = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(mount)]
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(max(kilobytes, 300) << 10)
        made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], capture_output=True)
        if made.returncode:
            yield None, "no mkfs.ext4"
            return
        how = ["mount", "-o", "loop", str(image), str(mount)]
    if subprocess.run(how, capture_output=True).returncode:
        yield None, f"no right to mount a small {kind}"
        return
    try:
        yield mount, ""
    finally:
        subprocess.run(["umount", mount], check=True)
