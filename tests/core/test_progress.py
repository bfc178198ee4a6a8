"""The meter: what it tells, and when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dumpxlate import progress
from dumpxlate.progress import Meter, Progress


def test_rate_and_remaining() -> None:
    moment = Progress("convert", done=300, total=1000, seconds=2.0)
    assert moment.rate == 150
    assert moment.remaining == pytest.approx(700 / 150)


@pytest.mark.parametrize(("done", "seconds"), [(0, 0.0), (0, 5.0), (10, 0.0)])
def test_nothing_can_be_said_yet(done: int, seconds: float) -> None:
    moment = Progress("convert", done, 1000, seconds)
    assert moment.rate == 0
    assert moment.remaining is None


def test_the_end() -> None:
    assert Progress("convert", 1000, 1000, 4.0).remaining == 0
    assert Progress("convert", 0, 0, 4.0).remaining is None


def test_the_callback_hears_the_start_and_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 101.0, 103.5, 104.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    heard: list[Progress] = []
    meter = Meter("compare", 50, heard.append)
    meter.add(20)
    meter.add(30)
    assert heard == [
        Progress("compare", 0, 50, 0.0),
        Progress("compare", 20, 50, 1.0),
        Progress("compare", 50, 50, 3.5),
    ]
    assert meter.seconds == 4.0


def test_without_a_callback_no_clock_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: asked.append(1) or 0.0))
    meter = Meter("convert", 50, None)
    meter.add(50)
    assert len(asked) == 1


def test_an_error_of_the_callback_is_not_swallowed() -> None:
    def refuse(moment: Progress) -> None:
        if moment.done:
            raise KeyboardInterrupt

    meter = Meter("convert", 50, refuse)
    with pytest.raises(KeyboardInterrupt):
        meter.add(1)
