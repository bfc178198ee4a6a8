"""The command line as a user meets it: results on stdout, words on stderr, exit codes, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dumpxlate
from dumpxlate import errors
from tests.builders import xendump
from tests.builders.guest import small_guest
from tests.readers import vmcore_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Cli = Callable[..., subprocess.CompletedProcess[str]]

GUEST = small_guest(excluded=())


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "xen.core"
    path.write_bytes(xendump.build(GUEST))
    return path


@pytest.fixture
def p2m(tmp_path: Path) -> Path:
    path = tmp_path / "map.bin"
    entries = np.full(GUEST.end_pfn, 0xFFFFFFFFFFFFFFFF, "<u8")
    entries[list(GUEST.mfns)] = list(GUEST.mfns.values())
    path.write_bytes(entries.tobytes())
    return path


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr with these words, nothing on stdout, no traceback, this exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("dumpxlate: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def only(folder: Path, *names: str) -> None:
    """The folder holds these files and no others: no output, no temporary file."""
    assert sorted(each.name for each in folder.iterdir()) == sorted(names)


def test_the_main_job(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    done = cli("convert", dump, "--p2m", p2m, "-o", "vmcore", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    pages, zero = len(GUEST.pages), len(GUEST.zeros)
    assert f"{pages:,} pages in, {pages - zero:,} stored, {zero:,} zero, 2 holes" in line
    assert "nothing lost" in line
    assert vmcore_pages(tmp_path / "vmcore") == GUEST.pages
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "dumpxlate.convert/1"
    assert report["pages_out"] == {"stored": pages - zero, "zero": zero, "excluded": 0, "bad": 0}


def test_info_shows_everything_without_a_map(cli: Cli, dump: Path) -> None:
    done = cli("info", dump)
    assert done.returncode == 0
    assert done.stderr == ""
    for words in ("xendump: paravirtual guest, 64-bit index", "x86_64", "machine", "vcpu 1", "rip", "--p2m MAP"):
        assert words in done.stdout
    info = json.loads(cli("info", "--json", dump).stdout)
    assert info["schema"] == "dumpxlate.info/1"
    assert info["space"] == "machine"
    assert info["pages"]["stored"] == len(GUEST.pages)
    assert len(info["cpus"]) == 2
    assert info["attributes"]["xch_nr_pages"] == len(GUEST.pages)


def test_info_of_the_result(cli: Cli, dump: Path, p2m: Path) -> None:
    cli("convert", dump, "--p2m", p2m, "-o", "vmcore")
    info = json.loads(cli("info", "--json", "vmcore").stdout)
    before = json.loads(cli("info", "--json", "--p2m", p2m, dump).stdout)
    assert info["format"]["name"] == "elf"
    assert before["fit"]["fits"]
    for key in ("ram", "stored", "ram_runs"):
        assert info["pages"][key] == before["pages"][key]
    assert info["p2m"] == before["p2m"]
    assert [cpu["registers"]["rip"] for cpu in info["cpus"]] == [cpu["registers"]["rip"] for cpu in before["cpus"]]


def test_pipe(cli: Cli, dump: Path, p2m: Path, tmp_path: Path) -> None:
    done = cli("convert", dump, "--p2m", p2m, "-o", "-", text=False)
    assert done.returncode == 0
    out = tmp_path / "from-pipe"
    out.write_bytes(done.stdout)
    assert vmcore_pages(out) == GUEST.pages


def test_closed_pipe(dump: Path, p2m: Path) -> None:
    command = [sys.executable, "-m", "dumpxlate", "convert", str(dump), "--p2m", str(p2m), "-o", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        words = process.stderr.read()
    assert process.returncode == 2
    assert "broken pipe" in words
    assert "Traceback" not in words


@pytest.mark.parametrize("words", ["info {}", "info --json {}", "formats", "--help", "--version", "convert {} -o -"])
@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_stdout_that_takes_nothing(words: str, where: str, sample: Callable[[str], Path]) -> None:
    """Whatever the command, and however little it prints: one line, and a code of its own."""
    said = words.format(sample("elf/x64-long.elf"))
    line = f"{sys.executable} -m dumpxlate {said} {where}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dumpxlate: ")
    assert last.endswith("no space left on device" if where == ">/dev/full" else "bad file descriptor")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("words", ["--debug info absent", "--debug info .", "--debug formats >/dev/full"])
def test_debug_shows_where_an_error_is_from(words: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m dumpxlate {words}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "Traceback" in done.stderr


def test_stdout_and_stderr_that_are_closed(sample: Callable[[str], Path], tmp_path: Path) -> None:
    """What is opened next must not be taken for them."""
    line = f"{sys.executable} -m dumpxlate convert {sample('elf/x64-long.elf')} -o out.elf >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=60).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "dumpxlate", "check", "out.elf"], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0


def test_p2m_show_and_convert(cli: Cli, p2m: Path, tmp_path: Path) -> None:
    shown = json.loads(cli("p2m", "show", "--json", p2m).stdout)
    pfns = sorted(GUEST.mfns)
    runs = sum(
        1
        for at, pfn in enumerate(pfns)
        if not at or (pfns[at - 1], GUEST.mfns[pfns[at - 1]]) != (pfn - 1, GUEST.mfns[pfn] - 1)
    )
    assert shown == {
        "schema": "dumpxlate.p2m/1",
        "entries": GUEST.end_pfn,
        "pages": len(pfns),
        "runs": runs,
        "highest_pfn": hex(pfns[-1]),
        "highest_mfn": hex(max(GUEST.mfns.values())),
        "holes": 2,
        "invalid": GUEST.end_pfn - len(pfns),
        "foreign": 0,
        "identity": 0,
        "duplicates": 0,
    }
    assert "highest pfn" in cli("p2m", "show", p2m).stdout
    for name in ("a.npy", "a.txt", "a.u32", "a.bin"):
        assert cli("p2m", "convert", p2m, name).returncode == 0
        assert json.loads(cli("p2m", "show", "--json", name).stdout) == shown
    assert (tmp_path / "a.bin").read_bytes() == p2m.read_bytes()
    assert cli("p2m", "convert", p2m, "-", text=False).stdout == p2m.read_bytes()


def test_formats(cli: Cli) -> None:
    listed = json.loads(cli("formats", "--json").stdout)
    names = {each["name"]: each for each in listed["formats"]}
    assert names["elf"]["writes"]
    assert "xendump" in cli("formats").stdout


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("dumpxlate 0.")
    for command in ("info", "convert", "formats", "p2m show", "p2m convert"):
        done = cli(*command.split(), "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout


# Bad input: one line, the right exit code, no output, the input untouched.


@pytest.mark.parametrize("length", [1, 4, 23, 24, 100, 5000, 9000])
def test_truncated_headers(cli: Cli, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut"
    data = xendump.build(GUEST)[:length]
    path.write_bytes(data)
    for command in (["info", path], ["convert", path, "-o", "out"]):
        refused(cli(*command), 2 if length < 4 else 5, "cut: ")
    assert path.read_bytes() == data
    only(tmp_path, "cut")


def test_truncated_pages(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    with dump.open("r+b") as file:
        file.truncate(dump.stat().st_size - 5000)
    refused(cli("convert", dump, "--p2m", p2m, "-o", "out"), 5, "2 of", "--salvage")
    only(tmp_path, "xen.core", "map.bin")
    done = cli("convert", dump, "--p2m", p2m, "-o", "out", "--salvage")
    assert done.returncode == 4
    assert "2 excluded" in done.stderr


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (8, 0xFFFFFFFF, "xch_nr_pages"),
        (4, 0xFFFFFFFF, "xch_nr_vcpus"),
        (12, 0xFFFFFFFF, "xch_index_offset"),
        (16, 0xFFFFFFFF, "xch_pages_offset"),
        (20, 0xFFFFF000, "page"),
        (8, 0x0FFFFFFF, "room for"),
    ],
)
def test_offsets_and_counts_beyond_the_file(
    cli: Cli, tmp_path: Path, dump: Path, at: int, value: int, words: str
) -> None:
    with dump.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<I", value))
    done = cli("convert", dump, "-o", "out")
    assert done.returncode in (2, 5)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    only(tmp_path, "xen.core")


def test_what_is_no_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("empty", "is empty"),
        ("folder", "directory"),
        ("fifo", "pipe"),
        ("absent", "no such file"),
        ("/dev/null", "character device"),
    ):
        refused(cli("convert", name, "-o", "out"), 2, name, words)
        refused(cli("info", name), 2, name, words)
    only(tmp_path, "empty", "folder", "fifo")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission(cli: Cli, tmp_path: Path, dump: Path) -> None:
    dump.chmod(0)
    refused(cli("info", dump), 2, "permission denied")


def test_no_permission_as_somebody_else(cli: Cli, tmp_path: Path, dump: Path) -> None:
    """The same as root, who gives its rights up in the child."""
    if os.getuid():
        pytest.skip("needs root to become somebody else")
    dump.chmod(0)
    tmp_path.chmod(0o755)
    # The first run imports everything: the interpreter's own files may be closed to others too.
    command = "import contextlib, os, sys\nfrom dumpxlate.cli import main\nargs = sys.argv\n"
    command += "sys.argv = ['dumpxlate', 'info', 'absent']\nwith contextlib.suppress(SystemExit): main()\n"
    command += "os.setuid(65534); sys.argv = args; sys.stderr.flush(); os.dup2(1, 2); main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "info", str(dump)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == f"dumpxlate: {dump}: permission denied\n"  # and not how click says it, in four lines


def test_unknown_content(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"nothing that anybody would know" * 3)
    refused(cli("info", "noise"), 2, "noise: not a dump in a known format")


def test_wrong_map(cli: Cli, tmp_path: Path, dump: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\x01" * 13)
    refused(cli("convert", dump, "--p2m", "odd", "-o", "out"), 2, "odd: not a p2m map")
    (tmp_path / "other").write_bytes(np.arange(1, 500, dtype="<u8").tobytes())
    refused(cli("convert", dump, "--p2m", "other", "-o", "out"), 2, "does not fit", "499 of 499")
    refused(cli("convert", dump, "--p2m", "absent", "-o", "out"), 2, "absent: no such file")
    only(tmp_path, "xen.core", "odd", "other")


def test_no_map(cli: Cli, tmp_path: Path, dump: Path) -> None:
    refused(cli("convert", dump, "-o", "out"), 2, "--p2m MAP")
    only(tmp_path, "xen.core")


def test_existing_output(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    refused(cli("convert", dump, "--p2m", p2m, "-o", out), 2, "exists", "--force")
    assert out.read_text() == "precious"
    assert cli("convert", dump, "--p2m", p2m, "-o", out, "--force").returncode == 0
    assert vmcore_pages(out) == GUEST.pages
    assert out.stat().st_mode & 0o777 == 0o600


def test_output_is_the_input(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    before = dump.read_bytes()
    (tmp_path / "soft").symlink_to(dump)
    os.link(dump, tmp_path / "hard")
    for name in ("xen.core", "soft", "hard"):
        refused(cli("convert", dump, "--p2m", p2m, "-o", name, "--force"), 2, "is the input")
    refused(cli("convert", "soft", "--p2m", p2m, "-o", "xen.core", "--force"), 2, "is the input")
    refused(cli("p2m", "convert", p2m, p2m, "--force"), 2, "is the input")
    assert dump.read_bytes() == before
    only(tmp_path, "xen.core", "map.bin", "soft", "hard")


def test_output_is_another_input(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    """Whatever was read: the map, the kernel's symbols, VMCOREINFO, and what goes beside a raw image."""
    (tmp_path / "info").write_text("OSRELEASE=6.1\n")
    (tmp_path / "symbols").write_text("ffffffff81000000 T _text\n")
    (tmp_path / "out.dxmap").symlink_to(p2m)
    whole = ["convert", dump, "--p2m", p2m, "--vmcoreinfo", "info", "--symbols", "symbols", "--force", "-t", "elf"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("map.bin", "info", "symbols"):
        refused(cli(*whole, "-o", name), 2, f"{name}: is the input")
        refused(cli(*whole, "-o", "out", "--report", name), 2, f"{name}: is the input")
    refused(cli(*whole, "-o", "out", "-t", "raw", "--allow-loss"), 2, "out.dxmap: is the input")
    refused(cli("p2m", "extract", dump, "--symbols", "symbols", "-o", "symbols", "--force"), 2, "symbols")
    with dumpxlate.open(dump, p2m=p2m) as opened, pytest.raises(errors.OutputError, match="is the input"):
        dumpxlate.convert(opened, p2m, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_report_is_the_output(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    whole = ["convert", dump, "--p2m", p2m, "-o", "out", "--force"]
    twice = "is another output of this command already"
    refused(cli(*whole, "--report", "./out"), 2, f"out: {twice}")
    refused(cli(*whole, "--report", "out.2", "--split", "2", "--part", "2", "-t", "kdump"), 2, f"out.2: {twice}")
    refused(cli(*whole, "--report", "out.dxmap", "-t", "raw", "--allow-loss"), 2, f"out.dxmap: {twice}")
    refused(cli("convert", dump, "--p2m", p2m, "-o", "-", "--report", "-"), 2, "<stdout>: cannot take both")
    only(tmp_path, "xen.core", "map.bin")
    done = cli(*whole, "--report", "-")
    assert json.loads(done.stdout)["pages_in"] == len(GUEST.pages)


def test_what_a_conversion_says_of_its_input(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    """Registers that cannot be where the header has them: what info remarks is said when it matters, too."""
    content = bytearray(dump.read_bytes())
    struct.pack_into("<I", content, 4, 0)  # xch_nr_vcpus
    dump.write_bytes(content)
    done = cli("convert", dump, "--p2m", p2m, "-o", "out", "--report", "report")
    remarks = json.loads(cli("info", "--json", dump).stdout)["remarks"]
    assert remarks
    assert json.loads((tmp_path / "report").read_text())["remarks"] == remarks
    assert done.stderr.splitlines()[:-1] == remarks


def test_pages_that_the_map_leaves_out_are_lost(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    entries = np.fromfile(p2m, "<u8")
    mapped = np.flatnonzero(entries != np.uint64(2**64 - 1))
    entries[mapped[:2]] = 2**64 - 1
    entries.tofile(tmp_path / "few")
    done = cli("convert", dump, "--p2m", "few", "-o", "out", "--report", "report")
    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "lost: 2 pages of the dump (no pfn of the map leads to them)"
    assert "nothing lost" not in done.stderr
    report = json.loads((tmp_path / "report").read_text())
    assert report["fit"]["invalid"] == len(entries) - len(mapped) + 2
    entries[:] = np.arange(len(entries)) + (1 << 30)
    entries.tofile(tmp_path / "none")
    done = cli("convert", dump, "--p2m", "none", "-o", "out", "--force", "--allow-loss")
    assert f"lost: {len(mapped):,} pages of the dump" in done.stderr


def test_output_that_cannot_be(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(cli("convert", dump, "--p2m", p2m, "-o", "folder", "--force"), 2, "not a regular file")
    refused(cli("convert", dump, "--p2m", p2m, "-o", "absent/out"), 2, "absent")
    (tmp_path / "stream").symlink_to("/proc/self/fd/1")
    for name in ("stream", "/dev/fd/1"):  # files, where stdout is one
        line = f"{sys.executable} -m dumpxlate convert {dump} --p2m {p2m} -o {name} -t elf --force > folder/taken"
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        refused(done, 2, f"{name}: is a stream of a process")
    (tmp_path / "stream").unlink()
    for name in ("", "absent/"):
        refused(cli("convert", dump, "--p2m", p2m, "-o", name), 2, "is not the name of a file")
    refused(cli("convert", "", "-o", "out"), 2, "'': no such file")
    refused(cli("convert", dump, "--p2m", p2m, "-o", "out", "-t", "nonsense"), 2, "no format is called 'nonsense'")
    refused(cli("convert", dump, "-f", "nonsense", "-o", "out"), 2, "no format is called 'nonsense'")
    if os.getuid():
        (tmp_path / "folder").chmod(0o500)
        refused(cli("convert", dump, "--p2m", p2m, "-o", "folder/out"), 2, "folder: permission denied")
    only(tmp_path, "xen.core", "map.bin", "folder")


def test_full_disk(cli: Cli, tmp_path: Path, dump: Path, p2m: Path) -> None:
    """A file-size limit fails as a full disk does: in the middle of a write."""

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = cli("convert", dump, "--p2m", p2m, "-o", "out", preexec_fn=limit)
    refused(done, 2, "file too large")
    only(tmp_path, "xen.core", "map.bin")


def test_real_full_disk(cli: Cli, dump: Path, p2m: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", mount], capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs")
    try:
        refused(cli("convert", dump, "--p2m", p2m, "-o", mount / "out"), 2, "out: no space left on device")
        only(mount)
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    rows = 1 << 20
    path = xendump.sparse_huge(tmp_path / "huge", {}, nr_pages=rows)
    (tmp_path / "map").write_bytes((np.arange(rows, dtype="<u8") + (1 << 20)).tobytes())
    command = [sys.executable, "-m", "dumpxlate", "convert", path, "--p2m", tmp_path / "map", "-o", tmp_path / "out"]
    with subprocess.Popen([*command, "--progress", "json"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        moment: dict[str, Any] = json.loads(process.stderr.readline())
        assert moment["schema"] == "dumpxlate.progress/1"
        process.send_signal(number)
        started = time.monotonic()
        words = process.stderr.read()
        assert time.monotonic() - started < 20
    assert process.returncode == code
    assert "Traceback" not in words
    only(tmp_path, "huge", "map")


def test_interrupted_while_it_starts() -> None:
    """There is nothing to tidy up and nothing to say yet."""
    command = """if True:
        import os, signal, sys
        class Interrupting:
            def find_spec(self, name, path, target=None):
                if name == "dumpxlate.cli.app":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupting())
        from dumpxlate.cli import main
        main()"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_terminal_is_refused_for_binary(dump: Path, p2m: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dumpxlate", "convert", str(dump), "--p2m", str(p2m), "-o", "-"]
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(follower)
    os.close(leader)
    assert done.returncode == 2
    assert "is a terminal" in done.stderr


def test_guest_strings_do_not_reach_the_terminal_raw(cli: Cli, tmp_path: Path) -> None:
    name = tmp_path / "evil\x1b[31mname"
    name.write_bytes(b"nothing")
    done = cli("info", name)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b[31m" in done.stderr


def test_header_only_on_a_sparse_tebibyte(cli: Cli, tmp_path: Path) -> None:
    """Its time does not grow with the dump: a 2^28-page index is not read by info."""
    rows = 1 << 28
    index_at = 24 + 5168
    pages_at = (index_at + rows * 8 + 4095) // 4096 * 4096
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(struct.pack("<6I", 0xF00FEBED, 1, rows, 24, index_at, pages_at))
        file.truncate(pages_at + rows * 4096)
    started = time.monotonic()
    done = cli("info", "--json", path)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pages"] == {"indexed": False, "entries": rows, "bytes": rows * 4096}
    assert seconds < 30  # a hang or a full read, not a benchmark: reading the index takes minutes
