# SPDX-License-Identifier: Apache-2.0
"""Keeps the programs of the host's sockets attached to the cgroup: when the controller starts, and from then on as
often as it audits. cgroup2 may be mounted later than the controller starts, and somebody may take a link away.

Where that cannot be, pods' traffic is translated at their links all the same, and the host's own packet by packet.
"""

import time
from collections.abc import Callable

from bpf import node
from bpf.attach import attach_cgroup, detach_cgroup
from bpf.errors import BpfError
from bpf.pins import Pins
from bpf.settings import Settings
from controller.source import Post, Problem, Problems

NAME = "connect time"
REMEDY = "mount cgroup2, or set connect_time to off"


def attach(settings: Settings, pins: Pins) -> Problems:
    """Attaches the programs where the settings want them, or takes them away; what was in the way."""
    if settings.connect_time == "off":
        detach_cgroup(pins)
        return Problems(NAME, ())
    try:
        attach_cgroup(pins, node.cgroup_root(settings))
    except (BpfError, OSError) as error:
        return Problems(NAME, (Problem(NAME, f"{error}: {REMEDY}"),))
    return Problems(NAME, ())


def keep(settings: Settings, pins: Pins, post: Post, pause: Callable[[float], None] = time.sleep) -> None:
    """Attaches them again and again, and posts what is in the way; for a thread of its own."""
    while True:
        pause(settings.audit_interval_s)
        if node.other_layout_in_force(settings):
            return  # whose controller has the links now
        post([attach(settings, pins)])
