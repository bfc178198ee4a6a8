"""One conversion again and again, each time with another system call that fails."""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dumpxlate
from dumpxlate.errors import OutputError
from dumpxlate.format import WriteOptions
from dumpxlate.writing import resume
from tests.builders import elf_cores
from tests.builders.guest import small_guest
from tests.faults.calls import NEVER, Calls, watching

OLD = b"what was there before"
ERRORS = (errno.ENOSPC, errno.EIO)
GUEST = small_guest(ranges=[(0, 0x9A0), (0x1100, 0x500)], excluded=[3, 0x109])


@dataclass
class Tally:
    """What came of faults: how many, and what was found behind them."""

    faults: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Conversion:
    """A conversion to try.

    Attributes:
        folder: an empty one, for its output.
        source: its input.
        format: of the output.
        how: further arguments.
        before: what stands under the target's name at first.
    """

    folder: Path
    source: Path
    format: str
    how: dict[str, Any] = field(default_factory=dict)
    before: bytes | None = None

    @property
    def out(self) -> Path:
        """The target."""
        return self.folder / "out"

    def clean(self) -> None:
        """Make the folder what it was before."""
        for path in self.folder.iterdir():
            path.unlink()
        if self.before is not None:
            self.out.write_bytes(self.before)

    def run(self, calls: Calls) -> BaseException | None:
        """Convert; gives the error if there was one."""
        resume.EVERY_BYTES = 1
        with dumpxlate.open(self.source) as dump, watching(calls):
            try:
                dumpxlate.convert(
                    dump, self.out, self.format, WriteOptions(), allow_loss=True, overwrite=self.before is not None,
                    threads=0, **self.how,
                )  # fmt: skip
            except (OSError, OutputError) as error:
                return error
        return None


def every_call(conversion: Conversion, tally: Tally, *, step: int = 1) -> None:
    """Let each call fail once, with each error, alone and with all that follow.

    With a ``step`` only some of the calls, and others in each of these four ways.
    """
    conversion.clean()
    good = Calls()
    assert conversion.run(good) is None
    whole = {path.name: path.read_bytes() for path in conversion.folder.iterdir()}
    for way, (error, lasting) in enumerate(itertools.product(ERRORS, (False, True))):
        for number in range(way % step, good.made, step):
            conversion.clean()
            calls = Calls(number, lasting, error)
            raised = conversion.run(calls)
            tally.faults += 1
            end, wrong = judge(conversion, whole, raised)
            tally.ends[end] += 1
            if wrong:
                tally.wrong.append(f"{conversion.format}: call {number}, {os.strerror(error)}: {wrong}")
            again(conversion, whole, tally)


def judge(conversion: Conversion, whole: dict[str, bytes], raised: BaseException | None) -> tuple[str, str]:
    """Look at what a fault left; gives a word for it, and what is wrong if anything is."""
    words = " ".join(getattr(raised, "__notes__", ()))
    found = {path.name: path.read_bytes() for path in conversion.folder.iterdir()}
    out = found.pop("out", None)
    if out is not None and out not in (conversion.before, whole["out"]):
        return "torn", "the target holds something else"
    if raised is None and out != whole["out"]:
        return "lost", "no error, and no output"
    # The map beside a raw image may have its name already when the image gets none.
    strays = [name for name, content in found.items() if content != whole.get(name) and name not in words]
    if strays:
        return "stray", f"left without a word: {', '.join(strays)}"
    if raised is None:
        return "went on", ""
    return "new" if out == whole["out"] else "old" if out is not None else "nothing", ""


def again(conversion: Conversion, whole: dict[str, bytes], tally: Tally) -> None:
    """Where something was kept to go on with, go on."""
    if not conversion.how.get("resume") or conversion.out.exists() or not any(conversion.folder.iterdir()):
        return
    raised = conversion.run(Calls(NEVER))
    if isinstance(raised, OutputError):
        # It said so at once: a temporary file that could not be removed is to be removed by hand.
        path = Path(raised.path)
        assert path.name.startswith(".out.")
        assert "remove it" in str(raised)
        path.unlink()
        raised = conversion.run(Calls(NEVER))
    if raised or conversion.out.read_bytes() != whole["out"]:
        tally.wrong.append(f"{conversion.format}: did not go on: {raised}")


def source(folder: Path) -> Path:
    """Write the input of all conversions."""
    path = folder / "in"
    path.write_bytes(elf_cores.core(GUEST, "makedumpfile"))
    return path
