"""What every codec keeps, whoever wrote the bytes.

A test class inherits :class:`CodecContract` and brings vectors: bytes that another program made, or that were written
by hand, and the page that they stand for.
"""

from __future__ import annotations

import contextlib
import mmap
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dumpxlate.codecs import BatchDecoder, BatchEncoder
from dumpxlate.errors import CorruptPageError
from tests.builders import guest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dumpxlate.codecs import Codec

__all__ = ["ENCODABLE", "CodecContract", "decode", "memory_limited"]

_GUARD = b"\xa5" * 64

ENCODABLE = {
    "named": guest.page(0x1234),
    "zero": bytes(4096),
    "ones": b"\xff" * 4096,
    "noise": guest.page(7, kind="noise"),
    "text": (b"a page of text, with a number in each line: %d\n" * 200 % tuple(range(200)))[:4096],
    "last byte": bytes(4095) + b"\x01",
    "sparse": (b"\0" * 31 + b"\x07") * 128,
    "pairs": bytes(value // 2 % 256 for value in range(4096)),
    "64 KiB": guest.page(0x55, 65536),
    "64 KiB of noise": guest.page(8, 65536, "noise"),
    "small": b"dumpxlate",
}
"""Pages that an encoder meets, the small one aside."""

every_page = pytest.mark.parametrize("page", ENCODABLE.values(), ids=ENCODABLE)


def decode(codec: Codec, data: bytes, size: int) -> bytes:
    """Decode into the middle of a larger buffer, and see that its borders are as they were; and as bytes."""
    whole = bytearray(_GUARD + b"\x5a" * size + _GUARD)
    try:
        with memoryview(whole) as view:
            codec.decode_into(memoryview(data), view[len(_GUARD) : len(_GUARD) + size])
    except CorruptPageError:
        with pytest.raises(CorruptPageError):
            codec.decode(data, size)
        raise
    finally:
        assert whole[: len(_GUARD)] == _GUARD, "written before the page"
        assert whole[len(_GUARD) + size :] == _GUARD, "written behind the page"
    page = bytes(whole[len(_GUARD) : len(_GUARD) + size])
    alone = codec.decode(data, size)
    assert type(alone) is bytes
    assert alone == page == codec.decode(memoryview(data), size)
    return page


@contextlib.contextmanager
def memory_limited(more: int) -> Iterator[None]:
    """Let the process map only so many bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class CodecContract:
    """Tests that a codec's class inherits."""

    vectors: ClassVar[Sequence[tuple[bytes, bytes]]]
    """Encoded bytes by another hand, and the page that they mean."""

    bombs: ClassVar[Sequence[bytes]]
    """Well-formed data that mean 64 MiB and more, or say so."""

    ignores_trailing: ClassVar[bool] = False
    """Whether the format's own library stops at the end of the page and looks no further."""

    @staticmethod
    def make() -> Codec:
        """Give the codec under test."""
        raise NotImplementedError

    @pytest.fixture
    def codec(self) -> Codec:
        return type(self).make()

    def test_foreign_bytes_decode(self, codec: Codec) -> None:
        assert self.vectors
        for data, page in self.vectors:
            assert decode(codec, data, len(page)) == page

    def test_the_size_must_be_exact(self, codec: Codec) -> None:
        for data, page in self.vectors:
            for size in (len(page) - 1, len(page) + 1, 2 * len(page)):
                if size:
                    with pytest.raises(CorruptPageError) as caught:
                        decode(codec, data, size)
                    assert caught.value.codec == codec.name

    def test_truncated(self, codec: Codec) -> None:
        for data, page in self.vectors:
            for end in {*range(0, len(data), 1 + len(data) // 64), len(data) - 1}:
                with pytest.raises(CorruptPageError):
                    decode(codec, data[:end], len(page))

    def test_trailing_bytes(self, codec: Codec) -> None:
        for data, page in self.vectors:
            for tail in (b"\0", b"x", b"trailing"):
                if self.ignores_trailing:
                    assert decode(codec, data + tail, len(page)) == page
                else:
                    with pytest.raises(CorruptPageError):
                        decode(codec, data + tail, len(page))

    def test_nothing_is_no_page(self, codec: Codec) -> None:
        with pytest.raises(CorruptPageError):
            decode(codec, b"", 4096)

    @settings(suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.binary(max_size=300), size=st.sampled_from([1, 16, 4096]))
    def test_random_bytes_do_no_harm(self, data: bytes, size: int) -> None:
        self._try(data, size)

    @settings(suppress_health_check=[HealthCheck.differing_executors])
    @given(st.data())
    def test_damaged_bytes_do_no_harm(self, draw: st.DataObject) -> None:
        data, page = draw.draw(st.sampled_from(self.vectors))
        broken = bytearray(data)
        for _ in range(draw.draw(st.integers(1, 4))):
            broken[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        self._try(bytes(broken), len(page))

    def _try(self, data: bytes, size: int) -> None:
        """Decode; anything but a CorruptPageError fails, as does a byte written outside."""
        codec = type(self).make()
        with contextlib.suppress(CorruptPageError):
            decode(codec, data, size)

    def test_bombs_take_no_memory(self, codec: Codec) -> None:
        with pytest.raises(CorruptPageError):
            decode(codec, self.bombs[0], 4096)
        for bomb in self.bombs:
            with memory_limited(16 << 20), pytest.raises(CorruptPageError):
                decode(codec, bomb, 4096)

    @every_page
    def test_round_trip(self, codec: Codec, page: bytes) -> None:
        encoded = codec.encode(memoryview(page))
        assert type(encoded) is bytes
        assert decode(codec, encoded, len(page)) == page

    def test_many_encode_as_each_alone(self, codec: Codec) -> None:
        """Pages of all kinds, those that do not shrink among them, as arrays that nothing may write to."""
        if not isinstance(codec, BatchEncoder):
            pytest.skip("encodes one page at a time")
        pages = [page for page in ENCODABLE.values() if len(page) == 4096] * 3
        arrays = [np.frombuffer(page, np.uint8) for page in pages]
        assert [bytes(one) for one in codec.encode_many(arrays)] == [codec.encode(memoryview(page)) for page in pages]
        assert list(codec.encode_many([])) == []
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda _: b"".join(codec.encode_many(arrays)), range(8))
            assert len(set(found)) == 1

    def test_many_decode_as_each_alone(self, codec: Codec) -> None:
        """One that does not decode is told of all, and leaves the borders as they are."""
        if not isinstance(codec, BatchDecoder):
            pytest.skip("decodes one page at a time")
        size = len(self.vectors[0][1])
        vectors = [(data, page) for data, page in self.vectors if len(page) == size] * 3
        data, whole = [memoryview(data) for data, _ in vectors], b"".join(page for _, page in vectors)
        out = bytearray(len(whole) + len(_GUARD))
        out[len(whole) :] = _GUARD
        slots = [memoryview(out)[at : at + size] for at in range(0, len(whole), size)]
        assert codec.decode_many(data, slots)
        assert out == whole + _GUARD
        assert codec.decode_many([], [])
        short, long = codec.encode(memoryview(bytes(size - 1))), codec.encode(memoryview(bytes(size + 1)))
        for bad in (b"", data[0][:-1], short, long, *self.bombs):
            with memory_limited(16 << 20):
                assert not codec.decode_many([memoryview(bad), *data[1:]], slots)
                assert not codec.decode_many([*data[:-1], memoryview(bad)], slots)
            assert out[len(whole) :] == _GUARD
        assert codec.decode_many(data, slots), "a failure must not stay in the codec"
        assert out == whole + _GUARD

    def test_mapped_bytes(self, codec: Codec) -> None:
        """The body of a batch is a slice of a read-only mapping, and the output a slice of an array."""
        data, page = self.vectors[0]
        with mmap.mmap(-1, 3 * 4096 + len(data)) as mapping:
            mapping[777 : 777 + len(data)] = data
            out = np.zeros(3 * len(page) + 1, np.uint8)
            with memoryview(mapping).toreadonly() as view, view[777 : 777 + len(data)] as part:
                codec.decode_into(part, out.data[len(page) + 1 : 2 * len(page) + 1])
        assert out[len(page) + 1 : 2 * len(page) + 1].tobytes() == page
        assert not out[: len(page) + 1].any()
        assert not out[2 * len(page) + 1 :].any()

    def test_threads_share_a_codec(self, codec: Codec) -> None:
        pages = [guest.page(number, kind="noise" if number % 3 == 0 else "named") for number in range(60)]

        def there_and_back(page: bytes) -> bytes:
            return decode(codec, codec.encode(memoryview(page)), len(page))

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(there_and_back, pages)) == pages
