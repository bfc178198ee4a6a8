"""Cases between two processes: what comes through a pipe goes into another."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from tests.bench import converting, guests
from tests.bench.case import US, Prepared
from tests.bench.peers import makedumpfile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.case import Command

US_ON_PIPE = (*US, "convert", "-", *converting.QUIET)


def memory(folder: Path, size: int, *, format: str) -> Prepared:
    """LiME to LiME, raw to raw: the peer only copies."""
    source, out, copy = folder / f"guest-{size >> 20}m.{format}", folder / f"out.{format}", folder / "copy"
    if not source.exists():
        elf = guests.write_elf(folder, size)
        subprocess.run(
            [*US, "convert", str(elf), "-t", format, "--allow-loss", *converting.QUIET, "-o", source], check=True
        )
    ours = (*US_ON_PIPE, "--from", format, "-t", format, "--allow-loss", "-o", "-")
    return Prepared(
        _pipeline(source, ours, out),
        {"cat": _pipeline(source, ("cat",), copy)},
        lambda _: converting.is_bare_guest(out, size, format),
        (out, copy),
    )


def flattened(folder: Path, size: int) -> Prepared:
    """Records to records: the peer only copies."""
    source, out, copy = converting.flattened(folder, size), folder / "out.flat", folder / "copy"

    def check(_: str) -> None:
        put = folder / "put.kdump"
        with out.open("rb") as file:
            subprocess.run([makedumpfile(), "-R", str(put)], check=True, stdin=file, capture_output=True)
        converting.is_the_guest(put, folder, size, "lzo")
        put.unlink()

    ours = (*US_ON_PIPE, "-t", "kdump", "-o", "-")
    return Prepared(_pipeline(source, ours, out), {"cat": _pipeline(source, ("cat",), copy)}, check, (out, copy))


def flattened_to_kdump(folder: Path, size: int) -> Prepared:
    """Put records in order as they come."""
    source, out, theirs = converting.flattened(folder, size), folder / "out.kdump", folder / "theirs.kdump"
    return Prepared(
        _pipeline(source, (*US_ON_PIPE, "-t", "kdump", "-o", str(out))),
        {"makedumpfile -R": _pipeline(source, (makedumpfile(), "-R", str(theirs)))},
        lambda _: converting.is_the_guest(out, folder, size, "lzo"),
        (out, theirs),
    )


def _pipeline(source: Path, command: Command, out: Path | None = None) -> Command:
    """A command between ``cat SOURCE`` and, if its output is a pipe, ``cat > OUT``."""
    words = f"cat {shlex.quote(str(source))} | {shlex.join(command)}"
    return ("bash", "-o", "pipefail", "-c", f"{words} | cat > {shlex.quote(str(out))}" if out else words)
