"""The cases, in the order of the table."""

from __future__ import annotations

from functools import partial

from tests.bench import converting, piping, qemu, reading
from tests.bench.case import Case

CASES = (
    Case("elf-kdump-zlib", "makedumpfile -c", 4, partial(converting.elf_to_kdump, codec="zlib")),
    Case("elf-kdump-lzo", "makedumpfile -l", 1.2, partial(converting.elf_to_kdump, codec="lzo")),
    Case("elf-kdump-snappy", "our lzo", 1.2, partial(converting.elf_to_kdump, codec="snappy")),
    Case("elf-kdump-zstd", "our lzo", 1.5, partial(converting.elf_to_kdump, codec="zstd")),
    Case("kdump-kdump", "cp of the output, and sync", 0.7, converting.kdump_to_kdump),
    Case("kdump-elf-lzo", "libkdumpfile in C, every page", 2, partial(converting.kdump_to_elf, codec="lzo")),
    Case("kdump-elf-zlib", "libkdumpfile in C, every page", 2, partial(converting.kdump_to_elf, codec="zlib")),
    Case("kdump-elf-zstd", "libkdumpfile in C, every page", 2, partial(converting.kdump_to_elf, codec="zstd")),
    Case("flat-kdump", "makedumpfile -R", 2, converting.flattened_to_kdump),
    Case("flat-read", "drgn's libkdumpfile, every page", 5, reading.flattened),
    Case(
        "xendump-elf", "cp of the output (holes stay), and sync", 0.8, partial(converting.xendump_to_elf, copied="out")
    ),
    Case("xendump-elf-in", "cp of the input, and sync", 0.8, partial(converting.xendump_to_elf, copied="in")),
    Case(
        "xendump-elf-full",
        "cp of the output of a guest without zero pages, and sync",
        0.8,
        partial(converting.xendump_to_elf, copied="out", full=True),
    ),
    Case("xen_core-elf", "cp of the output (holes stay), and sync", 0.8, converting.xen_core_to_elf),
    Case("elf-raw", "cp --sparse=always, and sync", 0.8, partial(converting.elf_to_bare, format="raw")),
    Case("elf-lime", "cp --sparse=always, and sync", 0.8, partial(converting.elf_to_bare, format="lime")),
    Case("pipe-lime", "cat | cat", 0.7, partial(piping.memory, format="lime")),
    Case("pipe-raw", "cat | cat", 0.7, partial(piping.memory, format="raw")),
    Case("pipe-flat", "cat | cat", 0.7, piping.flattened),
    Case("pipe-flat-kdump", "makedumpfile -R", 2, piping.flattened_to_kdump),
    Case("qemu_core-elf", "cp of the output (holes stay), and sync", 1 / 1.5, qemu.core_to_elf),
    Case(
        "qemu_core-profile",
        "gdb with QEMU's script, 256 MiB",
        5,
        partial(qemu.core_against_gdb, knowledge="profile"),
        grows=False,
    ),
    Case(
        "qemu_core-debug",
        "gdb with QEMU's script, 256 MiB",
        5,
        partial(qemu.core_against_gdb, knowledge="debug"),
        grows=False,
    ),
    Case(
        "qemu_core-gdb",
        "gdb with QEMU's script, 2 GiB",
        20,
        partial(qemu.core_against_gdb, knowledge="profile", mib=2048),
        grows=False,
    ),
    Case("compare", "cmp of the raw images", 0.7, reading.compare),
    Case("random-elf", "libkdumpfile's Python binding; drgn", 2, partial(reading.random_pages, format="elf")),
    Case("random-kdump", "libkdumpfile's Python binding; drgn", 2, partial(reading.random_pages, format="kdump")),
    Case(
        "random-elf-batch",
        "libkdumpfile's Python binding; drgn",
        2,
        partial(reading.random_pages, format="elf", in_batches=True),
    ),
    Case(
        "random-kdump-batch",
        "libkdumpfile's Python binding; drgn",
        2,
        partial(reading.random_pages, format="kdump", in_batches=True),
    ),
    Case("info", 'python -c "import numpy"', 1 / 2.5, reading.info, grows=False),
)
