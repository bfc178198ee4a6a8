"""``python -m tests.faults``: the figures of docs/reliability.rst, and exit code 1 if anything is wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults import inject, kills

WAYS = (({}, None), ({}, inject.OLD), ({"verify": True}, inject.OLD), ({"resume": True}, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", action="store_true", help="let every system call of every format fail")
    parser.add_argument("--kills", type=int, default=0, help="conversions to kill")
    parser.add_argument("--resumes", type=int, default=0, help="conversions to kill and go on with")
    parser.add_argument("--megabytes", type=int, default=96, help="memory of the guest (96)")
    parser.add_argument("--seed", type=int, default=8, help="of the random moments (8)")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    args = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dumpxlate-faults-", dir=args.folder) as name:
        if args.calls:
            wrong += calls(Path(name))
        for what, count, run in (("killed", args.kills, kills.kill), ("resumed", args.resumes, kills.resume)):
            if count:
                folder = Path(name, what)
                folder.mkdir()
                found = run(folder, kills=count, seed=args.seed, megabytes=args.megabytes)
                wrong += found.wrong
                tell(what, found)
    for line in wrong:
        print(f"WRONG {line}")
    sys.exit(bool(wrong))


def calls(folder: Path) -> list[str]:
    """Let every call fail, for every format."""
    source = inject.source(folder)
    wrong = []
    for format in kills.FORMATS:
        tally = inject.Tally()
        place = folder / format
        place.mkdir()
        for how, before in WAYS:
            inject.every_call(inject.Conversion(place, source, format, dict(how), before), tally)
        ends = ", ".join(f"{count} {end}" for end, count in sorted(tally.ends.items()))
        print(f"{format:<10}{tally.faults:>7} faults: {ends}; {len(tally.wrong)} wrong", flush=True)
        wrong += tally.wrong
    return wrong


def tell(what: str, found: kills.Tally) -> None:
    """Print one row."""
    ends = ", ".join(f"{count} {end}" for end, count in sorted(found.ends.items()))
    print(f"{what}: {found.kills} kills ({found.late} came too late)", end="; ")
    if found.finished:
        print(f"{found.finished} conversions finished, {found.resumed:,} pages not written again", end="; ")
    else:
        print(f"{ends}; {found.strays} temporary files left", end="; ")
    print(f"{len(found.wrong)} wrong", flush=True)


if __name__ == "__main__":
    main()
