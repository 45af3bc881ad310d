# SPDX-License-Identifier: Apache-2.0
"""Reads what the loader must know of a BPF object (ELF64, little endian): its maps' names, and where `config` stands.

Out of scope: everything else that an ELF file can hold.
"""

import struct
from pathlib import Path
from typing import NamedTuple


class Symbol(NamedTuple):
    """A named object: its section, its offset in the file, its size in bytes."""

    section: str
    file_offset: int
    size: int


class _Section(NamedTuple):
    name: int
    kind: int
    offset: int
    size: int
    link: int


def symbols(image: bytes) -> dict[str, Symbol]:
    """The symbols of an object file's sections.

    Raises:
        ValueError: it is not a relocatable ELF64 file.
    """
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian ELF64 file")
    table_offset, entry_size, count, names_index = (
        *struct.unpack_from("<Q", image, 40),
        *struct.unpack_from("<HHH", image, 58),
    )
    sections = [_section(image, table_offset + index * entry_size) for index in range(count)]
    names = sections[names_index]
    found = {}
    for table in (section for section in sections if section.kind == 2):  # SHT_SYMTAB
        strings = sections[table.link]
        for offset in range(table.offset, table.offset + table.size, 24):
            name, _, _, index, value, size = struct.unpack_from("<IBBHQQ", image, offset)
            if name and 0 < index < count:
                section = sections[index]
                found[_string(image, strings, name)] = Symbol(
                    _string(image, names, section.name), section.offset + value, size
                )
    return found


def map_names(path: Path) -> list[str]:
    """The names of the maps that an object uses."""
    return sorted(name for name, symbol in symbols(path.read_bytes()).items() if symbol.section == ".maps")


def patch(image: bytes, name: str, value: bytes) -> bytes:
    """The object with the bytes of one constant replaced.

    Raises:
        ValueError: there is no such constant, or it is of another size.
    """
    symbol = symbols(image).get(name)
    if symbol is None or symbol.section != ".rodata" or symbol.size != len(value):
        raise ValueError(f"no constant {name} of {len(value)} bytes in .rodata")
    return image[: symbol.file_offset] + value + image[symbol.file_offset + symbol.size :]


def _section(image: bytes, offset: int) -> _Section:
    name, kind, _, _, file_offset, size, link = struct.unpack_from("<IIQQQQI", image, offset)
    return _Section(name, kind, file_offset, size, link)


def _string(image: bytes, strings: _Section, index: int) -> str:
    start = strings.offset + index
    return image[start : image.index(b"\0", start)].decode()
