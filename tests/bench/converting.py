"""Cases that write a dump."""

from __future__ import annotations

import mmap
import subprocess
from typing import TYPE_CHECKING

import numpy as np

from tests.bench import guests
from tests.bench.case import US, Prepared
from tests.bench.peers import compressor, kdump_reader, makedumpfile
from tests.readers import elf_segments

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

QUIET = ("--progress", "none", "--force")


def elf_to_kdump(folder: Path, size: int, *, codec: str) -> Prepared:
    """Compress; zero pages are left out on both sides (-d 1), as both do unasked."""
    source, out, theirs = guests.write_elf(folder, size), folder / "out.kdump", folder / "theirs.kdump"
    ours = (*US, "convert", str(source), "-t", "kdump", "--compress", codec, *QUIET, "-o", str(out))
    peers = {"our lzo": (*ours[:-6], "lzo", *QUIET, "-o", str(theirs))}
    if command := compressor(codec):
        files = ("-f", "-d", "1", str(source), str(theirs))
        name = f"makedumpfile {command[1]}"
        peers = {name: (*command, *files), f"{name} --num-threads 2": (*command, "--num-threads", "2", *files)}

    def check(_: str) -> None:
        is_the_guest(out, folder, size, codec)
        for name, peer in peers.items():
            subprocess.run(peer, check=True, capture_output=True)
            is_the_guest(theirs, folder, size, "lzo" if name == "our lzo" else codec)

    def sizes() -> str:
        return f"size {out.stat().st_size / theirs.stat().st_size:.3f} of the peer's"

    return Prepared(ours, peers, check, (out, theirs), facts=sizes)


def is_the_guest(kdump: Path, folder: Path, size: int, codec: str) -> None:
    """Have libkdumpfile read a kdump file; drgn's, where Debian's lacks the codec."""
    said = subprocess.run([*kdump_reader(folder, codec), str(kdump)], check=True, capture_output=True, text=True)
    got = tuple(int(word) for word in said.stdout.split())
    _same(str(kdump), got, guests.expected_digest(folder, size))


def _same(name: str, got: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if got != wanted:
        raise AssertionError(f"{name}: {got[0]} pages with digest {got[1]:#x}, expected {wanted[0]}, {wanted[1]:#x}")


def kdump_to_kdump(folder: Path, size: int) -> Prepared:
    """Pages pass as they are."""
    source, out, copy = kdump(folder, size, "lzo"), folder / "out.kdump", folder / "copy.kdump"
    ours = (*US, "convert", str(source), "-t", "kdump", *QUIET, "-o")
    model = folder / f"again-{size >> 20}m.kdump"
    if not model.exists():
        subprocess.run([*ours, str(model)], check=True)
    return Prepared(
        (*ours, str(out)),
        {"cp": ("sh", "-c", f"cp {model} {copy} && sync {copy}")},
        lambda _: is_the_guest(out, folder, size, "lzo"),
        (out, copy),
    )


def kdump_to_elf(folder: Path, size: int, *, codec: str) -> Prepared:
    """Decompress; the peer reads every page and writes none."""
    source, out = kdump(folder, size, codec), folder / "out.elf"
    return Prepared(
        (*US, "convert", str(source), *QUIET, "-o", str(out)),
        {"libkdumpfile": (*kdump_reader(folder, codec), str(source), "--time-only")},
        lambda _: _is_plain_guest(out, size),
        (out,),
    )


def kdump(folder: Path, size: int, codec: str) -> Path:
    """The plain guest as makedumpfile compresses it, or as we do where it cannot."""
    path = folder / f"guest-{size >> 20}m.{codec}.kdump"
    if path.exists():
        return path
    source = str(guests.write_elf(folder, size))
    if theirs := compressor(codec):
        command = (*theirs, "-d", "1", source, str(path))
    else:
        command = (*US, "convert", source, "-t", "kdump", "--compress", codec, *QUIET, "-o", str(path))
    subprocess.run(command, check=True, capture_output=True)
    return path


def flattened(folder: Path, size: int) -> Path:
    """The plain guest as makedumpfile flattens it, which is LZO-compressed."""
    program = makedumpfile()
    path = folder / f"guest-{size >> 20}m.flat"
    if not path.exists():
        source = guests.write_elf(folder, size)
        with path.open("wb") as file:
            subprocess.run(
                [program, "-F", "-l", "-d", "1", str(source)], check=True, stdout=file, stderr=subprocess.DEVNULL
            )
        name_machine(path)
    return path


def name_machine(path: Path) -> None:
    """Fill in the new_utsname that drgn looks at, in each of the records that hold the header.

    Without VMCOREINFO makedumpfile leaves it empty.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as body:
        at = body.find(b"KDUMP   ")
        while at >= 0:
            for field, text in enumerate((b"Linux", b"bench", b"6.1.0", b"#1", b"x86_64")):
                start = at + 12 + 65 * field
                body[start : start + len(text)] = text
            at = body.find(b"KDUMP   ", at + 1)


def flattened_to_kdump(folder: Path, size: int) -> Prepared:
    """Put a flattened file in order."""
    source, out, theirs = flattened(folder, size), folder / "out.kdump", folder / "theirs.kdump"
    return Prepared(
        (*US, "convert", str(source), "-t", "kdump", *QUIET, "-o", str(out)),
        {"makedumpfile -R": (makedumpfile(), "-R", str(theirs))},
        lambda _: is_the_guest(out, folder, size, "lzo"),
        (out, theirs),
        stdin=source,
    )


def xendump_to_elf(folder: Path, size: int, *, copied: str, full: bool = False) -> Prepared:
    """Old Xen dump to ELF, against a copy of the output (whose zero pages are holes) or of the input (all written)."""
    dump, p2m = guests.write_xendump(folder, size, full=full)
    out, copy, model = folder / "out.elf", folder / "copy", folder / f"model-{size >> 20}m-{full}.elf"
    ours = (*US, "convert", str(dump), "--p2m", str(p2m), *QUIET, "-o")
    if not model.exists():
        subprocess.run([*ours, str(model)], check=True)
    # The copy is made durable, as ours is.
    peer = ("sh", "-c", f"cp {model if copied == 'out' else dump} {copy} && sync {copy}")
    return Prepared((*ours, str(out)), {"cp": peer}, lambda _: _is_xen_guest(out, size, full=full), (out, copy))


def xen_core_to_elf(folder: Path, size: int) -> Prepared:
    """A core as xl dump-core writes it, whose pages are sorted by pfn."""
    dump, p2m = guests.write_xendump(folder, size)
    core, out, copy = folder / f"guest-{size >> 20}m.xen_core", folder / "out.elf", folder / "copy"
    model = folder / f"model-{size >> 20}m-core.elf"
    if not core.exists():
        make = (*US, "convert", str(dump), "--p2m", str(p2m), "-t", "xen_core", "--allow-loss", *QUIET, "-o", str(core))
        subprocess.run(make, check=True)
    ours = (*US, "convert", str(core), *QUIET, "-o")
    if not model.exists():
        subprocess.run([*ours, str(model)], check=True)
    peer = ("sh", "-c", f"cp {model} {copy} && sync {copy}")
    return Prepared((*ours, str(out)), {"cp": peer}, lambda _: _is_xen_guest(out, size), (out, copy))


def _is_xen_guest(vmcore: Path, size: int, *, full: bool = False) -> None:
    """Compare every page of a vmcore with the model guest, without dumpxlate."""
    _compare(vmcore, size, guests.expected_pages(size, full=full))


def _is_plain_guest(vmcore: Path, size: int) -> None:
    _compare(vmcore, size, guests.ram_pages(size))


def _compare(vmcore: Path, size: int, expected: guests.Blocks) -> None:
    body = np.memmap(vmcore, np.uint8, "r")
    at = np.full(size // guests.PAGE, -1, np.int64)
    for kind, offset, _, paddr, filesz, _ in elf_segments(vmcore):
        if kind == 1:
            first, count = paddr // guests.PAGE, filesz // guests.PAGE
            at[first : first + count] = offset + np.arange(count) * guests.PAGE
    for pfn, block in expected:
        offset = at[pfn]
        if (offset < 0).any():
            raise AssertionError(f"{vmcore}: page {pfn[offset < 0][0]:#x} is missing")
        rows = np.lib.stride_tricks.sliding_window_view(body, guests.PAGE)[offset]
        if not (rows == block).all():
            raise AssertionError(f"{vmcore}: pages from {pfn[0]:#x} on differ")
        at[pfn] = -1
    if (at >= 0).any():
        raise AssertionError(f"{vmcore}: has pages that the guest has not")


def elf_to_bare(folder: Path, size: int, *, format: str) -> Prepared:
    """Memory as it is, against a copy that looks for zeros too."""
    source, out, copy = guests.write_elf(folder, size), folder / f"out.{format}", folder / "copy"
    ours = (*US, "convert", str(source), "-t", format, "--allow-loss", *QUIET, "-o", str(out))
    peer = ("sh", "-c", f"cp --sparse=always {source} {copy} && sync {copy}")
    beside = out.with_name(out.name + ".map")
    return Prepared(ours, {"cp": peer}, lambda _: is_bare_guest(out, size, format), (out, beside, copy))


def is_bare_guest(path: Path, size: int, format: str) -> None:
    """Find each page where a raw image, or the records of a LiME file, say."""
    body = np.memmap(path, np.uint8, "r")
    at = np.arange(size // guests.PAGE) * guests.PAGE
    if format == "lime":
        at = _lime_pages(body, size)
    windows = np.lib.stride_tricks.sliding_window_view(body, guests.PAGE)
    for pfn, block in guests.ram_pages(size):
        if not (windows[at[pfn]] == block).all():
            raise AssertionError(f"{path}: pages from {pfn[0]:#x} on differ")


def _lime_pages(body: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Offset of each pfn in a LiME file."""
    at, place = np.full(size // guests.PAGE, -1, np.int64), 0
    while place < len(body):
        first, last = body[place + 8 : place + 24].view("<u8").tolist()
        pages = (last + 1 - first) // guests.PAGE
        at[first // guests.PAGE :][:pages] = place + 32 + np.arange(pages) * guests.PAGE
        place += 32 + last + 1 - first
    if place != len(body):
        raise AssertionError(f"a record ends at {place}, the file at {len(body)}")
    return at
