"""Finds the way that a pipe can go in one pass, if there is one, and goes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dumpxlate.errors import FormatError, NeedsAllError, UnknownFormatError
from dumpxlate.format import Concatenating, Confidence, OnePass, OnePassWrapper, WriteOptions
from dumpxlate.io.sink import PipeSink
from dumpxlate.io.source import BytesSource
from dumpxlate.registry import detect, find_format, is_wrapper
from dumpxlate.streaming.job import Job
from dumpxlate.streaming.memory import convert_pieces
from dumpxlate.streaming.records import convert_records
from dumpxlate.writing.destination import FLATTENED

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dumpxlate.dump import Dump
    from dumpxlate.format import Format, Wrapper
    from dumpxlate.io.pipe import Pipe
    from dumpxlate.progress import Progress
    from dumpxlate.writing.pump import BadPages
    from dumpxlate.writing.report import Report

__all__ = ["convert_pipe"]

_HEAD = 64 << 10
"""Bytes by which the input is recognised."""


def convert_pipe(
    pipe: Pipe,
    target: str | os.PathLike[str] | PipeSink,
    format: str,
    options: WriteOptions | None = None,
    *,
    source_format: str | None = None,
    allow_loss: bool = False,
    salvage: bool = False,
    overwrite: bool = False,
    flattened: bool = False,
    bad_pages: BadPages = "stop",
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **more: Any,
) -> Report:
    """Convert a pipe in one pass.

    A file appears under its name only when it is complete, as with ``dumpxlate.convert``. What went into a pipe before
    something turns out to be wrong is gone.

    Args:
        pipe: the input.
        target: path of the output, or a pipe.
        format: name of the format to write; ``flattened`` is kdump, flattened.
        options: what the format may be asked for.
        source_format: name of the input's format; found out by its first bytes if not given.
        allow_loss: write although the target cannot carry something.
        salvage: write what there is of an input that ends too early.
        overwrite: replace an existing file.
        flattened: wrap the output into makedumpfile's records for pipes; done unasked where a pipe needs it.
        bad_pages: only "stop": pages are not decoded.
        threads: 0 to read in this thread; else one of its own reads ahead.
        progress: called after each piece.
        more: further arguments of ``dumpxlate.pipeline.convert_set``, none of which can be done in one pass.

    Raises:
        NeedsAllError: one pass will not do; nothing was taken from the pipe, and no output made.
        UnknownFormatError: nothing comes, or there is no format of a name that was given.
        LossyConversionError: the target cannot carry something, and ``allow_loss`` is not given.
        CorruptDumpError: the input is broken or ends too early, and ``salvage`` is not given.
        OutputError: the target exists, or is no regular file.
    """
    if format == FLATTENED:
        format, flattened = "kdump", True
    elif format == "kdump" and isinstance(target, PipeSink):
        flattened = True  # its writer goes back
    job = Job(pipe, target, format, flattened, allow_loss, salvage, overwrite, threads, progress)
    _refuse(pipe, {**more, **dict.fromkeys((options or WriteOptions()).given, True), "bad_pages": bad_pages != "stop"})
    find_format(format)
    found = _recognised(pipe, source_format)
    try:
        if is_wrapper(found):
            return convert_records(job, _records(job, found))
        return convert_pieces(job, _pieces(job, cast("Format", found)))
    except FormatError as error:
        error.path = error.path or pipe.name
        raise


def _refuse(pipe: Pipe, more: Mapping[str, Any]) -> None:
    """Refuse what cannot be done in one pass, if it is asked for.

    Raises:
        NeedsAllError: something is.
    """
    asked = [f"--{name.replace('_', '-')}" for name in more if more[name]]
    if asked:
        raise NeedsAllError(", ".join(asked), path=pipe.name)


def _recognised(pipe: Pipe, name: str | None) -> Format | Wrapper:
    """Find out what a pipe brings by its first bytes.

    Raises:
        UnknownFormatError: nothing comes, or there is no format of that name.
        NeedsAllError: its first bytes do not tell.
    """
    head = BytesSource(pipe.peek(_HEAD), pipe.name)
    if not head.size:
        raise UnknownFormatError("is empty", path=pipe.name)
    given = find_format(name) if name else None
    try:
        found, match = detect(head)
    except FormatError:
        found, match = None, None
    if given and not (found and is_wrapper(found)):
        return given
    if found is None or match is None or match.confidence is Confidence.FALLBACK:
        raise NeedsAllError("its first bytes do not tell what it is (--from does)", path=pipe.name)
    return found


def _records(job: Job, wrapper: Wrapper) -> Iterator[Sequence[tuple[int, memoryview]]]:
    """Read a container whose inside is what is asked for.

    Raises:
        NeedsAllError: it is not, or the container cannot be read in one pass.
    """
    name, pipe = wrapper.name, job.pipe
    if not isinstance(wrapper, OnePassWrapper):
        raise NeedsAllError(f"what is {name} is unpacked first", path=pipe.name)
    if job.salvage:
        raise NeedsAllError(f"salvage of what is {name}", path=pipe.name)
    try:
        inside = detect(wrapper.unwrap(BytesSource(pipe.peek(_HEAD), pipe.name)))[0].name
    except FormatError:
        inside = "something else"
    if inside != job.format:
        raise NeedsAllError(f"{inside} in {name} becomes {job.format}", path=pipe.name)
    if isinstance(job.target, PipeSink) and not job.flattened:
        raise NeedsAllError(f"{name} into a pipe that is not", path=pipe.name)
    return wrapper.records(pipe)


def _pieces(job: Job, format: Format) -> Iterator[Dump]:
    """Read memory that can be written in pieces.

    Raises:
        NeedsAllError: it cannot, or the input is not read in one pass.
    """
    if not isinstance(format, OnePass):
        raise NeedsAllError(f"{format.name} is not read in one pass", path=job.pipe.name)
    if not isinstance(find_format(job.format), Concatenating):
        raise NeedsAllError(f"{job.format} begins with what is known of all memory", path=job.pipe.name)
    return format.pieces(job.pipe)
