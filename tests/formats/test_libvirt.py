"""libvirt's save files: the header in both byte orders, every compression, the XML, and what was interrupted."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import struct
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import dumpxlate
from dumpxlate import errors
from dumpxlate.formats.libvirt import FORMAT
from dumpxlate.io.source import BytesSource
from dumpxlate.registry import detect, open_from
from tests.builders.codecs import lzop
from tests.builders.guest import page
from tests.builders.qemu_stream import block_table, libvirt, mapped_ram, ram, stream
from tests.builders.qemu_stream import page as sent

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from dumpxlate.dump import Dump

    Cli = Callable[..., subprocess.CompletedProcess[str]]

BODY = stream(ram(block_table({"pc.ram": 0x4000}), sent(0, page(0), "pc.ram") + sent(2, page(2))))
PACKERS: list[Callable[[bytes], bytes]] = [
    bytes, gzip.compress, bz2.compress, lzma.compress, lzop, zstandard.ZstdCompressor().compress,
]  # fmt: skip


def open_bytes(data: bytes) -> Dump:
    return open_from([BytesSource(data)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", range(6))
def test_every_compression_in_both_byte_orders(order: str, compression: int) -> None:
    with open_bytes(libvirt(PACKERS[compression](BODY), order=order, compression=compression)) as dump:
        assert dump.format == "qemu_stream"
        assert dump.variant == f"migration stream, in {'compressed, ' if compression else ''}libvirt"
        assert dump.read_pages([0, 2]).tobytes() == page(0) + page(2)
        assert dump.attributes["compression"] == ["raw", "gzip", "bzip2", "xz", "lzop", "zstd"][compression]
        assert not dump.damage


def test_the_sparse_format_counts_from_the_start_of_the_file() -> None:
    head = len(libvirt(b""))
    inner = mapped_ram({"pc.ram": {3: page(3)}}, {"pc.ram": 0x4000}, before=head)
    with open_bytes(libvirt(inner, compression=6)) as dump:
        assert dump.read_pages([3]).tobytes() == page(3)
        assert dump.attributes["compression"] == "sparse"


@pytest.mark.parametrize("version", [1, 2])
def test_the_header_is_told(version: int) -> None:
    with open_bytes(libvirt(BODY, version=version, cookie=b"<cookie/>\0")) as dump:
        told = dump.attributes
        assert (told["domain"], told["libvirt_version"], told["was_running"]) == ("web", version, 1)
        assert told["domain_xml"] == "<domain type='kvm'><name>web</name></domain>"


def test_info_shows_the_xml_as_it_stands(cli: Cli, tmp_path: Path) -> None:
    xml = '<!DOCTYPE d [<!ENTITY e "eeee">]>\n<domain>\n  <name>a&e;\x1b[31m</name>\n  <title>\u00fc</title>\n</domain>'
    (tmp_path / "web.save").write_bytes(libvirt(BODY, xml=xml))
    shown = cli("info", "web.save").stdout
    assert "<name>a&e;\\x1b[31m</name>" in shown
    assert "\x1b" not in shown
    assert sum("<title>" in line for line in shown.splitlines()) == 1
    told = json.loads(cli("info", "--json", "web.save").stdout)["attributes"]
    assert told["domain_xml"] == xml.replace("\x1b", "\\x1b")
    assert "domain" not in told


def test_a_long_xml_is_cut_and_bytes_that_are_no_text_are_replaced() -> None:
    with open_bytes(libvirt(BODY, xml="x" * (300 << 10))) as dump:
        assert len(str(dump.attributes["domain_xml"])) == 256 << 10
    with open_bytes(libvirt(BODY).replace(b"web", b"w\xffb")) as dump:
        assert dump.attributes["domain"] == "w\ufffdb"


def test_what_was_interrupted_is_refused_unless_it_is_to_be_salvaged(tmp_path: Path) -> None:
    partial = libvirt(BODY, magic=b"LibvirtQemudPart")
    (tmp_path / "partial").write_bytes(partial)
    with dumpxlate.open(tmp_path / "partial") as dump:
        assert dump.damage == ("libvirt was interrupted while it wrote this file (LibvirtQemudPart)",)
        with pytest.raises(errors.CorruptDumpError, match=r"interrupted.*--salvage"):
            dumpxlate.convert(dump, tmp_path / "out")
        dumpxlate.convert(dump, tmp_path / "out", salvage=True)
    with dumpxlate.open(tmp_path / "out") as dump:
        assert dump.read_pages([2]).tobytes() == page(2)
    with open_bytes(partial[: -len(BODY) + 5000]) as dump:
        assert len(dump.damage) == 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (libvirt(BODY, version=3), "version 3"),
        (libvirt(BODY, version=0), "version 0"),
        (libvirt(BODY, compression=7), "format 7"),
        (libvirt(BODY, lies={"length": 1 << 31}), "truncated: needs"),
        (libvirt(BODY, lies={"cookie": 1 << 20}), "a cookie at"),
        (libvirt(b""), "truncated"),
        (libvirt(BODY)[:60], "truncated"),
        (libvirt(BODY, lies={"length": 100}), "not a dump in a known format"),
    ],
)
def test_headers_that_cannot_be(data: bytes, error: str) -> None:
    with pytest.raises(errors.FormatError, match=error):
        open_bytes(data)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 120), st.binary(min_size=1, max_size=8), st.booleans())
def test_changed_headers_end_in_typed_errors(at: int, noise: bytes, cut: bool) -> None:
    whole = libvirt(BODY)
    data = whole[:at] + noise + whole[at + len(noise) :]
    with contextlib.suppress(errors.DumpxlateError):
        open_bytes(data[:at] if cut else data).close()


def test_detection() -> None:
    for magic in (b"LibvirtQemudSave", b"LibvirtQemudPart"):
        assert detect(BytesSource(libvirt(BODY, magic=magic)))[0] is FORMAT
        assert FORMAT.detect(BytesSource(magic[:-1])) is None
    assert struct.calcsize("=16s5I56x") == 92
