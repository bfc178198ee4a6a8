"""``python -m tests.bench [CASE...]``: ratios against peers, measured in one run."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.case import AbsentError
from tests.bench.cases import CASES
from tests.bench.measure import Runs, in_turn, read_through, run, touch_free_memory, with_bytecode
from tests.bench.peers import choose
from tests.bench.report import Row, table, write_plot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.case import Case, Prepared

MIB = 1 << 20
SIZES = (2048, 8192)


def main() -> None:
    args = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dumpxlate-bench-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with_bytecode(Path(temporary))
        for case, size in _wanted(args.cases, args.size or SIZES):
            try:
                rows.append(measure(case, size, case.prepare(folder, size * MIB), args.pairs))
            except AbsentError as absent:
                print(f"{case.name}: not measured: {absent}", flush=True)
                continue
            print(table(rows[-1:], head=len(rows) == 1), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if args.plot:
        write_plot(args.plot, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--size", type=int, action="append", help="MiB of guest memory; may be repeated (2048, 8192)")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--folder", type=Path, help="where inputs are kept and outputs written (a temporary one)")
    parser.add_argument("--makedumpfile", metavar="PATH", help="the makedumpfile to measure against (the one on PATH)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this SVG file")
    args = parser.parse_args()
    unknown = set(args.cases) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if args.makedumpfile:
        choose("makedumpfile", args.makedumpfile)
    return args


def _wanted(names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[Case, int]]:
    """The cases that were asked for, all if none was, and MiB of the guest for each."""
    for number, size in enumerate(sizes):
        for case in CASES:
            if (case.name in names or not names) and (case.grows or number == 0):
                yield case, size


def measure(case: Case, size: int, prepared: Prepared, pairs: int) -> Row:
    """Check the result once, then time."""

    def clean() -> None:
        for path in prepared.outputs:
            path.unlink(missing_ok=True)

    def settle() -> None:
        clean()
        os.sync()
        touch_free_memory(size * MIB)
        read_through((prepared.ours, *prepared.peers.values()), prepared.outputs)

    clean()
    prepared.check(run(prepared.ours, Runs()))
    commands = [partial(run, prepared.ours)]
    commands += [partial(run, peer, stdin=prepared.stdin) for peer in prepared.peers.values()]
    facts = _facts(prepared, commands)
    ours, *peers = in_turn(commands, pairs, settle)
    clean()
    timed = [(runs.median, label) for runs, label in zip(peers, prepared.peers, strict=True) if runs.seconds]
    crashed = sum(runs.crashed for runs in peers)
    if not timed:
        raise AbsentError(f"every run of {' and '.join(prepared.peers)} crashed")
    best, label = min(timed)
    facts = "; ".join(filter(None, (facts, f"{crashed} runs of peers crashed" if crashed else "")))
    return Row(
        case=case.name,
        size=size if case.grows else None,
        ours=ours.median,
        peer=best,
        ratio=best / ours.median,
        target=case.target,
        anonymous=ours.anonymous,
        resident=ours.resident,
        peer_name=label if len(prepared.peers) > 1 else case.peer,
        facts=facts,
    )


def _facts(prepared: Prepared, commands: Sequence[Callable[[Runs], str]]) -> str:
    """Run everything once more, and look at what it wrote."""
    if prepared.facts is None:
        return ""
    for command in commands:
        command(Runs())
    return prepared.facts()


main()
