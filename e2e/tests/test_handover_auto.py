# SPDX-License-Identifier: Apache-2.0
"""`handover: auto`: layer 2 where the network lets a foreign address through to a node, VXLAN where it does not."""

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.cluster import Lab
from e2e.lab.node import Node
from e2e.lab.taps import captured
from e2e.tests.outside import CLIENT
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NODE_PORT = 30090


@pytest.mark.parametrize("strict", [False, True], ids=["open", "strict"])
def test_handover_auto_takes_the_way_that_the_network_lets_through(fresh: Lab, strict: bool) -> None:
    """A switch that lets only their own addresses through to nodes does not keep clients from backends elsewhere.

    `status` tells which way is in force. Until a probe is answered, it is the tunnel, which works everywhere.
    """
    services, nodes = fresh.directory_source(), [fresh.add_node(), fresh.add_node()]
    if strict:
        for node in nodes:
            _guard(fresh, node)
    fresh.bring_up(nodes, services)
    entry, far = nodes
    pod = far.add_pod("web")
    manifest = source.reached_from_outside(source.service("web", addresses.service(60), PORT, runtime.PORT), NODE_PORT)
    services.apply("web", [manifest, *source.endpoints("web", [(pod.address, far.name)], runtime.PORT)])
    told = f"handed over by {'VXLAN' if strict else 'layer 2'} to {far.name}"
    wait(lambda: told in entry.calico("status"))
    for family in FAMILIES:
        address = pick(entry.address, family)
        wait(lambda to=address: names(ask(fresh.client, "tcp", to, NODE_PORT)) == {"web"})  # type: ignore[misc]
        with captured({"far": far.space}, (NODE_PORT, runtime.PORT)) as seen:
            answers = ask(fresh.client, "tcp", address, NODE_PORT, count=5)
        assert names(answers) == {"web"}
        assert {answer["peer"] for answer in answers} == {pick(CLIENT, family)}
        assert {"outer" in packet for packet in seen["far"]} == {strict}


def _guard(lab: Lab, node: Node) -> None:
    """Has the switch drop what goes to a node and is neither for it nor for its pods, as clouds do."""
    pods = addresses.pod_ranges(node.index)
    own = {"ip": [node.address.v4, pods.v4], "ip6": [node.address.v6, pods.v6, "fe80::/10", "ff00::/8"]}
    rules = "\n".join(
        f'oifname "{node.name}" {family} daddr != {{ {", ".join(allowed)} }} drop' for family, allowed in own.items()
    )
    table = (
        f"table bridge guard-{node.name} {{ chain forward {{ type filter hook forward priority 0;\n{rules}\n}}\n}}\n"
    )
    lab.switch.run("nft", "-f", "-", stdin=table)
