# SPDX-License-Identifier: Apache-2.0
"""The generator of bpf/abi.py, on types as bpftool gives them."""

from typing import Any

import pytest

from bpf.layout import Btf, codec, enumeration, field, layout

TYPES: list[dict[str, Any]] = [
    {"id": 1, "kind": "INT", "name": "unsigned char", "size": 1},
    {"id": 2, "kind": "INT", "name": "unsigned short", "size": 2},
    {"id": 3, "kind": "INT", "name": "unsigned int", "size": 4},
    {"id": 4, "kind": "INT", "name": "unsigned long long", "size": 8},
    {"id": 5, "kind": "TYPEDEF", "name": "__be16", "type_id": 2},
    {"id": 6, "kind": "TYPEDEF", "name": "__be32", "type_id": 3},
    {"id": 7, "kind": "ARRAY", "name": "(anon)", "type_id": 1, "nr_elems": 3},
    {"id": 8, "kind": "STRUCT", "name": "address", "size": 16, "members": []},
    {"id": 9, "kind": "STRUCT", "name": "drop_key", "size": 8, "members": []},
    {"id": 10, "kind": "PTR", "name": "(anon)", "type_id": 1},
]
BTF = Btf(TYPES)


def member(name: str, type_id: int, offset: int = 0) -> dict[str, Any]:
    return {"name": name, "type_id": type_id, "bits_offset": offset * 8}


@pytest.mark.parametrize(
    ("name", "type_id", "expected"),
    [
        ("flags", 1, ("flags", "int", "B")),
        ("seen_ns", 4, ("seen_ns", "int", "Q")),
        ("port_be", 5, ("port", "port", "H")),
        ("mac", 7, ("mac", "bytes", "3s")),
        ("pad", 7, ("", "pad", "3x")),
        ("saddr", 8, ("saddr", "bytes", "16s")),
        ("twin", 9, ("twin", "DropKey", "8s")),
    ],
)
def test_field_of_a_kind_has_its_format(name: str, type_id: int, expected: tuple[str, str, str]) -> None:
    """Ports lose their suffix, padding its name; structs and arrays are bytes of their size."""
    assert field(BTF, member(name, type_id)) == expected


@pytest.mark.parametrize(("name", "type_id"), [("port", 5), ("word_be", 6), ("next", 10)])
def test_field_without_a_codec_ends_the_generator(name: str, type_id: int) -> None:
    """Wire order is for ports named so, and a pointer has no place in a map."""
    with pytest.raises(SystemExit):
        field(BTF, member(name, type_id))


def test_layout_gives_the_compilers_padding_a_place() -> None:
    """Holes between members and at the end are skipped, whether or not a field names them."""
    item = {"name": "gaps", "size": 24, "members": [member("a", 3), member("b", 4, 8), member("c", 1, 16)]}
    assert layout(BTF, item) == "=I4xQB7x"


def test_codec_of_a_port_swaps_its_bytes() -> None:
    """Python sees the number; the map has the wire's order."""
    text = codec(BTF, {"name": "service_key", "size": 4, "members": [member("port_be", 5), member("pad", 2, 2)]})
    assert "class ServiceKey(NamedTuple):" in text
    assert "pack(htons(self.port))" in text
    assert "return cls(ntohs(port))" in text


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("drop_reason", ["DROP_NONE", "DROP_SPOOFED", "DROP_REASONS"], ["NONE", "SPOOFED"]),
        ("state_index", ["STATE_NEXT_ID", "STATES"], ["NEXT_ID"]),
        ("abi_version", ["ABI_VERSION"], ["VERSION"]),
        ("connect_time", ["CONNECT_TIME_HOST", "CONNECT_TIME_ALL"], ["HOST", "ALL"]),
    ],
)
def test_enumeration_drops_prefix_and_sentinel(name: str, values: list[str], expected: list[str]) -> None:
    """What is left of a name is what tells it from the others."""
    item = {"name": name, "values": [{"name": value, "val": number} for number, value in enumerate(values)]}
    lines = enumeration(item).splitlines()
    assert [line.split()[0] for line in lines[3:]] == expected


def test_enumeration_of_flags_is_an_int_flag() -> None:
    """Flags can be joined."""
    item = {"name": "flow_flag", "values": [{"name": "FLOW_REPLY", "val": 1}]}
    assert enumeration(item).startswith("class FlowFlag(IntFlag):")
