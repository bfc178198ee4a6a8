"""Runs inputs in this process, within limits: ``python -m tests.fuzz.worker FOLDER SEED NAMES``, fed on stdin.

Each line of stdin is ``first stop``: numbers of inputs. The number that is at work stands in ``FOLDER/progress``, so
that the parent knows which one killed the process. For each line one JSON object goes to stdout.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.fuzz.bases import bases
from tests.fuzz.mutate import Recipe, apply, choose
from tests.fuzz.oracle import Finding, examine, finding, places

if TYPE_CHECKING:
    from types import FrameType

SECONDS = 10
"""Processor time that an input may take; the parent watches the clock as well."""

RESIDENT = 512 << 20
"""Bytes that the process may have resident at any moment, its libraries included."""

ALLOCATED = 8 << 30
"""Bytes of private memory, touched or not; what asks for more gets a MemoryError, which is a finding."""


class TooLongError(BaseException):
    """The time is up."""


def limit() -> None:
    """Set the limits of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (ALLOCATED, ALLOCATED))

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TooLongError

    signal.signal(signal.SIGPROF, stop)


def peak() -> int:
    """Give the most that was resident since the last call, and forget it."""
    status = Path("/proc/self/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    Path("/proc/self/clear_refs").write_text("5")
    return int(kib) << 10


def run(recipe: Recipe, folder: Path) -> str | Finding:
    """Make an input and examine it within the limits."""
    data = apply(recipe)
    peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = examine(bases()[recipe.base], data, folder)
    except TooLongError as error:
        outcome = Finding(finding(error).kind.replace("TooLongError", "hang"), finding(error).detail)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    used = peak()
    if used > RESIDENT and isinstance(outcome, str):
        return Finding(f"memory in {recipe.base}", f"{used >> 20} MiB for {len(data):,} bytes ({outcome})")
    return outcome


def main() -> None:
    folder, seed, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
    limit()
    with (folder / "progress").open("r+b") as file:
        progress = mmap.mmap(file.fileno(), 8)
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    for line in sys.stdin:
        first, stop = map(int, line.split())
        counts: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        findings = []
        slowest = 0.0
        for number in range(first, stop):
            progress[:] = number.to_bytes(8, "little")
            recipe = choose(f"{seed}:{number}", names, places)
            begun = time.process_time()
            outcome = run(recipe, inputs)
            slowest = max(slowest, time.process_time() - begun)
            counts[bases()[recipe.base].format] += 1
            outcomes[outcome if isinstance(outcome, str) else "finding"] += 1
            if isinstance(outcome, Finding):
                findings.append({"number": number, "recipe": recipe.as_json(), **asdict(outcome)})
        done = {"stop": stop, "formats": counts, "outcomes": outcomes, "findings": findings, "slowest": slowest}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
