# SPDX-License-Identifier: Apache-2.0
"""What the kernel takes for a map. Some ten per cent less or more: each kernel lays out its own part otherwise.

Source: kernel/bpf/hashtab.c, struct htab_elem and struct bucket; kernel/bpf/lpm_trie.c, struct lpm_trie_node.
"""

from collections.abc import Mapping

from bpf.abi import MAPS, MapSpec

LPM_TRIE = 11  # enum bpf_map_type
NO_PREALLOC = 1 << 0  # BPF_F_NO_PREALLOC

_ELEMENT_BYTES, _BUCKET_BYTES, _NODE_BYTES = 48, 16, 48


def entry_bytes(spec: MapSpec) -> int:
    """Bytes of one entry. In a trie two prefixes may need a node besides, where they part."""
    if spec.map_type == LPM_TRIE:
        return 2 * (_NODE_BYTES + spec.key_size + spec.value_size)
    return _ELEMENT_BYTES + _BUCKET_BYTES + _aligned(spec.key_size) + _aligned(spec.value_size)


def taken_at_once(spec: MapSpec) -> bool:
    """Whether a map is as large as it may become when it is made."""
    return not spec.map_flags & NO_PREALLOC


def full_bytes(sizes: Mapping[str, int]) -> int:
    """What maps take at most with these max_entries."""
    return sum(entry_bytes(MAPS[name]) * entries for name, entries in sizes.items())


def _aligned(size: int) -> int:
    return (size + 7) & ~7
