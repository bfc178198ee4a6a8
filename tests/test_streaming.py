"""Pipes in one pass: the output begins before the input has ended, nothing is spooled, and what breaks says so."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

import dumpxlate
from dumpxlate.errors import (
    CorruptDumpError,
    DumpxlateError,
    LossyConversionError,
    NeedsAllError,
    OutputError,
    UnsupportedFeatureError,
)
from dumpxlate.format import WriteOptions
from dumpxlate.io.pipe import Pipe
from dumpxlate.io.sink import PipeSink
from dumpxlate.streaming.convert import convert_pipe
from tests.builders import avml, elf_cores, flattened, kdump, lime, raw
from tests.builders.guest import named_block, small_guest
from tests.peers import peers
from tests.readers import raw_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

FULL = small_guest(excluded=())
FILTERED = small_guest()
PAGE = 4096
BIG = 24 << 20
ENOUGH = 1 << 20
"""Bytes of output that must come while half of the input is still missing."""


def big_memory() -> bytes:
    return named_block(0, BIG // PAGE)


def big_lime() -> bytes:
    data = big_memory()
    return lime.build([(0x1000, data[0x1000 : 9 << 20]), (10 << 20, data[10 << 20 :])])


def big_flattened() -> bytes:
    """What is behind the headers does not matter from pipe to pipe."""
    return flattened.wrap(kdump.build(FULL) + big_memory())


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dumpxlate", "convert", "-", "--progress", "none", *words]


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[[bytes], Pipe]]:
    """Give bytes as a pipe that somebody writes to."""
    open_ends: list[int] = []

    def give(data: bytes) -> Pipe:
        theirs, ours = os.pipe()
        open_ends.append(theirs)
        threading.Thread(target=_feed, args=(ours, data), daemon=True).start()
        return Pipe(theirs)

    yield give
    for end in open_ends:
        os.close(end)


def _feed(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        try:
            file.write(data)
            file.flush()
        except BrokenPipeError:
            file.raw.close()


@pytest.fixture
def no_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file was asked for")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def content(path: Path, format: str | None = None) -> dict[int, bytes]:
    with dumpxlate.open(path, format=format) as dump:
        stored = dump.pages.stored
        pfns = stored.select(0, stored.count)
        return dict(zip(pfns.tolist(), (row.tobytes() for row in dump.read_pages(pfns)), strict=True))


# The output grows while the input still comes.


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (big_lime, ["-t", "lime"]),
        (big_lime, ["-t", "raw", "--allow-loss"]),
        (big_lime, ["-t", "lime", "--threads", "0"]),
        (big_memory, ["--from", "raw", "-t", "lime"]),
        (big_memory, ["--from", "raw", "-t", "raw", "--allow-loss"]),
        (big_flattened, ["-t", "kdump"]),
        (big_flattened, ["-t", "flattened"]),
    ],
    ids=["lime-lime", "lime-raw", "one thread", "raw-lime", "raw-raw", "flattened-kdump", "flattened"],
)
def test_output_begins_before_the_input_has_ended(tmp_path: Path, build: Callable[[], bytes], words: list[str]) -> None:
    data, begun, on_time = build(), threading.Event(), []
    with subprocess.Popen([*command(*words), "-o", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout

        def feed() -> None:
            assert process.stdin
            process.stdin.write(data[: len(data) // 2])
            process.stdin.flush()
            on_time.append(begun.wait(60))
            process.stdin.write(data[len(data) // 2 :])
            process.stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        head = process.stdout.read(ENOUGH)
        begun.set()
        rest = process.stdout.read()
        feeder.join()
    assert process.returncode == 0
    assert on_time == [True]
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "out").write_bytes(head + rest)
    if build is big_flattened:
        assert flat(head + rest) == flat(data)
    else:
        expected = content(tmp_path / "in", "raw" if build is big_memory else None)
        found = content(tmp_path / "out", "raw" if "raw" in words[words.index("-t") :] else None)
        assert {pfn for pfn in expected if found.pop(pfn, None) != expected[pfn]} == set()
        assert set(found) <= {0, *range((9 << 20) // PAGE, (10 << 20) // PAGE)}  # what a raw image fills up


def flat(stream: bytes) -> bytes:
    """The file inside a flattened one."""
    at, inner = 4096, bytearray()
    while (offset := int.from_bytes(stream[at : at + 8], "big", signed=True)) >= 0:
        size = int.from_bytes(stream[at + 8 : at + 16], "big")
        inner.extend(bytes(max(offset + size - len(inner), 0)))
        inner[offset : offset + size] = stream[at + 16 : at + 16 + size]
        at += 16 + size
    assert stream[at:] == flattened.END
    return bytes(inner)


@pytest.mark.parametrize("target", ["lime", "avml", "raw"])
@pytest.mark.parametrize("threads", [0, 1])
def test_memory_to_a_file(
    piped: Callable[[bytes], Pipe], no_spool: None, tmp_path: Path, target: str, threads: int
) -> None:
    report = convert_pipe(piped(lime.build(FULL)), tmp_path / "out", target, threads=threads)
    assert content(tmp_path / "out") == FULL.pages
    assert report.streamed
    assert report.counted
    assert report.pages_in == len(FULL.pages)
    assert dict(report.pages_out) == {
        "stored": len(FULL.pages) - len(FULL.zeros),
        "zero": len(FULL.zeros),
        "excluded": 0,
    }
    assert report.runs == 3
    assert report.bytes_written == (tmp_path / "out").stat().st_size


def test_a_raw_image_and_its_map_are_those_of_a_file(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lime.build(FULL))
    with dumpxlate.open(tmp_path / "in") as dump:
        dumpxlate.convert(dump, tmp_path / "whole", "raw")
    convert_pipe(piped(lime.build(FULL)), tmp_path / "out", "raw")
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert out.stat().st_size == whole.stat().st_size
    assert raw_pages(out) == raw_pages(whole)
    assert (tmp_path / "out.dxmap").read_bytes() == (tmp_path / "whole.dxmap").read_bytes()


def test_ranges_that_begin_and_end_inside_pages(
    piped: Callable[[bytes], Pipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dumpxlate.pieces.BATCH_BYTES", 3 * PAGE)
    data = bytes(range(1, 256)) * 600
    cuts = [0x10, 0x20, 0x30, 0x1001, 0x1FFF, 0x2000, 0x5555, 0x5556, 0x9000, 0xC123, 0xC200, 0x14000, 0x24001]
    ranges = [(low, data[low:high]) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
    ranges += [((1 << 32) + 5, b"far")]
    (tmp_path / "in").write_bytes(lime.build(ranges))
    convert_pipe(piped(lime.build(ranges)), tmp_path / "out", "lime")
    assert content(tmp_path / "out") == content(tmp_path / "in")


def test_a_raw_image_that_ends_inside_a_page(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    convert_pipe(piped(b"x" * (PAGE + 7)), tmp_path / "out", "lime", source_format="raw")
    assert content(tmp_path / "out") == {0: b"x" * PAGE, 1: b"x" * 7 + bytes(PAGE - 7)}


def test_zeros_become_holes(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    data = bytes(8 << 20) + b"end".ljust(PAGE, b".")
    report = convert_pipe(piped(data), tmp_path / "out", "raw", source_format="raw")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20
    assert dict(report.pages_out) == {"zero": 2048, "stored": 1, "excluded": 0}


# Records are put in order, as makedumpfile -R does.


@pytest.mark.parametrize("sizes", [16, 1000, [1, 4095], 65536, 1 << 30], ids=str)
def test_flattened_to_a_file(
    piped: Callable[[bytes], Pipe], no_spool: None, tmp_path: Path, sizes: int | list[int]
) -> None:
    inner = kdump.build(FILTERED)
    stream = flattened.wrap(inner, sizes=sizes, tail=b"what stands here is passed over" * 9999)
    report = convert_pipe(piped(stream), tmp_path / "out", "kdump")
    assert (tmp_path / "out").read_bytes() == inner
    assert report.counted
    assert report.pages_in == len(FILTERED.ram)
    assert report.pages_out["stored"] + report.pages_out["zero"] == len(FILTERED.stored)
    assert report.pages_out["excluded"] == len(FILTERED.excluded)
    assert report.bytes_written == len(inner)


def test_later_records_win(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    inner = kdump.build(FULL)
    first, *others = flattened.split(inner, 4096, holes=False)
    wrong = [(8192, b"?" * 10000), (0, b"KDUMP   " + b"?" * 5000), (len(inner) - 10, b"?" * 10)]
    stream = flattened.wrap(records=[first, *wrong, *reversed(others), (0, inner[:9000])])
    convert_pipe(piped(stream), tmp_path / "out", "kdump")
    assert (tmp_path / "out").read_bytes() == inner


def test_elf_in_records(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    core = elf_cores.core(FULL, "plain")
    report = convert_pipe(piped(flattened.wrap(core)), tmp_path / "out", "elf")
    assert (tmp_path / "out").read_bytes() == core
    assert report.pages_in == len(FULL.pages)
    theirs, ours = os.pipe()
    with pytest.raises(NeedsAllError, match="flattened into a pipe that is not"):
        convert_pipe(piped(flattened.wrap(core)), PipeSink(ours), "elf")
    os.close(theirs)
    os.close(ours)


def test_memory_into_records(cli: Cli, tmp_path: Path) -> None:
    """Whoever asks for records gets them, around whatever it is."""
    stream = lime.build(FULL)
    done = cli("convert", "-", "-t", "lime", "--flattened", "-o", "-", input=stream, text=False)
    assert done.returncode == 0
    assert b"in one pass" in done.stderr
    assert flat(done.stdout) == stream


def test_flattened_to_a_flattened_file(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    report = convert_pipe(piped(flattened.wrap(kdump.build(FULL))), tmp_path / "out", "flattened")
    assert flat((tmp_path / "out").read_bytes()) == kdump.build(FULL)
    assert report.container == "flattened"
    assert content(tmp_path / "out") == FULL.pages


def test_from_pipe_to_pipe_nothing_is_counted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(flattened.wrap(kdump.build(FULL)))
    with (tmp_path / "in").open("rb") as file:
        done = cli("convert", "-", "-t", "kdump", "-o", "-", "--report", "report", stdin=file, text=False)
    assert done.returncode == 0
    assert b"in one pass" in done.stderr
    assert b"not counted" in done.stderr
    assert flat(done.stdout) == kdump.build(FULL)
    report = json.loads((tmp_path / "report").read_text())
    assert report["streamed"]
    assert not report["counted"]
    assert report["complete"]


# What is broken.


@pytest.mark.parametrize("target", ["lime", "raw", "avml"])
def test_a_truncated_lime_file(piped: Callable[[bytes], Pipe], tmp_path: Path, target: str) -> None:
    stream = lime.build(FULL, truncate=-5000)
    with pytest.raises(CorruptDumpError, match=r"^<stdin>: truncated: the last range, from 0x100000000, has 262,144"):
        convert_pipe(piped(stream), tmp_path / "out", target, allow_loss=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "in").write_bytes(stream)
    with dumpxlate.open(tmp_path / "in") as dump:
        whole = dumpxlate.convert(dump, tmp_path / "whole", target, allow_loss=True, salvage=True)
    report = convert_pipe(piped(stream), tmp_path / "out", target, allow_loss=True, salvage=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    for name in ("damage", "missing", "losses", "pages_in", "pages_out", "runs"):
        assert getattr(report, name) == getattr(whole, name), name
    assert not report.complete


def test_what_a_truncated_input_lacks_is_a_loss_too(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    with pytest.raises(LossyConversionError, match="pages are RAM"):
        convert_pipe(piped(lime.build(FULL, truncate=-5000)), tmp_path / "out", "lime", salvage=True)
    assert list(tmp_path.iterdir()) == []


def test_rubbish_behind_a_range(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    stream = lime.build(FULL) + b"?" * 40 + bytes(3 << 20)
    with pytest.raises(CorruptDumpError, match=r"range 3 at .* begins with 3f 3f 3f 3f"):
        convert_pipe(piped(stream), tmp_path / "out", "lime")
    report = convert_pipe(piped(stream), tmp_path / "out", "lime", salvage=True)
    assert content(tmp_path / "out") == FULL.pages
    assert not report.complete


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (lime.build(FULL, headers={0: {"version": 7}}), "version 7"),
        (lime.build([(0x2000, b"x" * PAGE), (0, b"y" * PAGE)]), "one pass takes ascending ranges"),
        (lime.build(FULL) + avml.build(FULL), "AVML's records among LiME's are not read in one pass"),
    ],
    ids=["version", "descending", "mixed"],
)
def test_what_is_not_handled(piped: Callable[[bytes], Pipe], tmp_path: Path, stream: bytes, words: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=words):
        convert_pipe(piped(stream), tmp_path / "out", "lime", source_format="lime")
    assert list(tmp_path.iterdir()) == []


def test_ranges_in_any_order_through_a_file(cli: Cli, tmp_path: Path) -> None:
    stream = lime.build([(0x2000, b"x" * PAGE), (0, b"y" * PAGE)])
    done = cli("convert", "-", "-o", "out.lime", input=stream, text=False)
    assert done.returncode == 3
    assert b"--spool" in done.stderr
    assert cli("convert", "-", "--spool", "-o", "out.lime", input=stream, text=False).returncode == 0
    assert content(tmp_path / "out.lime") == {0: b"y" * PAGE, 2: b"x" * PAGE}


INNER = kdump.build(FULL)
BROKEN = {
    "no end marker": (flattened.wrap(INNER, end=False), "flattened record or end marker at .*truncated"),
    "half a header": (flattened.wrap(INNER, truncate=-9), "flattened record or end marker at .*truncated"),
    "half a record": (flattened.wrap(INNER, end=False, truncate=-99), "flattened record at .*truncated"),
    "negative offset": (flattened.wrap(INNER, raw={1: flattened.record(-7, b"abc")}), "offset -0x7"),
    "no size": (flattened.wrap(INNER, raw={1: flattened.record(7, b"")}), "size 0x0"),
    "far": (flattened.wrap(INNER, raw={1: flattened.record(1 << 60, b"abc")}), "expected an offset from 0"),
    "inside": (flattened.wrap(INNER[:-4096]), "truncated|do not lie|missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_records(piped: Callable[[bytes], Pipe], tmp_path: Path, case: str) -> None:
    stream, words = BROKEN[case]
    with pytest.raises(CorruptDumpError, match=words):
        convert_pipe(piped(stream), tmp_path / "out", "kdump")
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_of_broken_input(cli: Cli, tmp_path: Path) -> None:
    done = cli("convert", "-", "-o", "out.lime", input=lime.build(FULL, truncate=-5000), text=False)
    assert done.returncode == 5
    done = cli("convert", "-", "-o", "out.kdump", input=BROKEN["half a record"][0], text=False)
    assert done.returncode == 5
    assert list(tmp_path.iterdir()) == []
    salvaged = ["convert", "-", "--salvage", "--allow-loss", "-o"]
    done = cli(*salvaged, "out.lime", input=lime.build(FULL, truncate=-5000), text=False)
    assert done.returncode == 4
    done = cli(*salvaged, "out.kdump", input=BROKEN["half a record"][0], text=False)
    assert done.returncode == 4
    assert b"goes into a temporary file first: salvage" in done.stderr


def test_a_target_that_exists(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    for stream, format in ((lime.build(FULL), "lime"), (flattened.wrap(INNER), "kdump")):
        with pytest.raises(OutputError, match="exists"):
            convert_pipe(piped(stream), tmp_path / "out", format)
        assert (tmp_path / "out").read_bytes() == b"old"
        convert_pipe(piped(stream), tmp_path / "out", format, overwrite=True)
        assert content(tmp_path / "out") == FULL.pages
        (tmp_path / "out").write_bytes(b"old")


@pytest.mark.parametrize("words", [["--from", "raw", "-t", "lime", "-o", "-"], ["-t", "kdump", "-o", "-"]])
def test_a_reader_that_goes_away(tmp_path: Path, words: list[str]) -> None:
    data = big_memory() if "raw" in words else big_flattened()
    with subprocess.Popen(
        command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        feeder = threading.Thread(target=_feed, args=(os.dup(process.stdin.fileno()), data))
        feeder.start()
        process.stdout.read(4)
        process.stdout.close()
        words_said = process.stderr.read().decode()
        feeder.join()
        process.stdin.close()
    assert process.returncode == 2
    assert words_said == "dumpxlate: broken pipe\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("out", ["-", "out.lime"])
def test_a_signal_while_nothing_comes(tmp_path: Path, number: signal.Signals, code: int, out: str) -> None:
    words = ["--progress", "json", "--from", "raw", "-t", "lime", "-o", out]
    with subprocess.Popen(
        command(*words), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(big_memory()[: BIG // 2])
        process.stdin.flush()
        assert json.loads(process.stderr.readline())["total"] == 0  # it has begun, and waits
        process.send_signal(number)
        said = process.stderr.read().decode()
        assert process.wait(30) == code
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


# What needs all of the input first, and says so.


@pytest.mark.parametrize(
    ("build", "words", "reason"),
    [
        (lime.build, ["-t", "elf"], "elf begins with what is known of all memory"),
        (lime.build, ["-t", "kdump"], "kdump begins with what is known of all memory"),
        (lime.build, ["-t", "lime", "--verify"], "--verify"),
        (lime.build, ["-t", "lime", "--begin", "0x1000"], "--begin"),
        (lime.build, ["-t", "lime", "--missing", "zero"], "--missing"),
        (kdump.build, ["-t", "lime"], "kdump is not read in one pass"),
        (lambda guest: flattened.wrap(kdump.build(guest)), ["-t", "lime"], "kdump in flattened becomes lime"),
        (
            lambda guest: flattened.wrap(kdump.build(guest)),
            ["-t", "kdump", "--compress", "zstd"],
            "--compress",
        ),
        (
            lambda guest: flattened.wrap(kdump.build(guest), order="reverse"),
            ["-t", "kdump"],
            "something else in flattened becomes kdump",
        ),
        (
            lambda guest: raw.build({n: guest.pages[n] for n in range(160)}),
            ["-t", "raw"],
            "its first bytes do not tell what it is",
        ),
    ],
)
def test_what_is_spooled(cli: Cli, tmp_path: Path, build: Callable[..., bytes], words: list[str], reason: str) -> None:
    done = cli("convert", "-", *words, "--allow-loss", "-o", "out", "--report", "report", input=build(FULL), text=False)
    assert done.returncode == 0, done.stderr
    assert f"<stdin>: goes into a temporary file first: {reason}" in done.stderr.decode()
    assert not json.loads((tmp_path / "report").read_text())["streamed"]


@pytest.mark.parametrize("build", [kdump.build, lambda guest: flattened.wrap(kdump.build(guest)), lime.build])
def test_a_file_as_stdin_is_no_pipe(tmp_path: Path, build: Callable[..., bytes]) -> None:
    (tmp_path / "in").write_bytes(build(FULL))
    code = (
        "import sys, tempfile\n"
        "tempfile.TemporaryFile = None\n"
        "from dumpxlate.cli import main\n"
        "sys.argv = ['dumpxlate', 'convert', '-', '-o', 'out']; main()\n"
    )
    with (tmp_path / "in").open("rb") as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"temporary" not in done.stderr
    assert content(tmp_path / "out") == FULL.pages


def test_a_file_of_which_some_was_read_is_a_pipe(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"before" + kdump.build(FULL))
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.seek(6)
        done = cli("convert", "-", "-o", "out", stdin=file)
    assert done.returncode == 0, done.stderr
    assert "temporary file" in done.stderr
    assert content(tmp_path / "out") == FULL.pages


@pytest.mark.parametrize("words", ["-t lime", "--from raw -t lime", "-t elf", "--spool -t lime --report report"])
def test_stdin_that_is_closed(tmp_path: Path, words: str) -> None:
    line = f"{sys.executable} -m dumpxlate convert - {words} -o out <&-"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "dumpxlate: <stdin>: is closed\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_taken_where_one_pass_will_not_do(piped: Callable[[bytes], Pipe], tmp_path: Path) -> None:
    pipe = piped(lime.build(FULL))
    with pytest.raises(NeedsAllError) as caught:
        convert_pipe(pipe, tmp_path / "out", "elf")
    assert caught.value.reason.startswith("elf begins")
    assert pipe.position == 0
    with pytest.raises(NeedsAllError, match="--verify"):
        convert_pipe(pipe, tmp_path / "out", "lime", verify=True)
    with pytest.raises(NeedsAllError, match="--length"):
        convert_pipe(pipe, tmp_path / "out", "lime", WriteOptions(length=4096))
    convert_pipe(pipe, tmp_path / "out", "lime")
    assert content(tmp_path / "out") == FULL.pages


def test_a_loss_is_refused_before_anything_is_written(cli: Cli) -> None:
    done = cli("convert", "-", "-t", "raw", "-o", "-", input=lime.build(FULL), text=False)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"which pages are RAM" in done.stderr


def test_memory_stays_the_same_however_much_comes(tmp_path: Path) -> None:
    line = (
        "import resource, sys\n"
        "from dumpxlate.io.pipe import Pipe\n"
        "from dumpxlate.io.sink import PipeSink\n"
        "from dumpxlate.streaming.convert import convert_pipe\n"
        "convert_pipe(Pipe(0), PipeSink(1), 'lime', source_format='raw')\n"
        "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))\n"
    )
    found = []
    for megabytes in (64, 512):
        piped = f"head -c {megabytes}M /dev/zero | {sys.executable} -c '{line.replace(chr(39), chr(34))}' > /dev/null"
        done = subprocess.run(["bash", "-c", piped], check=True, capture_output=True, text=True, timeout=120)
        found.append(int(done.stderr))
    assert found[1] - found[0] < 32 << 10  # KiB


# Real files.


@pytest.mark.parametrize("name", ["aarch64", "i386-pae", "s390x", "x64-long"])
def test_what_qemu_flattened(
    piped: Callable[[bytes], Pipe], sample: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    stream = sample(f"kdump/{name}.kdump").read_bytes()
    report = convert_pipe(piped(stream), tmp_path / "out", "kdump")
    assert (tmp_path / "out").read_bytes() == flat(stream)
    with dumpxlate.open(tmp_path / "out") as ours, dumpxlate.open(sample(f"kdump/{name}.kdump")) as theirs:
        assert report.pages_in == ours.pages.ram.count == theirs.pages.ram.count
    assert content(tmp_path / "out") == content(sample(f"kdump/{name}.kdump"))


def test_makedumpfile_puts_records_into_the_same_order(
    piped: Callable[[bytes], Pipe], sample: Callable[[str], Path], tmp_path: Path
) -> None:
    peers.require("makedumpfile")
    stream = sample("kdump/x64-long.kdump")
    convert_pipe(piped(stream.read_bytes()), tmp_path / "out", "kdump")
    assert peers.rearrange(stream, tmp_path / "theirs").read_bytes() == (tmp_path / "out").read_bytes()


# Damage of every kind ends in an answer or in a typed error, and in no file that is not whole.


@pytest.mark.parametrize("target", ["lime", "raw"])
@pytest.mark.parametrize("seed", range(40))
def test_mutated_lime(piped: Callable[[bytes], Pipe], tmp_path: Path, seed: int, target: str) -> None:
    stream = mutated(lime.build(small_guest(high=False, excluded=()), most=32 << 10), seed, headers=32 + (32 << 10))
    (tmp_path / "in").write_bytes(stream)
    try:
        report = convert_pipe(piped(stream), tmp_path / "out", target, source_format="lime")
    except (DumpxlateError, OSError):  # a file may become larger than the file system has any
        assert [each.name for each in tmp_path.iterdir()] == ["in"]
        return
    assert report.complete
    assert content(tmp_path / "out") == content(tmp_path / "in", "lime")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_records(piped: Callable[[bytes], Pipe], tmp_path: Path, seed: int) -> None:
    stream = mutated(flattened.wrap(INNER, sizes=1000), seed, headers=1016, skip=8192)
    try:
        convert_pipe(piped(stream), tmp_path / "out", "kdump")
    except (DumpxlateError, OSError):  # a file may become larger than the file system has any
        assert list(tmp_path.iterdir()) == []
        return
    if (tmp_path / "out").stat().st_size < 64 << 20:
        assert (tmp_path / "out").read_bytes() == flat(stream)


def mutated(stream: bytes, seed: int, *, headers: int, skip: int = 0) -> bytes:
    """Change a few bytes of what repeats every ``headers`` bytes, or cut the end off."""
    chance = random.Random(seed)
    out = bytearray(stream)
    for _ in range(chance.randint(1, 3)):
        record = chance.randrange((len(out) - skip) // headers) * headers
        at = min(skip + record + chance.randrange(32), len(out) - 1)
        out[at] = chance.choice((0, 1, 0x7F, 0xFF, out[at] ^ (1 << chance.randrange(8))))
    return bytes(out[: -chance.randint(1, 5000)] if chance.random() < 0.3 else out)
