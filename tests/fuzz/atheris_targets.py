"""Coverage-guided fuzzing of one reader with atheris: ``python -m tests.fuzz.atheris_targets kdump -runs=50000``.

Needs ``pip install -e '.[test]' atheris`` (Linux, CPython 3.11 or 3.12), which is no dependency of the tests. What
follows the reader's name goes to libFuzzer. Seeds are the small bases of the reader; the oracle is that of
``python -m tests.fuzz``. What it finds is left in the working folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dumpxlate"]):
    from dumpxlate.registry import all_formats, all_wrappers
    from tests.fuzz.bases import base, bases
    from tests.fuzz.oracle import Finding, examine

    READERS = [each.name for each in (*all_formats(), *all_wrappers())]  # imports them all


class FoundError(Exception):
    """The oracle found something."""


def fuzz(top: Path, name: str, options: list[str]) -> None:
    """Fuzz in this process, which libFuzzer ends without a word to Python."""
    chosen = [each for each in bases().values() if each.format == name and each.weight >= 0.5]
    seeds, inputs = top / "seeds", top / "inputs"
    for folder in (seeds, inputs):
        folder.mkdir()
    for number, each in enumerate(chosen):
        (seeds / str(number)).write_bytes(base(each.name))
    given = chosen[0]

    def one(data: bytes) -> None:
        outcome = examine(given, data, inputs)
        if isinstance(outcome, Finding):
            raise FoundError(f"{outcome.kind}\n{outcome.detail}")

    largest = max(len(base(each.name)) for each in chosen)
    here = f"-artifact_prefix={Path.cwd()}/"  # the oracle looks at inputs in a folder of its own
    limits = [f"-max_len={largest + 4096}", "-timeout=10", "-rss_limit_mb=1024", here]
    atheris.Setup([sys.argv[0], *limits, *options, str(seeds)], one)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--in"]:
        fuzz(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    known = sorted({each.format for each in bases().values() if each.weight >= 0.5})
    if sys.argv[1:2] not in [[name] for name in known]:
        sys.exit(
            f"usage: python -m tests.fuzz.atheris_targets READER [libFuzzer's options]\nreaders: {', '.join(known)}"
        )
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dumpxlate-atheris-", dir=memory if memory.is_dir() else None) as top:
        command = [sys.executable, "-m", "tests.fuzz.atheris_targets", "--in", top, *sys.argv[1:]]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
