# SPDX-License-Identifier: Apache-2.0
"""Host processes whose sockets are not translated: their packets are, one by one."""

import pytest

from e2e.lab.cluster import Lab
from e2e.tests.stage import FAMILIES, PORT, WEB, Stage, ask, names, pick, wait
from e2e.tests.test_services import RESOLVER

KINDS_OF_SOCKETS = ("tcp", "udp", "udp-unconnected")

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["directory", "overlay"])
def test_host_processes_reach_services_without_socket_hooks(fresh: Lab, kind: str) -> None:
    """Backends on both nodes, by plain routes and by the overlay, also where rp_filter is strict everywhere; and a
    connected resolver goes over to another backend without an error."""
    stage = Stage(fresh, kind)
    stage.set_up({"connect_time": "off"})
    for node in fresh.nodes:
        node.space.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
        for family in FAMILIES:
            for socket in KINDS_OF_SOCKETS:
                answers = ask(node.space, socket, pick(WEB, family), count=20)
                assert names(answers) == {"web-1", "web-2"}, (node.name, family, socket)
    where = stage.place("node1")
    stage.expose("web", WEB, ["web-1"])
    wait(lambda: names(ask(where, "udp", WEB.v4)) == {"web-1"})
    with where.start("python3", "-I", "-S", "-c", RESOLVER, WEB.v4, str(PORT)) as resolver:
        assert resolver.stdout
        assert resolver.stdout.readline() == "web-1\n"
        stage.expose("web", WEB, ["web-2"])
        assert resolver.stdout.read() == "web-2\n"
