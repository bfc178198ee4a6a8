"""Codecs against bytes of other programs and of our own hand, and how they are looked up."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
import sys
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dumpxlate.codecs import BatchDecoder, BatchEncoder, Codec, available, codec_for, from_name, parse_codec
from dumpxlate.codecs.lzo import LzoCodec
from dumpxlate.codecs.raw import RawCodec
from dumpxlate.codecs.rle import RleCodec
from dumpxlate.codecs.snappy import SnappyCodec
from dumpxlate.codecs.zlib import ZlibCodec
from dumpxlate.codecs.zstd import ZstdCodec
from dumpxlate.errors import CorruptPageError, MissingCodecError
from dumpxlate.pages import CodecId
from tests.builders import codecs as built
from tests.builders import guest
from tests.contracts.codec import ENCODABLE, CodecContract, decode, memory_limited

PS = 4096
NAMED, NOISE, ZEROS = guest.page(0x1234), guest.page(7, kind="noise"), bytes(PS)

# What liblzo2 2.10, libsnappy 1.1.9 and zstd 1.5.4 made of this page.
MIXED = ((b"page 1 page 2 page 3 " + bytes(2000) + b"dumpxlate" * 20 + bytes(range(64))) * 3)[:PS]
_MIDDLE = (
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738"
    "393a3b3c3d3e3f"
)
LZO_1 = bytes.fromhex(
    "0470616765203120990032bb003320002000000000000000b500000664756d70786c617465208a2000002e"
    + _MIDDLE
    + "23442320000000000000f960230b0000000000000000000000000000110000"
)
LZO_999 = bytes.fromhex(
    "1870616765203120990032bb003320002000000000000000b500000664756d70786c617465208a2000002e"
    + _MIDDLE
    + "20000000000000000d6023110000"
)
SNAPPY = bytes.fromhex(
    "8020187061676520312005070032090708332000" + "fe0100" * 31 + "3a01002064756d70786c617465fe0900fe0900aa0900f040"
    "" + _MIDDLE + "70" + "fed908" * 28 + "96d908"
)
ZSTD_SIZED = bytes.fromhex(
    "28b52ffd60000f7d030094057061676520312070616765203233200064756d70786c617465"
    + _MIDDLE
    + "05001f73037e009c01058362a124f3b8ef0a2b5f"
)
ZSTD_CHECKED = ZSTD_SIZED[:4] + b"\x64" + ZSTD_SIZED[5:] + bytes.fromhex("f3503b5f")
ZSTD_STREAMED = bytes.fromhex(
    "28b52ffd0448850300f4057061676520312070616765203220706167652033200064756d70786c617465"
    + _MIDDLE
    + "030000c9dc807f44b15007f33f6802f3503b5f"
)


def zlib_stored(page: bytes) -> bytes:
    """A zlib stream of one stored block, by RFC 1950 and 1951."""
    block = b"\x01" + struct.pack("<HH", len(page), len(page) ^ 0xFFFF) + page
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(page))


def foreign(library: str) -> ctypes.CDLL:
    """The C library behind a format, where this machine has it."""
    path = ctypes.util.find_library(library)
    if path is None:
        pytest.skip(f"lib{library} is not installed")
    return ctypes.CDLL(path)


class TestRaw(CodecContract):
    vectors: ClassVar = [(b"abc", b"abc"), (NAMED, NAMED), (ZEROS, ZEROS)]
    bombs: ClassVar = [bytes(64 << 20)]

    @staticmethod
    def make() -> Codec:
        return RawCodec()

    def test_is_itself(self) -> None:
        assert RawCodec().encode(memoryview(b"abc")) == b"abc"


class ZlibContract(CodecContract):
    vectors: ClassVar = [
        *((zlib.compress(page, level), page) for page in (NAMED, NOISE, ZEROS, MIXED) for level in (1, 6, 9)),
        (zlib.compress(NAMED, 0), NAMED),
        (zlib_stored(NOISE), NOISE),
        (bytes.fromhex("789c4b4c4a0600024d0127"), b"abc"),
    ]
    bombs: ClassVar = [zlib.compress(bytes(64 << 20), 9), zlib.compress(bytes(PS + 1))]
    ignores_trailing: ClassVar = True

    def test_a_wrong_checksum_is_no_page(self, codec: Codec) -> None:
        data = bytearray(zlib.compress(NAMED))
        data[-1] ^= 1
        with pytest.raises(CorruptPageError):
            decode(codec, bytes(data), PS)

    def test_a_preset_dictionary_is_no_page(self, codec: Codec) -> None:
        packer = zlib.compressobj(zdict=NAMED[:64])
        with pytest.raises(CorruptPageError):
            decode(codec, packer.compress(NAMED) + packer.flush(), PS)

    def test_small_windows(self, codec: Codec) -> None:
        for bits in (9, 12, 15):
            packer = zlib.compressobj(1, wbits=bits)
            assert decode(codec, packer.compress(MIXED) + packer.flush(), PS) == MIXED

    @pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)
    def test_zlib_reads_it(self, codec: Codec, page: bytes) -> None:
        assert zlib.decompress(codec.encode(memoryview(page))) == page

    def test_level_steers_size(self) -> None:
        data = program_pages()[0]
        sizes = [sum(len(from_name(f"zlib:{level}").encode(memoryview(page))) for page in data) for level in (1, 6)]
        assert sizes[1] < 0.98 * sizes[0]


def program_pages() -> tuple[list[bytes], str]:
    """Pages of a program, as a kernel dump is full of them."""
    path = max(Path(np.__file__).parent.rglob("*.so"), key=lambda file: file.stat().st_size)
    data = path.read_bytes()
    pages = [data[at : at + PS] for at in range(0, len(data) - PS, PS * 40)]
    return [page for page in pages if page.count(0) < PS], path.name


class TestZlib(ZlibContract):
    @staticmethod
    def make() -> Codec:
        return ZlibCodec()

    def test_as_small_as_makedumpfile(self) -> None:
        """makedumpfile -c calls zlib with Z_BEST_SPEED."""
        pytest.importorskip("deflate")
        pages, name = program_pages()
        assert len(pages) > 50, name
        ours = sum(len(ZlibCodec().encode(memoryview(page))) for page in pages)
        assert ours <= 1.03 * sum(len(zlib.compress(page, 1)) for page in pages)


class TestZlibOfPython(ZlibContract):
    """The same without libdeflate."""

    @staticmethod
    def make() -> Codec:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "deflate", None)
            codec = ZlibCodec()
        assert codec._compress is zlib.compress
        return codec


class TestLzo(CodecContract):
    vectors: ClassVar = [
        (LZO_1, MIXED),
        (LZO_999, MIXED),
        (b"\x15abcd\x11\0\0", b"abcd"),
        # 18 literals, then four bytes from 18 back: M3 of length 4, distance 18.
        (bytes([17 + 18]) + b"eighteen literals!" + bytes([0x20 | 2]) + struct.pack("<H", 17 << 2) + b"\x11\0\0",
         b"eighteen literals!eigh"),
        (built.lzo(NAMED), NAMED),
        (built.lzo(ZEROS), ZEROS),
        (built.lzo(guest.page(5, 65536)), guest.page(5, 65536)),
    ]  # fmt: skip
    bombs: ClassVar = [
        # The library lets its output grow: the first means 1 MiB and is short enough to be tried.
        b"\x12\0" + b"\x20" + bytes(4000) + b"\x01\0\0" + b"\x11\0\0",
        b"\x12\0" + b"\x20" + bytes(300_000) + b"\x01\0\0" + b"\x11\0\0",
    ]

    @staticmethod
    def make() -> Codec:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "lzo", None)
            return LzoCodec()

    def test_noise_grows_and_is_read_back(self, codec: Codec) -> None:
        data = built.lzo(NOISE)
        assert len(data) > PS
        assert decode(codec, data, PS) == NOISE

    def test_no_content_gets_into_a_message(self, codec: Codec) -> None:
        """The library's error carries what it had unpacked, and so would a traceback that shows it."""
        with pytest.raises(CorruptPageError, match=r"lzo: E\w+\.\w+$") as caught:
            decode(codec, built.lzo(b"a secret that no message should show" * 4) + b"more", PS)
        assert caught.value.__suppress_context__

    @pytest.mark.peer
    @pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)
    def test_liblzo_reads_it(self, codec: Codec, page: bytes) -> None:
        library = foreign("lzo2")
        data = codec.encode(memoryview(page))
        out, size = ctypes.create_string_buffer(len(page)), ctypes.c_size_t(len(page))
        status = library.lzo1x_decompress_safe(data, ctypes.c_size_t(len(data)), out, ctypes.byref(size), None)
        assert (status, size.value, out.raw) == (0, len(page), page)


@pytest.mark.skipif(find_spec("lzo") is None, reason="python-lzo (the lzo extra) is not installed")
class TestLzoOfPythonLzo(TestLzo):
    """The same with the encoder of the ``lzo`` extra."""

    @staticmethod
    def make() -> Codec:
        return LzoCodec()


class TestSnappy(CodecContract):
    vectors: ClassVar = [
        (SNAPPY, MIXED),
        (b"\x05\x10abcde", b"abcde"),
        # length 12; literal of 4; copy with a 1-byte offset: 8 bytes from 4 back.
        (b"\x0c" + b"\x0cwxyz" + bytes([(8 - 4) << 2 | 1, 4]), b"wxyz" * 3),
        (built.snappy(NAMED), NAMED),
        (built.snappy(ZEROS), ZEROS),
        (built.snappy(NOISE), NOISE),
        (built.snappy(guest.page(5, 65536)), guest.page(5, 65536)),
    ]
    bombs: ClassVar = [
        b"\xff\xff\xff\xff\x0f" + b"\0a" + b"\xfe\x01\0" * 1000,
        built.snappy(guest.page(0, 64) * (1 << 20)),
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\0a",
    ]

    @staticmethod
    def make() -> Codec:
        return SnappyCodec()

    @pytest.mark.peer
    @pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)
    def test_libsnappy_reads_it(self, codec: Codec, page: bytes) -> None:
        library = foreign("snappy")
        data = codec.encode(memoryview(page))
        out, size = ctypes.create_string_buffer(len(page)), ctypes.c_size_t(len(page))
        status = library.snappy_uncompress(data, ctypes.c_size_t(len(data)), out, ctypes.byref(size))
        assert (status, size.value, out.raw) == (0, len(page), page)


def zstd_frame(header: bytes, *blocks: tuple[int, int, bytes]) -> bytes:
    """A frame by RFC 8878; a block is its type (0 raw, 1 RLE), size and bytes."""
    frame = b"\x28\xb5\x2f\xfd" + header
    for number, (kind, size, body) in enumerate(blocks, 1):
        frame += struct.pack("<I", size << 3 | kind << 1 | (number == len(blocks)))[:3] + body
    return frame


class TestZstd(CodecContract):
    vectors: ClassVar = [
        (ZSTD_SIZED, MIXED),
        (ZSTD_CHECKED, MIXED),
        (ZSTD_STREAMED, MIXED),
        (zstd_frame(b"\x20\x04", (0, 4, b"abcd")), b"abcd"),
        (zstd_frame(b"\x00\x10", (0, 4, b"abcd"), (1, 1000, b"x")), b"abcd" + b"x" * 1000),
        (built.zstd(NAMED), NAMED),
        (built.zstd(ZEROS), ZEROS),
        (built.zstd(NOISE), NOISE),
        (built.zstd(guest.page(5, 65536)), guest.page(5, 65536)),
    ]
    bombs: ClassVar = [
        zstd_frame(b"\x00\x38", *[(1, 128 << 10, b"\0")] * 512),
        zstd_frame(b"\x80\x38" + struct.pack("<I", 64 << 20), *[(1, 128 << 10, b"\0")] * 512),
        zstd_frame(b"\xe0" + struct.pack("<Q", 1 << 60), (1, 128 << 10, b"\0")),
        zstd_frame(b"\xe0" + struct.pack("<Q", 8 << 30), (1, 128 << 10, b"\0")),
    ]
    ignores_trailing: ClassVar = True

    @staticmethod
    def make() -> Codec:
        return ZstdCodec()

    def test_a_skippable_frame_is_no_page(self, codec: Codec) -> None:
        with pytest.raises(CorruptPageError):
            decode(codec, struct.pack("<II", 0x184D2A50, 8) + b"skipped!" + ZSTD_SIZED, PS)

    def test_many_at_once(self) -> None:
        codec = ZstdCodec()
        assert isinstance(codec, BatchDecoder)
        pages = [MIXED, NAMED, NOISE, ZEROS]
        data = [memoryview(one) for one in (ZSTD_SIZED, *map(built.zstd, pages[1:]))]
        out = bytearray(4 * PS)
        slots = [memoryview(out)[at : at + PS] for at in range(0, 4 * PS, PS)]
        assert codec.decode_many(data, slots)
        assert out == b"".join(pages)
        assert codec.decode_many([], [])

    def test_many_with_one_that_fails(self) -> None:
        codec = ZstdCodec()
        out = bytearray(3 * PS)
        slots = [memoryview(out)[at : at + PS] for at in range(0, 3 * PS, PS)]
        good = memoryview(ZSTD_SIZED)
        for bad in (b"", b"x", ZSTD_SIZED[:-1], built.zstd(bytes(PS + 1)), built.zstd(bytes(PS - 1)), *self.bombs):
            with memory_limited(16 << 20):
                assert not codec.decode_many([good, memoryview(bad), good], slots)
        assert codec.decode_many([good] * 3, slots), "a failure must not stay in the decompressor"
        assert out == MIXED * 3

    def test_without_the_libraries_own_batches(self, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
        """zstandard's fallback on cffi has none of them."""
        assert isinstance(codec, BatchEncoder)
        pages = [np.frombuffer(page, np.uint8) for page in (MIXED, NOISE)]
        one_by_one = [bytes(one) for one in codec.encode_many(pages)]
        monkeypatch.setattr(codec, "_has_many", False)
        assert codec.encode_many(pages) == one_by_one

    def test_each_thread_has_its_own_tools(self) -> None:
        """A (de)compressor of zstandard must not be used by two threads at once."""
        codec = ZstdCodec()
        with ThreadPoolExecutor(1) as pool:
            for tool in (codec._compressor, codec._decompressor):
                assert tool() is tool()
                assert pool.submit(tool).result() is not tool()

    def test_level_steers_size(self) -> None:
        sizes = [len(from_name(f"zstd:{level}").encode(memoryview(program_pages()[0][3]))) for level in (-7, 1, 19)]
        assert sizes[0] > sizes[1] > sizes[2]

    @pytest.mark.peer
    @pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)
    def test_libzstd_reads_it(self, codec: Codec, page: bytes) -> None:
        library = foreign("zstd")
        library.ZSTD_decompress.restype = ctypes.c_size_t
        data = codec.encode(memoryview(page))
        out = ctypes.create_string_buffer(len(page))
        size = library.ZSTD_decompress(out, ctypes.c_size_t(len(page)), data, ctypes.c_size_t(len(data)))
        assert (size, out.raw) == (len(page), page)


def rle_naive(data: bytes) -> bytes:
    """The code as crash's lkcd_uncompress_RLE understands it, a byte at a time."""
    out, at = bytearray(), 0
    while at < len(data):
        if data[at]:
            out.append(data[at])
            at += 1
        elif data[at + 1]:
            out += data[at + 2 : at + 3] * (data[at + 1] + 1)
            at += 3
        else:
            out.append(0)
            at += 2
    return bytes(out)


class TestRle(CodecContract):
    vectors: ClassVar = [
        (b"abc", b"abc"),
        (b"a\0\0b", b"a\0b"),
        (b"\0\x01\0", b"\0\0"),
        (b"\0\x02a", b"aaa"),
        (b"\0\xff\0" * 16, ZEROS),
        (b"x\0\xff\0\0\x01\0y", b"x" + bytes(256 + 2) + b"y"),
        (b"\0\xfe\x01\0\xff\xff", b"\x01" * 255 + b"\xff" * 256),
    ]
    bombs: ClassVar = [b"\0\xff\0" * 300_000]

    @staticmethod
    def make() -> Codec:
        return RleCodec()

    @pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)
    def test_a_naive_decoder_reads_it(self, codec: Codec, page: bytes) -> None:
        assert rle_naive(codec.encode(memoryview(page))) == page

    def test_encodes_as_the_dumper_did(self, codec: Codec) -> None:
        for data, page in self.vectors:
            assert codec.encode(memoryview(page)) == data

    @pytest.mark.parametrize("data", [b"abc\0", b"abc\0\x05", b"\0", b"a\0\x01"])
    def test_an_escape_cut_short(self, codec: Codec, data: bytes) -> None:
        for size in range(1, 12):
            with pytest.raises(CorruptPageError):
                decode(codec, data, size)


class TestLookup:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("raw", (CodecId.RAW, None)),
            ("zlib", (CodecId.ZLIB, None)),
            ("zlib:9", (CodecId.ZLIB, 9)),
            ("ZSTD:3", (CodecId.ZSTD, 3)),
            ("zstd:-7", (CodecId.ZSTD, -7)),
            ("lzo", (CodecId.LZO, None)),
            ("snappy", (CodecId.SNAPPY, None)),
            ("rle", (CodecId.RLE, None)),
        ],
    )
    def test_names(self, text: str, expected: tuple[CodecId, int | None]) -> None:
        assert parse_codec(text) == expected
        codec = from_name(text)
        assert (codec.id, codec.name) == (expected[0], expected[0].name.lower())
        assert codec is codec_for(*expected)

    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ("gzip", "known are raw, zlib, lzo, snappy, zstd, rle"),
            ("", "known are raw"),
            (":3", "known are raw"),
            ("zlib:0", "zlib: level 0: expected 1 to 9"),
            ("zlib:10", "expected 1 to 9"),
            ("zstd:23", "zstd: level 23: expected -7 to 22"),
            ("zstd:", "level '' is not a number"),
            ("zstd:fast", "level 'fast' is not a number"),
            ("lzo:1", "lzo has no levels"),
            ("raw:0", "raw has no levels"),
        ],
    )
    def test_wrong_names(self, text: str, advice: str) -> None:
        with pytest.raises(ValueError, match=advice):
            parse_codec(text)

    def test_wrong_level(self) -> None:
        with pytest.raises(ValueError, match="expected 1 to 9"):
            codec_for(CodecId.ZLIB, 12)

    @pytest.mark.parametrize(("name", "library"), [("lzo", "lzallright"), ("snappy", "cramjam"), ("zstd", "zstandard")])
    def test_missing_library(self, name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert available()[name]
        codec_for.cache_clear()
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingCodecError, match=f"{name}-compressed: install {library}") as caught:
            from_name(name)
        assert (caught.value.codec, caught.value.extra) == (name, library)
        assert available() == {one.name.lower(): one.name.lower() != name for one in CodecId}

    def test_zlib_is_never_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codec_for.cache_clear()
        monkeypatch.setitem(sys.modules, "deflate", None)
        assert available()["zlib"]
        codec_for.cache_clear()

    def test_python_lzo_encodes_where_it_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = types.ModuleType("lzo")
        fake.compress = lambda page, level, header: b"%d %d %d" % (len(page), level, header)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lzo", fake)
        assert LzoCodec().encode(memoryview(NAMED)) == b"4096 1 0"
        codec = LzoCodec()
        assert isinstance(codec, BatchEncoder)
        assert codec.encode_many([np.zeros(PS, np.uint8), np.zeros(64, np.uint8)]) == [b"4096 1 0", b"64 1 0"]
        assert decode(codec, LZO_1, PS) == MIXED

    def test_what_writes_dumps_encodes_by_the_batch(self) -> None:
        named = {id.name for id in CodecId if isinstance(codec_for(id), BatchEncoder)}
        assert named == {"ZLIB", "LZO", "SNAPPY", "ZSTD"}
