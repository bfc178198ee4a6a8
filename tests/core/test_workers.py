"""Ordered work in threads: order, window, failures, and no thread left behind."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from dumpxlate.codecs.workers import default_threads, ordered_map

if TYPE_CHECKING:
    from collections.abc import Iterator

any_threads = pytest.mark.parametrize("threads", [0, 1, 2, 5])
some_threads = pytest.mark.parametrize("threads", [1, 2, 5])


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@any_threads
def test_results_keep_the_order(threads: int) -> None:
    def late_first(number: int) -> int:
        time.sleep(0.002 * (number % 5 == 0))
        return number * number

    assert list(ordered_map(late_first, range(40), threads=threads)) == [number * number for number in range(40)]
    assert list(ordered_map(late_first, [], threads=threads)) == []


def test_threads_work_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=20)
    assert len(set(ordered_map(lambda _: (barrier.wait(), threading.get_ident())[1], range(3), threads=3))) == 3


def test_without_threads_the_caller_works() -> None:
    assert set(ordered_map(lambda _: threading.get_ident(), range(5), threads=0)) == {threading.get_ident()}


@some_threads
def test_at_most_two_items_a_thread_are_on_their_way(threads: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(100):
            drawn += 1
            yield number

    for given, number in enumerate(ordered_map(lambda one: one, items(), threads=threads), 1):
        assert number == given - 1
        assert drawn <= given - 1 + 2 * threads


@any_threads
def test_a_failure_comes_in_its_turn(threads: int) -> None:
    started = []

    def work(number: int) -> int:
        started.append(number)
        if number == 7:
            raise KeyError(number)
        time.sleep(0.001)
        return number

    results = ordered_map(work, range(1000), threads=threads)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError, match="7"):
        next(results)
    assert max(started) <= 7 + 2 * threads, "the rest is cancelled"
    assert next(results, None) is None


@any_threads
def test_a_failure_of_the_items_comes_behind_the_results(threads: int) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("truncated")

    results = ordered_map(lambda one: one, items(), threads=threads)
    found: list[int] = []
    with pytest.raises(OSError, match="truncated"):
        found.extend(results)
    assert found == list(range(5))


@any_threads
def test_closing_stops_the_work(threads: int) -> None:
    finished = []

    def work(number: int) -> int:
        time.sleep(0.005)
        finished.append(number)
        return number

    results = ordered_map(work, range(10_000), threads=threads)
    assert next(results) == 0
    results.close()
    count = len(finished)
    assert count <= 1 + 3 * threads
    time.sleep(0.03)
    assert len(finished) == count, "work went on behind the back of the caller"
    assert next(results, None) is None


@some_threads
def test_closing_cancels_what_has_not_begun(threads: int) -> None:
    begun, gate = [], threading.Event()

    def work(number: int) -> int:
        if number:
            begun.append(number)
            gate.wait(20)
        return number

    results = ordered_map(work, range(100), threads=threads)
    assert next(results) == 0
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    results.close()
    opener.join()
    assert len(begun) <= threads


@any_threads
def test_a_generator_that_is_dropped(threads: int) -> None:
    results = ordered_map(lambda one: one, range(100), threads=threads)
    assert next(results) == 0
    del results


def test_a_generator_that_never_began_starts_no_thread() -> None:
    before = threading.active_count()
    results = ordered_map(lambda one: one, range(100), threads=4)
    assert threading.active_count() == before
    results.close()


def test_interrupts_pass() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(lambda one: one, items(), threads=2))


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_threads() <= 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)))
    assert default_threads() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert default_threads() == 8
