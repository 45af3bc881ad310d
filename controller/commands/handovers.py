# SPDX-License-Identifier: Apache-2.0
"""How outside clients' packets go to other nodes, and answers back, as the controller has left it in handover.json."""

from collections import defaultdict
from typing import Any

# More nodes than anybody reads are counted, not listed.
NAMED = 5

WAYS = {
    "l2": "handed over by layer 2",
    "vxlan": "handed over by VXLAN",
    "none": "nothing is handed over",
}
RETURNS = {"entry": "through the node by which they came in", "direct": "direct, from the backend's node"}


def lines(report: dict[str, Any]) -> list[str]:
    """What is in force, and why: the way back, and a line for each way and reason with the nodes that it holds for."""
    if not report:
        return []
    back = RETURNS.get(report["return_path"], report["return_path"])
    told = [f"answers go back {back}, where a Service does not say otherwise"]
    for (way, why), nodes in sorted(grouped(report).items()):
        told.append(f"{WAYS.get(way, way)} to {_names(nodes)}: {why}")
    return told


def grouped(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """The nodes, each with the addresses for which it is so, by way and reason."""
    found: defaultdict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
    for one in report.get("nodes", ()):
        found[one["way"], one["why"]].setdefault(one["node"], []).append(one["address"])
    return dict(found)


def _names(nodes: dict[str, list[str]]) -> str:
    names = [f"{name} ({', '.join(addresses)})" for name, addresses in nodes.items()]
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
