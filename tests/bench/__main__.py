"""``python -m tests.bench [CASE...]``: ratios against peers, measured in one run."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.cases import CASES, Case
from tests.bench.measure import Runs, pair

if TYPE_CHECKING:
    from tests.bench.cases import Prepared

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"some of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--size", type=int, default=2048, help="MiB of guest memory (2048)")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--folder", type=Path, help="where inputs are kept and outputs written (a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dumpxlate-bench-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{'case':<16}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'target':>8}{'anon MiB':>10}{'rss MiB':>9}  peer")
        for case in CASES:
            if not args.cases or case.name in args.cases:
                show(case, *measure(case.prepare(folder, args.size * MIB), args.pairs))


def measure(prepared: Prepared, pairs: int) -> tuple[Runs, Runs]:
    """Check the result once, then time."""

    def clean() -> None:
        for path in prepared.outputs:
            path.unlink(missing_ok=True)

    clean()
    from tests.bench.measure import run

    run(prepared.ours, Runs())
    prepared.check()
    results = pair(prepared.ours, prepared.peer, pairs, clean)
    clean()
    return results


def show(case: Case, ours: Runs, peer: Runs) -> None:
    """Print one row."""
    ratio = peer.median / ours.median
    print(
        f"{case.name:<16}{ours.median:>9.2f}{peer.median:>9.2f}{ratio:>8.2f}{case.target:>8.2f}"
        f"{ours.anonymous / MIB:>10.0f}{ours.resident / MIB:>9.0f}  {case.peer}",
        flush=True,
    )


if __name__ == "__main__":
    main()
