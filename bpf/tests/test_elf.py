# SPDX-License-Identifier: Apache-2.0
"""Reading and patching object files that clang made."""

import subprocess
from pathlib import Path

import pytest

from bpf import elf

SOURCE = """
typedef unsigned long long u64;
struct pair { u64 first; u64 second; };
const volatile u64 before = 1;
const volatile struct pair config = {.first = 2, .second = 3};
struct { int (*type)[1]; int (*max_entries)[1]; int *key; u64 *value; }
    numbers __attribute__((section(".maps"), used));
__attribute__((section("classifier"), used)) int from_pod(void *skb) { return config.first + before; }
char _license[] __attribute__((section("license"), used)) = "GPL";
"""


@pytest.fixture(scope="module")
def obj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small object with a map and two constants."""
    directory = tmp_path_factory.mktemp("elf")
    (directory / "program.c").write_text(SOURCE)
    path = directory / "program.o"
    subprocess.run(["clang", "-target", "bpf", "-O2", "-g", "-c", directory / "program.c", "-o", path], check=True)
    return path


def test_symbols_say_where_a_constant_stands(obj: Path) -> None:
    """Section, place in the file and size lead to the constant's bytes."""
    image = obj.read_bytes()
    config = elf.symbols(image)["config"]
    assert (config.section, config.size) == (".rodata", 16)
    assert image[config.file_offset : config.file_offset + 16] == bytes([2, *bytes(7), 3, *bytes(7)])


def test_map_names_are_those_of_the_maps_section(obj: Path) -> None:
    """Maps are named; constants and programs are not."""
    assert elf.map_names(obj) == ["numbers"]


def test_patch_replaces_the_constant_alone(obj: Path) -> None:
    """Nothing but the constant's bytes is changed."""
    image = obj.read_bytes()
    patched = elf.patch(image, "config", b"0123456789abcdef")
    offset = elf.symbols(image)["config"].file_offset
    assert patched == image[:offset] + b"0123456789abcdef" + image[offset + 16 :]


@pytest.mark.parametrize(
    ("name", "size"), [("config", 15), ("config", 17), ("absent", 16), ("numbers", 32), ("from_pod", 16)]
)
def test_patch_of_another_size_or_section_is_refused(obj: Path, name: str, size: int) -> None:
    """A constant of another size, what is none, and what is not there are refused by name."""
    with pytest.raises(ValueError, match=f"no constant {name} of {size} bytes"):
        elf.patch(obj.read_bytes(), name, bytes(size))


@pytest.mark.parametrize("image", [b"", b"\x7fELF\x01\x01" + bytes(58), b"#!/bin/sh\n"])
def test_symbols_of_other_files_are_refused(image: bytes) -> None:
    """What is no 64-bit little-endian ELF file is refused."""
    with pytest.raises(ValueError, match="ELF64"):
        elf.symbols(image)
