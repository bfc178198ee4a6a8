"""Times commands in turn, each with all of its processes, and watches how much memory they take."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

_SAMPLE_EVERY = 0.02
"""Seconds. Counting a process's pages takes it a moment: the runs whose time counts are not watched."""

_PIECE = 1 << 20


@dataclass
class Runs:
    """What several runs of one command took.

    Attributes:
        seconds: wall time of each run.
        anonymous: the most anonymous memory seen of all processes together, bytes; what they share counts once.
        resident: the most memory of any kind, likewise.
        crashed: runs that ended in an error, which have no time.
        watched: whether to look how much memory is taken.
    """

    seconds: list[float] = field(default_factory=list)
    anonymous: int = 0
    resident: int = 0
    crashed: int = 0
    watched: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def run(command: Sequence[str], runs: Runs, *, stdin: Path | None = None) -> str:
    """Run a command once, which must succeed; gives what it printed."""
    with Path(stdin or os.devnull).open("rb") as source:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        watcher = threading.Thread(target=_watch, args=(process, runs))
        if runs.watched:
            watcher.start()
        output, errors = process.communicate()
        runs.seconds.append(time.perf_counter() - started)
    if runs.watched:
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {errors.decode(errors='replace')[-2000:]}")
    return output.decode(errors="replace")


def _watch(process: subprocess.Popen[bytes], runs: Runs) -> None:
    """Add up each process's share of its pages (proc(5), smaps_rollup), which forks have in common at first."""
    while process.poll() is None:
        anonymous = resident = 0
        for pid in _family(process.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            except OSError:
                continue
            sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
            anonymous += sizes.get("Pss_Anon", 0)
            resident += sizes.get("Pss", 0)
        runs.anonymous, runs.resident = max(runs.anonymous, anonymous), max(runs.resident, resident)
        time.sleep(_SAMPLE_EVERY)


def _family(pid: int) -> list[int]:
    """A process and the children of its main thread: the members of a pipeline."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *map(int, children.split())]


def with_bytecode(folder: Path) -> None:
    """Let every program that is started from here find its bytecode, as where pip has installed it.

    Compiling all modules takes as long as everything else that a short command does. Runs that do not count write it.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder.resolve() / "bytecode")


def touch_free_memory(guest: int) -> None:
    """Have the machine's free memory backed before a run, as far as a guest of so many bytes needs it.

    A virtual machine gives free memory back to its host after a second or two, and each page that is used again costs
    a fault there: cp of 1.1 GiB onto tmpfs took 0.6 or 2.3 s, by what had been freed when. Both sides find it backed.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(max(3 << 30, guest), free * 3 // 4)
    subprocess.run([sys.executable, "-c", f"b = bytearray({size}); b[::4096] = b'1' * len(b[::4096])"], check=True)


def read_through(commands: Iterable[Sequence[str]], outputs: Collection[Path]) -> None:
    """Have the files that commands name in the page cache before a run, but for those that they write.

    A virtual machine may take cached pages back at any time: pages in no order, of a file on a disk, cost seconds then.
    """
    named = {Path(word) for command in commands for argument in command for word in argument.split()}
    for path in named - set(outputs):
        if path.is_absolute() and path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_PIECE):
                    pass


def in_turn(commands: Sequence[Callable[[Runs], object]], rounds: int, before: Callable[[], None]) -> list[Runs]:
    """Run commands in turn, A B A B, after one run of each whose memory is watched, and whose time does not count.

    Peers, all but the first, may crash, as libkdumpfile's binding does on some files: such a run has no time.
    """
    results = [Runs() for _ in commands]
    for turn in range(rounds + 1):
        for command, runs in zip(commands, results, strict=True):
            before()
            took = Runs(watched=True) if turn == 0 else runs
            try:
                command(took)
            except RuntimeError:
                if runs is results[0]:
                    raise
                took.seconds.pop()
                runs.crashed += 1
            if turn == 0:
                runs.anonymous, runs.resident = took.anonymous, took.resident
    return results
