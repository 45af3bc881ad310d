# SPDX-License-Identifier: Apache-2.0
"""A Service that changes all the time, in everything that may change, while it is asked from everywhere: no moment in
which a request is refused or dropped that the state before and the one after would both serve."""

import random
import time
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import BALANCER
from e2e.lab.source import Manifest
from e2e.tests.load import load
from e2e.tests.outside import FIRST_NODE_PORT, Outside, service_addresses
from e2e.tests.stage import PORT, pick

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NUMBER = 28
SECONDS, STEP_S, RATE = 8, 0.03, 300


class State(NamedTuple):
    """One way in which the Service may stand; every one of them serves who asks at node1.

    Attributes:
        near: how web-1, of node1, stands.
        far: how web-2, of node2, stands; "" where it is no endpoint.
        other_port: where another port of the Service stands: before the one that is asked, behind it, or nowhere.
    """

    near: str
    far: str
    external: str
    internal: str
    affinity: str
    balanced: bool
    other_port: str


CHOICES = State(
    near=("ready", "ending"),  # type: ignore[arg-type]
    far=("ready", "ending", "unready", ""),  # type: ignore[arg-type]
    external=("Cluster", "Local"),  # type: ignore[arg-type]
    internal=("Cluster", "Local"),  # type: ignore[arg-type]
    affinity=("None", "ClientIP"),  # type: ignore[arg-type]
    balanced=(False, True),  # type: ignore[arg-type]
    other_port=("before", "behind", ""),  # type: ignore[arg-type]
)
CONDITIONS = {
    "ready": {"ready": True},
    "ending": {"ready": False, "serving": True, "terminating": True},
    "unready": {"ready": False, "serving": False, "terminating": False},
}


def manifests(stage: Outside, state: State) -> list[Manifest]:
    manifest = source.service("changing", addresses.service(NUMBER), PORT, runtime.PORT, ("TCP",))
    balancer = service_addresses(BALANCER, NUMBER) if state.balanced else ()
    manifest = source.reached_from_outside(manifest, FIRST_NODE_PORT + NUMBER, (), balancer, state.external)
    spec = manifest["spec"]
    spec |= {"internalTrafficPolicy": state.internal, "sessionAffinity": state.affinity}
    other = {"name": "other", "protocol": "TCP", "port": PORT + 1, "nodePort": FIRST_NODE_PORT + NUMBER + 1}
    if state.other_port:
        spec["ports"].insert(0 if state.other_port == "before" else 1, other)
    slices = []
    for name, stands in (("web-1", state.near), ("web-2", state.far)):
        if stands:
            pod = stage.pod(name)
            found = source.endpoints("changing", [(pod.address, pod.node.name)], runtime.PORT, ("TCP",))
            for one in found:
                one["metadata"]["name"] += f"-{name}"
                one["endpoints"][0]["conditions"] = CONDITIONS[stands]
            slices += found
    return [manifest, *slices]


def changed(state: State, dice: random.Random) -> State:
    """Some of it otherwise, at random."""
    fields = dice.sample(State._fields, dice.randint(1, 3))
    return state._replace(**{field: dice.choice(getattr(CHOICES, field)) for field in fields})


@pytest.mark.parametrize("mode", ["l2-direct", "vxlan-entry"])
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_service_that_changes_all_the_time_serves_everybody(outside: Outside, family: str) -> None:
    """A pod and a process of node1 ask the cluster IP, a client outside node1's NodePort; endpoints become ready and
    end, policies, affinity, type, addresses and ports change, some thirty times a second."""
    seed = time.time_ns()
    print(f"seed {seed}")
    dice = random.Random(seed)
    state = State("ready", "ready", "Cluster", "Cluster", "None", False, "")
    outside.source.apply("changing", manifests(outside, state))
    entry = outside.node(1)
    cluster_ip = pick(addresses.service(NUMBER), family)
    asked = [
        (outside.place("ask-1"), cluster_ip, PORT),
        (entry.space, cluster_ip, PORT),
        (outside.client, pick(entry.address, family), FIRST_NODE_PORT + NUMBER),
    ]
    time.sleep(1)
    with ExitStack() as loads:
        answered = [loads.enter_context(load(*one, SECONDS, rate=RATE)) for one in asked]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            state = changed(state, dice)
            outside.source.apply("changing", manifests(outside, state))
            time.sleep(STEP_S)
    assert all(names == {"web-1", "web-2"} for names in answered), answered
