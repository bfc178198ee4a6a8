"""The fuzzer itself, and what it found once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dumpxlate.errors import CorruptDumpError
from dumpxlate.registry import all_formats, all_wrappers
from tests.conftest import ROOT
from tests.fuzz import uses
from tests.fuzz.bases import base, bases
from tests.fuzz.mutate import MOST, Recipe, apply, choose
from tests.fuzz.oracle import Finding, examine, places

if TYPE_CHECKING:
    from collections.abc import Callable

REGRESSIONS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "fuzz" / "regressions.json").read_text())
NAMES = list(bases())


@pytest.mark.parametrize("known", REGRESSIONS, ids=lambda known: known["what"])
def test_what_was_found_once_is_an_answer_or_a_typed_error(tmp_path: Path, known: dict[str, Any]) -> None:
    outcome = examine(bases()[known["base"]], apply(Recipe.from_json(known)), tmp_path)
    assert isinstance(outcome, str), outcome
    assert list(tmp_path.iterdir()) == []


def test_every_reader_has_bases() -> None:
    known = {each.format for each in bases().values()} | {"flattened"}  # flattened wraps any base
    assert {each.name for each in (*all_formats(), *all_wrappers())} - {"foreign"} <= known


@pytest.mark.parametrize("name", [name for name in NAMES if bases()[name].weight >= 0.5])
def test_bases_are_sound(tmp_path: Path, name: str) -> None:
    assert examine(bases()[name], base(name), tmp_path) == "opened"


def test_the_seed_decides_everything() -> None:
    first = [choose(f"1:{number}", NAMES, places) for number in range(50)]
    assert first == [choose(f"1:{number}", NAMES, places) for number in range(50)]
    assert len({json.dumps(each.as_json()) for each in first}) == len(first)
    assert all(Recipe.from_json(json.loads(json.dumps(each.as_json()))) == each for each in first)
    assert all(len(apply(each)) <= MOST for each in first)


def test_most_mutations_hit_what_a_reader_looks_at() -> None:
    """The small places are headers and tables, a few percent of a file."""
    given = bases()["elf-plain-x86_64<"]
    looked = sum(size for _, size in places(given))
    assert 0 < looked < len(base(given.name)) / 4


def raises(error: Exception) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (IndexError("x"), "IndexError"),
        (MemoryError(), "MemoryError"),
        (CorruptDumpError("x", what="table"), "no offset"),
    ],
)
def test_the_oracle_sees_errors_that_must_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    monkeypatch.setattr(uses, "map_pages", raises(error))
    outcome = examine(bases()["lime"], base("lime"), tmp_path)
    assert isinstance(outcome, Finding)
    assert outcome.kind.startswith(kind)


def test_the_oracle_sees_wrong_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uses, "describe_dump", lambda dump: {"release": "\x1b[2J"})
    outcome = examine(bases()["lime"], base("lime"), tmp_path)
    assert isinstance(outcome, Finding)
    assert "not printable" in outcome.kind


def test_the_command(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "40", "--seed", "1", "--only", "lime", "--json", table]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(table.read_text())
    assert found["formats"] == {"lime": 40}
    assert sum(found["outcomes"].values()) == 40
    assert found["findings"] == {}
