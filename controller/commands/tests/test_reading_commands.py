# SPDX-License-Identifier: Apache-2.0
"""services, backends, flows, pods and drops: what they make of entries, as pure functions."""

from pathlib import Path

import pytest

from bpf import abi
from bpf.address import packed
from controller.commands import backends, drops, flows, pods, services
from controller.commands.output import duration, table
from controller.commands.reading import endpoint, protocol_name

TCP, UDP = 6, 17
SECOND = 10**9
NOW = 10_000 * SECOND

CLUSTER_IP, CLIENT, SERVER = packed("10.96.0.10"), packed("10.244.0.5"), packed("10.244.1.7")
CLUSTER_IP6 = packed("fd00:10:96::a")

BY_DESTINATION = abi.Way(0, abi.WayKind.DESTINATION, bytes(16))
CONFIG = abi.Config(
    host_netns_cookie=0,
    tcp_new_ns=60 * SECOND,
    tcp_established_ns=3600 * SECOND,
    tcp_closing_ns=120 * SECOND,
    tcp_closed_ns=30 * SECOND,
    udp_new_ns=30 * SECOND,
    udp_established_ns=180 * SECOND,
    connect_time=0,
    mark=0,
    masquerade_port_min=40000,
    masquerade_port_count=20000,
    coarse_clock=0,
    overlay_port=4789,
    closes_udp=1,
    maglev_size=4093,
)


def pair(port: int, seen_s: float = 0, left_s: float = 60) -> list[tuple[abi.Tuple, abi.Flow]]:
    """Both entries of a flow from the client's `port` to the Service, last seen `seen_s` ago, with `left_s` to live."""
    opener = abi.Tuple(CLIENT, CLUSTER_IP, port, 80, TCP)
    answer = abi.Tuple(SERVER, CLIENT, 8080, port, TCP)
    seen = NOW - int(seen_s * SECOND)
    expires = NOW + int(left_s * SECOND)
    flow = abi.Flow(answer, seen, expires, seen - 5 * SECOND, 3, abi.FlowState.ESTABLISHED, 0, BY_DESTINATION)
    return [(opener, flow), (answer, flow._replace(twin=opener, flags=abi.FlowFlag.REPLY))]


def test_frontends_list_backends_missing_ones_and_none() -> None:
    """A frontend has its slots' backends in order, by sets; a hole is shown as one; no slots is no backend. A cluster
    IP as such is none."""
    found = services.frontends(
        [
            (abi.FrontendKey(CLUSTER_IP6, 0, 0), abi.Frontend(3, 0, 0, 0, abi.FrontendFlag.CLUSTER_IP, 0)),
            (abi.FrontendKey(CLUSTER_IP6, 53, UDP), abi.Frontend(2, 0, 0, 0, 0, 0)),
            (abi.FrontendKey(CLUSTER_IP, 80, TCP), abi.Frontend(1, 4, 2, 1, abi.FrontendFlag.CLUSTER_IP, 600)),
        ],
        {abi.SlotKey(1, 0): abi.Slot(9), abi.SlotKey(1, 1): abi.Slot(7), abi.SlotKey(1, 2): abi.Slot(8)},
        {abi.BackendKey(7): abi.Backend(SERVER, 8080, TCP, 0), abi.BackendKey(9): abi.Backend(SERVER, 9090, TCP, 0)},
    )
    assert found == [
        services.Frontend(
            "10.96.0.10",
            80,
            "TCP",
            1,
            ("cluster_ip",),
            600,
            (
                services.Target(9, "10.244.1.7", 9090, True, False),
                services.Target(7, "10.244.1.7", 8080, True, True),
                services.Target(8, "", 0, False, True),
                services.Target(0, "", 0, False, True),
            ),
        ),
        services.Frontend("fd00:10:96::a", 53, "UDP", 2, (), 0, ()),
    ]
    assert [row[-1] for row in services.rows(found)] == [
        "10.244.1.7:9090 here, for local alone",
        "10.244.1.7:8080 here",
        "missing: backend 8",
        "missing: backend 0",
        "none: refused",
    ]
    assert [row[-2] for row in services.rows(found)] == ["cluster_ip,affinity=600s", "", "", "", ""]


def test_backends_tell_their_services_and_flows() -> None:
    """A backend of two services names both; one that none uses is shown all the same."""
    found = backends.backends(
        [
            (abi.BackendKey(2), abi.Backend(SERVER, 8080, TCP, 0)),
            (abi.BackendKey(1), abi.Backend(CLIENT, 53, UDP, 0)),
        ],
        [(abi.SlotKey(5, 0), abi.Slot(2)), (abi.SlotKey(4, 1), abi.Slot(2)), (abi.SlotKey(4, 0), abi.Slot(2))],
        {2: 9},
    )
    assert found == [
        backends.Backend(1, "10.244.0.5", 53, "UDP", (), 0),
        backends.Backend(2, "10.244.1.7", 8080, "TCP", (4, 5), 9),
    ]


def test_live_joins_both_directions_in_one() -> None:
    """A flow is its opener's entry, whichever comes first."""
    entries = pair(1000) + pair(1001)[::-1]
    assert [entry.key.sport for entry in flows.live(entries, NOW)] == [1000, 1001]


def test_live_turns_an_entry_round_whose_twin_was_evicted() -> None:
    """A flow of which only the answering half is left is shown from its opener's side."""
    (opener, flow), reply = pair(1000)
    assert flows.live([reply], NOW) == [flows.Entry(opener, flow._replace(flags=abi.FlowFlag.REPLY), BY_DESTINATION)]


def test_live_leaves_out_what_has_expired() -> None:
    """An entry that the programs take for absent is not shown."""
    assert len(flows.live(pair(1000, left_s=0.001), NOW)) == 1
    assert flows.live(pair(1000, left_s=0), NOW) == []


def test_select_takes_either_end_before_or_after_translation() -> None:
    """An address or port finds a flow wherever it occurs; the busiest comes first."""
    tracked = flows.live(pair(1000, seen_s=9) + pair(1001, seen_s=1), NOW)

    def ports(address: bytes | None = None, port: int | None = None) -> list[int]:
        return [entry.key.sport for entry in flows.select(tracked, flows.Selection(address, port))]

    assert ports() == [1001, 1000]
    assert ports(address=SERVER) == ports(address=CLUSTER_IP) == ports(port=80) == ports(port=8080) == [1001, 1000]
    assert ports(CLIENT, 1000) == [1000]
    assert ports(address=CLUSTER_IP6) == []


def test_describe_tells_a_flow_as_its_opener_sees_it() -> None:
    """Source, destination and backend are told with ports, ages in seconds."""
    entry = flows.live(pair(1000, seen_s=2.5), NOW)[0]
    assert flows.describe(entry, flows.Nodes({}, {}), NOW) == flows.Flow(
        "TCP",
        "10.244.0.5:1000",
        "10.96.0.10:80",
        "10.244.1.7:8080",
        "10.244.0.5:1000",
        "",
        "",
        "",
        3,
        "established",
        7.5,
        2.5,
    )


OUTSIDE, OWN, OTHER, ADDRESS = map(packed, ("203.0.113.9", "192.0.2.1", "192.0.2.2", "198.51.100.7"))
PEER_MAC = bytes.fromhex("020000000005")
NODES = flows.Nodes({OWN: abi.NodeFlag.OWN, OTHER: 0}, {PEER_MAC: OTHER})


def external(
    destination: bytes, port: int, answers: tuple[bytes, int], way: abi.Way, back: abi.Way, flags: int = 0
) -> tuple[str, str, str]:
    """(entry, handed_to, way_back) of an outside client's flow."""
    key = abi.Tuple(OUTSIDE, destination, 1000, port, TCP)
    twin = abi.Tuple(answers[0], OUTSIDE, answers[1], 1000, TCP)
    flow = abi.Flow(twin, NOW, NOW + 1, NOW, 3, abi.FlowState.ESTABLISHED, flags, way)
    found = flows.describe(flows.Entry(key, flow, back), NODES, NOW)
    return found.entry, found.handed_to, found.way_back


def way(kind: abi.WayKind, end: bytes = b"") -> abi.Way:
    return abi.Way(2, kind, end.ljust(16, b"\0"))


ROUTE = way(abi.WayKind.ROUTE)


@pytest.mark.parametrize(
    ("destination", "port", "answers", "there", "back", "expected"),
    [
        pytest.param(OWN, 30080, (SERVER, 8080), BY_DESTINATION, ROUTE, ("this node", "", "this node"), id="all here"),
        pytest.param(
            OWN,
            30080,
            (SERVER, 8080),
            way(abi.WayKind.NODE, OTHER),
            ROUTE,
            ("this node", "10.244.1.7:8080 by 192.0.2.2", "this node"),
            id="entry, answers come back through it",
        ),
        pytest.param(
            OWN,
            30080,
            (OWN, 30080),
            way(abi.WayKind.TUNNEL, OTHER),
            ROUTE,
            ("this node", "node 192.0.2.2 chooses", "direct"),
            id="entry, direct return",
        ),
        pytest.param(
            SERVER,
            8080,
            (SERVER, 8080),
            BY_DESTINATION,
            way(abi.WayKind.MAC, PEER_MAC + bytes(6)),
            ("192.0.2.2", "", "192.0.2.2"),
            id="handed over at layer 2",
        ),
        pytest.param(
            SERVER,
            8080,
            (SERVER, 8080),
            BY_DESTINATION,
            way(abi.WayKind.MAC, bytes(12)),
            ("00:00:00:00:00:00", "", "00:00:00:00:00:00"),
            id="by a MAC that is nobody's now",
        ),
        pytest.param(
            SERVER,
            8080,
            (SERVER, 8080),
            BY_DESTINATION,
            way(abi.WayKind.TUNNEL, OTHER),
            ("192.0.2.2", "", "192.0.2.2"),
            id="handed over in the tunnel",
        ),
        pytest.param(
            OTHER, 30080, (SERVER, 8080), BY_DESTINATION, ROUTE, ("192.0.2.2", "", "direct"), id="answered directly"
        ),
        pytest.param(
            ADDRESS, 80, (SERVER, 8080), BY_DESTINATION, ROUTE, ("", "", "direct"), id="an address of no node's"
        ),
    ],
)
def test_describe_tells_entry_node_and_way_back(
    destination: bytes,
    port: int,
    answers: tuple[bytes, int],
    there: abi.Way,
    back: abi.Way,
    expected: tuple[str, str, str],
) -> None:
    """As far as this node's entries tell."""
    assert external(destination, port, answers, there, back) == expected


def test_describe_of_what_came_out_of_the_tunnel_is_not_handed_on() -> None:
    """From its second packet on, the opener's entry knows the sender as well."""
    tunnel = way(abi.WayKind.TUNNEL, OTHER)
    told = external(SERVER, 8080, (SERVER, 8080), tunnel, tunnel, abi.FlowFlag.HANDED_OVER)
    assert told == ("192.0.2.2", "", "192.0.2.2")


def test_pods_name_container_and_device() -> None:
    """A recorded container is named by its id, another by its hash; a device that is gone is told by its index."""
    known = pods.container_hash("abc")
    found = pods.pods(
        [
            (abi.PodKey(SERVER), abi.Pod(2**31 - 1, 0, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", 0xFE)),
            (abi.PodKey(CLIENT), abi.Pod(1, 0, bytes(6), bytes(6), known)),
        ],
        {known: "abc"},
        {CLIENT: ["this-node:80/TCP->8080"]},
    )
    assert [(pod.address, pod.device, pod.container_id, pod.host_ports) for pod in found] == [
        ("10.244.0.5", "lo", "abc", ("this-node:80/TCP->8080",)),
        ("10.244.1.7", "", "", ()),
    ]
    assert (found[1].pod_mac, found[1].container_hash) == ("02:00:00:00:00:01", "00000000000000fe")


def test_host_ports_are_told_by_pod_and_as_services() -> None:
    """Those of every address as this node's, and no Service among them; `services` shows both."""
    flags = abi.FrontendFlag.EXTERNAL | abi.FrontendFlag.HOST_PORT
    number = abi.HostPort.IDS + 5
    frontends = [
        (abi.FrontendKey(packed("::"), 8053, UDP), abi.Frontend(number + 1, 1, 1, 0, flags, 0)),
        (abi.FrontendKey(packed("0.0.0.0"), 30080, TCP), abi.Frontend(1, 0, 0, 0, abi.FrontendFlag.EXTERNAL, 0)),
        (abi.FrontendKey(packed("192.0.2.1"), 8080, TCP), abi.Frontend(number, 1, 1, 0, flags, 0)),
        (abi.FrontendKey(packed("0.0.0.0"), 8053, UDP), abi.Frontend(number + 2, 1, 1, 0, flags, 0)),
    ]
    known = {
        abi.BackendKey(number): abi.Backend(CLIENT, 80, TCP, 0),
        abi.BackendKey(number + 1): abi.Backend(CLIENT, 53, UDP, 0),
        abi.BackendKey(number + 2): abi.Backend(SERVER, 53, UDP, 0),
    }
    assert pods.host_ports(frontends, known) == {
        CLIENT: ["[this-node]:8053/UDP->53", "192.0.2.1:8080/TCP->80"],
        SERVER: ["this-node:8053/UDP->53"],
    }
    slots = {abi.SlotKey(number + each, 0): abi.Slot(number + each) for each in range(3)}
    assert [row[0] for row in services.rows(services.frontends(frontends, slots, known))] == [
        "[this-node]:8053",
        "this-node:8053",
        "any-node:30080",
        "192.0.2.1:8080",
    ]


def test_recorded_containers_are_read_in_host_locals_format(tmp_path: Path) -> None:
    """A reservation's first line is the container; what else lies there is passed over."""
    network = tmp_path / "pods"
    network.mkdir()
    (network / "10.244.0.5").write_text("abc\r\neth0")
    (network / "10.244.0.6").write_text("")
    (network / "lock").write_text("")
    (network / "last_reserved_ip.0").write_text("10.244.0.5")
    assert pods.recorded_containers(tmp_path)[pods.container_hash("abc")] == "abc"
    assert pods.recorded_containers(tmp_path / "absent") == {}


def test_drops_add_up_the_cpus_and_explain() -> None:
    """Counts of all CPUs are one row, the most frequent first, each with its meaning."""
    spoofed, full = abi.DropKey(abi.DropReason.SPOOFED, 1), abi.DropKey(abi.DropReason.FLOWS_FULL, 2**31 - 1)
    count = abi.DropCount(3, 300).pack()
    found = drops.drops([(full.pack(), abi.DropCount(1, 60).pack()), (spoofed.pack(), count + count)])
    assert [(drop.reason, drop.device, drop.packets, drop.octets) for drop in found] == [
        ("spoofed", "lo", 6, 600),
        ("flows_full", "", 1, 60),
    ]
    assert found[0].meaning == drops.MEANINGS[abi.DropReason.SPOOFED]


def test_drops_of_a_newer_programs_reason_are_shown_by_number() -> None:
    """A reason that this version does not know hides nothing."""
    (drop,) = drops.drops([(abi.DropKey(999, 1).pack(), abi.DropCount(1, 1).pack())])
    assert drop.reason == "999"


def test_every_reason_and_counter_has_a_meaning() -> None:
    """Whoever adds one must say what it means."""
    assert set(drops.MEANINGS) == set(abi.DropReason) - {abi.DropReason.NONE}
    assert set(drops.COUNTER_MEANINGS) == set(abi.Counter)


def test_counters_add_up_the_cpus() -> None:
    """Each counter is the sum of its CPUs; one that is not there is 0."""
    number = int(abi.Counter.REFUSALS)
    value = (2).to_bytes(8, "little") + (5).to_bytes(8, "little")
    totals = drops.counters([(number.to_bytes(4, "little"), value)])
    assert totals["refusals"] == 7
    assert totals["flows_created"] == 0


def test_table_cuts_nothing() -> None:
    """Columns are as wide as their longest text."""
    lines = table(("A", "B"), [("2001:db8:1111:2222:3333:4444:5555:6666", "x"), ("y", "z")])
    assert lines[1] == "2001:db8:1111:2222:3333:4444:5555:6666  x"
    assert len({line.index(end) for line, end in zip(lines, "Bxz", strict=True)}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.85, "850ms"), (12.9, "12s"), (200, "3m20s"), (7500, "2h05m"), (273_600, "3d04h")],
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    """Short spans are exact, long ones are readable."""
    assert duration(seconds) == text


def test_endpoint_brackets_ipv6() -> None:
    """A port is told from an IPv6 address's last group."""
    assert endpoint(CLUSTER_IP, 80) == "10.96.0.10:80"
    assert endpoint(CLUSTER_IP6, 53) == "[fd00:10:96::a]:53"
    assert (protocol_name(TCP), protocol_name(200)) == ("TCP", "200")
