"""Forks do what threads would: each test runs in a Python of its own, since pytest's has threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAD = """
import os, signal, sys, threading, time
from dumpxlate.codecs import forks
from dumpxlate.codecs.forks import can_fork, shared_map
from dumpxlate.errors import CorruptPageError, DumpxlateError
parent = os.getpid()

def children():
    return open(f"/proc/{parent}/task/{parent}/children").read().split()
"""

ONE_FORK = """
fork, made = os.fork, []
def few():
    if made:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    made.append(fork())
    return made[-1]
os.fork = few
"""
"""What lets a program fork once, and no more."""


def printed(body: str) -> list[str]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    program = [sys.executable, "-c", HEAD + body]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.split("\n")[:-1]


def test_only_a_process_without_threads_is_forked() -> None:
    body = """
print(can_fork())
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
print(can_fork())
done.set()
thread.join()
while not can_fork():  # the kernel's thread ends a moment after Python's
    time.sleep(0.01)
print(can_fork())
"""
    assert printed(body) == ["True", "False", "True"]


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(workers: int, count: int) -> None:
    body = f"""
def square(number):
    time.sleep(0.002 * (number % 3))
    return number * number, os.getpid()
found = list(shared_map(square, iter(range({count})), workers={workers}))
print([one for one, _ in found] == [number * number for number in range({count})])
print(len({{pid for _, pid in found}}), len(children()))
"""
    processes = min(max(workers, 1), count)
    assert printed(body) == ["True", f"{processes} 0"]


def test_what_goes_wrong_comes_in_its_turn() -> None:
    body = """
def odd(number):
    if number >= 5:
        raise CorruptPageError("is odd", pfn=number)
    return number
found = []
try:
    for each in shared_map(odd, range(100), workers=3):
        found.append(each)
except CorruptPageError as error:
    print(found, error, error.pfn, len(children()))
"""
    assert printed(body) == ["[0, 1, 2, 3, 4] page 0x5: is odd 5 0"]


def test_large_results_pass() -> None:
    body = """
found = list(shared_map(lambda number: bytes([number]) * 1_000_000, range(9), workers=2))
print(found == [bytes([number]) * 1_000_000 for number in range(9)])
"""
    assert printed(body) == ["True"]


def test_it_may_be_left_early() -> None:
    body = """
found = shared_map(lambda number: number, iter(range(10**9)), workers=3)
print(next(found), next(found), len(children()))
found.close()
print(len(children()))
"""
    assert printed(body) == ["0 1 2", "0"]


def test_a_process_that_is_killed_ends_it() -> None:
    body = """
def deadly(number):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
try:
    print(list(shared_map(deadly, range(20), workers=2)))
except DumpxlateError as error:
    print(error, len(children()))
"""
    assert printed(body) == ["a process that took part was killed; was there enough memory? 0"]


def test_without_more_processes_threads_do_it() -> None:
    body = f"""
{ONE_FORK}
print(list(shared_map(lambda number: (number, os.getpid() == parent), range(4), workers=3)), len(children()))
"""
    assert printed(body) == ["[(0, True), (1, True), (2, True), (3, True)] 0"]


def test_what_cannot_be_sent_is_told_in_words() -> None:
    body = """
class Odd(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")
def odd(number):
    if os.getpid() != parent:
        raise Odd("odd", "thing")
try:
    list(shared_map(odd, range(4), workers=2))
except DumpxlateError as error:
    print(error)
"""
    assert printed(body) == ["Odd: odd thing"]


def test_a_lock_is_held_by_one_process_and_let_go_by_the_dead() -> None:
    body = """
lock, said = forks.Lock(), forks.Channel()
def hold():
    said.send(lock.acquire(wait=True))
    time.sleep(60)
with forks.forked([hold]):
    print(said.receive(), lock.acquire(wait=False))
print(lock.acquire(wait=False))
lock.release()
def take():
    said.send(lock.acquire(wait=True))
with forks.forked([take]):
    print(said.receive())
"""
    assert printed(body) == ["True False", "True", "True"]
