"""``python -m tests.fuzz --inputs 5000 --seed 1``: mutated inputs over all readers, and a table of what they did."""

from __future__ import annotations

import argparse
import contextlib
import json
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.bases import bases

CHUNK = 50
WATCHDOG = 90.0
"""Seconds without progress after which a worker is killed: it waits for something, or is deep in a library."""


@dataclass
class Worker:
    """One child process.

    Attributes:
        folder: where it puts its inputs and its progress.
        command: how it is started.
        child: the process.
        range: inputs that it is working on.
        moved: when its progress was last seen to change.
    """

    folder: Path
    command: list[str]
    child: subprocess.Popen[str] = field(init=False)
    range: tuple[int, int] | None = None
    seen: int = -1
    moved: float = 0.0

    def start(self) -> None:
        (self.folder / "progress").write_bytes(bytes(8))
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self) -> int:
        """End it; gives its exit code."""
        self.child.kill()
        code = self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return code

    def feed(self, first: int, stop: int) -> None:
        assert self.child.stdin
        self.range, self.moved = (first, stop), time.monotonic()
        self.child.stdin.write(f"{first} {stop}\n")
        self.child.stdin.flush()

    @property
    def at(self) -> int:
        """The input that it is working on."""
        return int.from_bytes((self.folder / "progress").read_bytes(), "little")

    def is_stuck(self) -> bool:
        if self.at != self.seen:
            self.seen, self.moved = self.at, time.monotonic()
        return time.monotonic() - self.moved > WATCHDOG


@dataclass
class Run:
    """All inputs of a run."""

    first: int
    inputs: int
    seconds: float | None
    formats: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    slowest: float = 0.0
    queue: list[tuple[int, int]] = field(default_factory=list)

    def next(self) -> tuple[int, int] | None:
        """Give the next inputs to try."""
        if self.queue:
            return self.queue.pop()
        late = self.seconds is not None and time.monotonic() - self.begun > self.seconds
        if self.inputs <= 0 or late:
            return None
        count = min(CHUNK, self.inputs)
        self.first, self.inputs = self.first + count, self.inputs - count
        return self.first - count, self.first

    def take(self, done: dict[str, Any]) -> None:
        """Count what a worker says."""
        self.formats.update(done["formats"])
        self.outcomes.update(done["outcomes"])
        self.slowest = max(self.slowest, done["slowest"])
        for each in done["findings"]:
            self.add(each)

    def add(self, found: dict[str, Any]) -> None:
        known = self.findings.setdefault(found["kind"], [])
        known.append(found)
        if len(known) == 1:
            print(f"finding: {found['kind']} (input {found['number']})", file=sys.stderr, flush=True)

    def lost(self, worker: Worker, why: str) -> None:
        """Note that a worker died of an input; the others of its share are tried again, without that one."""
        assert worker.range
        first, stop = worker.range
        at = min(max(worker.at, first), stop - 1)
        self.outcomes["finding"] += 1
        self.add({"kind": why, "number": at, "recipe": None, "detail": why})
        self.queue += [share for share in ((first, at), (at + 1, stop)) if share[0] < share[1]]

    def table(self, seed: str) -> dict[str, Any]:
        return {
            "seed": seed,
            "inputs": sum(self.formats.values()),
            "formats": dict(sorted(self.formats.items())),
            "outcomes": dict(sorted(self.outcomes.items())),
            "slowest_seconds": round(self.slowest, 2),
            "findings": {kind: {"count": len(each), "first": each[0]} for kind, each in self.findings.items()},
        }


def drive(run: Run, workers: list[Worker]) -> None:
    """Feed workers until all is done."""
    selector = selectors.DefaultSelector()
    busy = []
    for worker in workers:
        worker.start()
        if share := run.next():
            worker.feed(*share)
            selector.register(worker.child.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
            busy.append(worker)
    while busy:
        ready = [key.data for key, _ in selector.select(timeout=1.0)]
        for worker in [each for each in busy if each in ready or each.is_stuck()]:
            line = worker.child.stdout.readline() if worker in ready else ""
            if line:
                run.take(json.loads(line))
            else:
                _replace(run, worker, selector)
            share = run.next()
            if share:
                worker.feed(*share)
            else:
                selector.unregister(worker.child.stdout)
                busy.remove(worker)


def _replace(run: Run, worker: Worker, selector: selectors.BaseSelector) -> None:
    """Start a worker anew that died or hangs."""
    selector.unregister(worker.child.stdout)  # type: ignore[arg-type]
    stuck = worker.child.poll() is None and worker.is_stuck()
    code = worker.stop()
    run.lost(worker, "hang outside of Python" if stuck else f"worker died: {code}")
    worker.start()
    selector.register(worker.child.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, help="how many to try (5000)")
    parser.add_argument("--seconds", type=float, help="begin no further input after so long")
    parser.add_argument("--seed", default="1", help="decides every input (1)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (0)")
    parser.add_argument("--only", action="append", help="bases of this format, or of this name; may be repeated")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--json", type=Path, help="write the table to this file instead of stdout")
    args = parser.parse_args()
    names = [each.name for each in bases().values() if not args.only or {each.name, each.format} & set(args.only)]
    if not names:
        parser.error(f"--only: there are {', '.join(sorted({each.format for each in bases().values()}))}")
    run = Run(args.first, args.inputs, args.seconds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    memory = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(prefix="dumpxlate-fuzz-", dir=memory if memory.is_dir() else None))
    workers: list[Worker] = []
    stopped = False
    try:
        for number in range(args.workers):
            folder = top / str(number)
            folder.mkdir()
            command = [sys.executable, "-m", "tests.fuzz.worker", str(folder), args.seed, ",".join(names)]
            workers.append(Worker(folder, command))
        drive(run, workers)
    except KeyboardInterrupt:
        stopped = True
        print("stopped early: the table is of what was done", file=sys.stderr)
    finally:
        for worker in workers:
            if hasattr(worker, "child"):
                worker.stop()
        shutil.rmtree(top)
    table = run.table(args.seed) | {"seconds": round(time.monotonic() - run.begun, 1)}
    text = json.dumps(table, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    else:
        sys.stdout.write(text)
    sys.exit(1 if run.findings or stopped else 0)


if __name__ == "__main__":
    main()
