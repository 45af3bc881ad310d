# SPDX-License-Identifier: Apache-2.0
"""What was last told of other Nodes, on disk: a Node may go while no controller watches, and its pods still run.

Below the run directory, which a boot clears with the routes themselves.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from bpf import files
from controller.model import Kind, Metadata, Node, NodeSpec
from controller.source import Changed, Event

log = structlog.get_logger()

FILE_NAME = "nodes.json"

_decoder = msgspec.json.Decoder(dict[str, Node])


class NodeMemory:
    """Args:
    path: the file, which need not be there; None: nothing is remembered.
    own: the name of this node, which knows of itself.
    """

    def __init__(self, path: Path | None, own: str) -> None:
        self._path = path
        self._own = own
        self._nodes = _read(path) if path else {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """With their ranges and addresses, and nothing else."""
        return tuple(self._nodes.values())

    def note(self, events: Iterable[Event]) -> None:
        """Takes note of what is told of Nodes, and writes it down where it differs."""
        changed = False
        for event in events:
            if not isinstance(event, Changed) or event.kind != Kind.NODE or event.key[1] == self._own:
                continue
            name, node = event.key[1], _essence(event.obj) if isinstance(event.obj, Node) else None
            if self._nodes.get(name) == node:
                continue
            changed = True
            if node:
                self._nodes[name] = node
            else:
                del self._nodes[name]
        if changed and self._path:
            try:
                files.write(self._path, msgspec.json.encode(self._nodes))
            except OSError as error:
                log.error("nodes-not-remembered", path=str(self._path), error=str(error))


def _essence(node: Node) -> Node:
    """Of a Node what makes routes: kubelet's reports change nothing of it."""
    meta = Metadata(node.metadata.name, creation_timestamp=node.metadata.creation_timestamp)
    return Node(meta, NodeSpec(pod_cidrs=node.spec.ranges), node.status)


def _read(path: Path) -> dict[str, Node]:
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("nodes-forgotten", path=str(path), error=str(error))
        return {}
