# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf status`: what is loaded, attached and running on this node. It is doctor that judges."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import click

from bpf import node
from bpf.abi import MAPS
from bpf.cli import settings_flags
from bpf.pins import Pins
from bpf.settings import Settings
from controller import web
from controller.commands import daemons, drops, handovers, links, sizes
from controller.commands.options import output_flag
from controller.commands.output import duration, show_json, table
from controller.commands.reading import LRU_HASH, max_entries, raw_entries
from controller.network import HANDOVER_FILE

# From here on a map is said to be nearly full.
FULL_SHARE = 0.9

# Arrays are always full.
COUNTED = sorted(set(MAPS) - {"state", "counters"})

# Those that refuse an entry when they are full, and have a setting. The others drop the oldest for a new one, and are
# full in normal life: FLOWS_RESTORED tells when that hurts.
FILLING = {name for name in node.map_sizes(Settings()) if MAPS[name].map_type != LRU_HASH}


def collect(settings: Settings) -> dict[str, Any]:
    """Everything that is known, in JSON's types."""
    pins = node.pins(settings)
    loaded = pins.programs.is_symlink()
    found: dict[str, Any] = {
        "node": settings.node_name,
        "programs": os.readlink(pins.programs).removeprefix("programs-") if loaded else None,
        "layout": pins.root.name,
        "attached": by_device(links.attached()),
        "cgroup": sorted(link.name for link in pins.links.iterdir()) if pins.links.is_dir() else [],
        "daemons": [daemon._asdict() for daemon in daemons.daemons(settings)],
        "health": health(settings),
        "controller": daemons.report(settings, "controller.json"),
        "handover": daemons.report(settings, HANDOVER_FILE),
        "maps": fill_levels(pins) if loaded else [],
        "counters": drops.read_counters(pins) if loaded else {},
        "sizes": sizes.differences(settings),
        "drops": sum(drop.packets for drop in drops.drops(raw_entries(pins, "drops"))) if loaded else 0,
    }
    found["warnings"] = warnings(found)
    return found


def by_device(attached: Iterable[links.Attached]) -> dict[str, list[str]]:
    hooks = defaultdict(list)
    for item in attached:
        hooks[item.device].append(item.hook)
    return {device: sorted(hooks[device]) for device in sorted(hooks)}


def fill_levels(pins: Pins) -> list[dict[str, Any]]:
    """Entries and size of each map. Flows that have expired count: their memory is taken."""
    levels = []
    for name in COUNTED:
        entries = sum(1 for _ in raw_entries(pins, name))
        levels.append({"name": name, "entries": entries, "max_entries": max_entries(pins, name)})
    return levels


def health(settings: Settings) -> dict[str, Any]:
    if not settings.health_address:
        return {}
    status, body = web.get(settings.health_address, "/healthz")
    return {"address": settings.health_address, "status": status, "answer": body}


def warnings(found: dict[str, Any]) -> list[str]:
    """What somebody should look at, a sentence each."""
    result = []
    if not found["programs"]:
        result.append("no programs are loaded: start the controller or the CNI server")
    for level in found["maps"]:
        share = level["entries"] / level["max_entries"]
        if share >= FULL_SHARE and level["name"] in FILLING:
            result.append(f"map {level['name']} is {share:.0%} full: raise {level['name']}_max; {sizes.WHEN}")
    result += [f"{difference}: {sizes.REMEDY}" for difference in found["sizes"]]
    if found["counters"].get("flows_restored"):
        result.append(f"the flow table has evicted live flows: raise flows_max; {sizes.WHEN}")
    for error in found["controller"].get("errors", []):
        result.append(f"the controller reports: {error}")
    return result


def describe(found: dict[str, Any]) -> list[str]:
    """The page for people."""
    lines = [
        f"node      {found['node']}",
        f"programs  {found['programs'] or 'not loaded'} (layout {found['layout']})",
        "",
    ]
    daemons_up = [(daemon["name"], "up" if daemon["up"] else "down", daemon["seen"]) for daemon in found["daemons"]]
    lines += table(("DAEMON", "STATE", "SEEN"), daemons_up)
    if found["health"]:
        answered = found["health"]["status"] or "no answer"
        lines += [f"health at {found['health']['address']}: {answered} {found['health']['answer']}"]
    up = any(daemon["name"] == "controller" and daemon["up"] for daemon in found["daemons"])
    lines += controller_lines(found["controller"], up)
    lines += [f"outside clients: {line}" for line in handovers.lines(found["handover"])]
    attached = [(device, ", ".join(hooks)) for device, hooks in found["attached"].items()]
    attached.append(("cgroup", ", ".join(found["cgroup"]) or "nothing"))
    lines += ["", *table(("DEVICE", "PROGRAMS"), attached)]
    if found["maps"]:
        levels = [
            (level["name"], str(level["entries"]), str(level["max_entries"]), _share(level)) for level in found["maps"]
        ]
        lines += ["", *table(("MAP", "ENTRIES", "SIZE", "FULL"), levels)]
        dropped = f"{found['drops']} packets were dropped: `calico-ebpf drops` says why"
        lines += ["", dropped if found["drops"] else "no packet was dropped"]
    return lines + [f"warning: {warning}" for warning in found["warnings"]]


def controller_lines(report: dict[str, Any], up: bool) -> list[str]:
    """What the controller last said of itself; `up`: it runs."""
    if not report:
        return []
    state = "in step" if report.get("synced") else "not in step"
    if report.get("waiting_for"):
        state += f", waiting for the first list of {', '.join(report['waiting_for'])}"
    objects = ", ".join(f"{count} {kind}" for kind, count in report.get("objects", {}).items())
    since = (
        f"last write {duration(time.time() - report['last_sync'])} ago" if report.get("last_sync") else "no write yet"
    )
    heard = "" if up else "last heard: "
    lines = [f"{heard}source {report.get('source')}: {objects or 'nothing'}; {state}, {since}"]
    if report.get("service_ranges"):
        lines.append(f"ranges of Services: {', '.join(report['service_ranges'])}")
    return lines


def _share(level: dict[str, Any]) -> str:
    return f"{level['entries'] / level['max_entries']:.1%}"


@click.command("status")
@settings_flags("node_name", "run_dir", "bpffs", "health_address")
@output_flag
def command(settings: Settings, output: str) -> None:
    """What is loaded, attached and running on this node."""
    found = collect(settings)
    if output == "json":
        show_json(found)
    else:
        click.echo("\n".join(describe(found)))
