# SPDX-License-Identifier: Apache-2.0
"""Where a bundle stands, on a node and in the image alike, and the links by which it is reached."""

from pathlib import Path

LIBRARY = "usr/local/lib/calico-ebpf"
COMMAND = "usr/local/bin/calico-ebpf"


def links(bundle: str) -> dict[str, str]:
    """The links by path, each with what it leads to.

    Args:
        bundle: the name of the bundle's directory.
    """
    return {
        f"{LIBRARY}/current": bundle,
        f"{LIBRARY}/oneshot": "current/bin/oneshot",
        COMMAND: f"/{LIBRARY}/current/bin/calico-ebpf",
    }


def put_links(root: Path, bundle: str) -> None:
    """Makes the links below a root."""
    for path, target in links(bundle).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
