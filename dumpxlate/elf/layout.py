"""ELF headers, as in elf.h (System V ABI; glibc and Linux have the same)."""

from __future__ import annotations

from typing import Annotated

from dumpxlate.structs import U8, U16, U32, U64, struct

__all__ = [
    "Elf32_Ehdr",
    "Elf32_Phdr",
    "Elf32_Shdr",
    "Elf32_Sym",
    "Elf64_Ehdr",
    "Elf64_Phdr",
    "Elf64_Shdr",
    "Elf64_Sym",
]


@struct
class Elf64_Ehdr:  # noqa: N801 - the reference header's name
    """Header of a 64-bit file."""

    e_ident: Annotated[bytes, 16]
    e_type: U16
    e_machine: U16
    e_version: U32
    e_entry: U64
    e_phoff: U64
    e_shoff: U64
    e_flags: U32
    e_ehsize: U16
    e_phentsize: U16
    e_phnum: U16
    e_shentsize: U16
    e_shnum: U16
    e_shstrndx: U16


@struct
class Elf32_Ehdr:  # noqa: N801
    """Header of a 32-bit file."""

    e_ident: Annotated[bytes, 16]
    e_type: U16
    e_machine: U16
    e_version: U32
    e_entry: U32
    e_phoff: U32
    e_shoff: U32
    e_flags: U32
    e_ehsize: U16
    e_phentsize: U16
    e_phnum: U16
    e_shentsize: U16
    e_shnum: U16
    e_shstrndx: U16


@struct
class Elf64_Phdr:  # noqa: N801
    """Program header of a 64-bit file."""

    p_type: U32
    p_flags: U32
    p_offset: U64
    p_vaddr: U64
    p_paddr: U64
    p_filesz: U64
    p_memsz: U64
    p_align: U64


@struct
class Elf32_Phdr:  # noqa: N801
    """Program header of a 32-bit file."""

    p_type: U32
    p_offset: U32
    p_vaddr: U32
    p_paddr: U32
    p_filesz: U32
    p_memsz: U32
    p_flags: U32
    p_align: U32


@struct
class Elf64_Shdr:  # noqa: N801
    """Section header of a 64-bit file."""

    sh_name: U32
    sh_type: U32
    sh_flags: U64
    sh_addr: U64
    sh_offset: U64
    sh_size: U64
    sh_link: U32
    sh_info: U32
    sh_addralign: U64
    sh_entsize: U64


@struct
class Elf32_Shdr:  # noqa: N801
    """Section header of a 32-bit file."""

    sh_name: U32
    sh_type: U32
    sh_flags: U32
    sh_addr: U32
    sh_offset: U32
    sh_size: U32
    sh_link: U32
    sh_info: U32
    sh_addralign: U32
    sh_entsize: U32


@struct
class Elf64_Sym:  # noqa: N801
    """Symbol of a 64-bit file."""

    st_name: U32
    st_info: U8
    st_other: U8
    st_shndx: U16
    st_value: U64
    st_size: U64


@struct
class Elf32_Sym:  # noqa: N801
    """Symbol of a 32-bit file."""

    st_name: U32
    st_value: U32
    st_size: U32
    st_info: U8
    st_other: U8
    st_shndx: U16
