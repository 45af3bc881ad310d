# SPDX-License-Identifier: Apache-2.0
"""Whether kube-proxy is at work on this node, or has been: by its process, its answer, its rules.

Both would translate the same Services; what it left behind does so as well. In a container without the node's processes
the process is not seen, but the answer and the rules are.
"""

import time
from collections.abc import Callable
from pathlib import Path

from controller import routes, web
from controller.source import Post, Problem, Problems

NAME = "kube-proxy"
# What its /proxyMode answers; ours says something else.
MODES = {"iptables", "ipvs", "nftables"}
REMEDY = (
    "kubectl -n kube-system delete daemonset kube-proxy, then `kube-proxy --cleanup` on each node: "
    "both would translate the same Services"
)
# Seldom: where it is at work, reading its rules takes long.
INTERVAL_S = 300.0


def processes() -> list[int]:
    """Those in this network namespace: other nodes of one machine are not our concern."""
    here = Path("/proc/self/ns/net").readlink()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == NAME and (process / "ns/net").readlink() == here:
                found.append(int(process.name))
        except OSError:
            continue  # it has just ended
    return sorted(found)


def running(metrics_address: str) -> str:
    """How it is seen to run; "" where it is not."""
    if pids := processes():
        return f"running, process {', '.join(map(str, pids))}"
    _, mode = web.get(metrics_address, "/proxyMode") if metrics_address else (0, "")
    return f"answers at {metrics_address}: {mode}" if mode in MODES else ""


def rules() -> list[str]:
    """The names of its tables and chains in nftables, iptables-nft's included."""
    return routes.firewall_chains(table=NAME, chain="KUBE-SERVICES")


def watch(post: Post, metrics_address: str, pause: Callable[[float], None] = time.sleep) -> None:
    """Reports it as a problem, again and again; for a thread of its own."""
    while True:
        signs = [running(metrics_address), f"its rules are there: {', '.join(left)}" if (left := rules()) else ""]
        post([Problems(NAME, tuple(Problem(NAME, f"{sign}: {REMEDY}") for sign in signs if sign))])
        pause(INTERVAL_S)
