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
    coarse_clock=0,
)


def pair(
    port: int, seen_s: float = 0, state: abi.FlowState = abi.FlowState.ESTABLISHED, protocol: int = TCP
) -> list[flows.Entry]:
    """Both entries of a flow from the client's `port` to the Service, last seen `seen_s` ago."""
    opener = abi.Tuple(CLIENT, CLUSTER_IP, port, 80, protocol)
    answer = abi.Tuple(SERVER, CLIENT, 8080, port, protocol)
    seen = NOW - int(seen_s * SECOND)
    flow = abi.Flow(answer, seen, seen - 5 * SECOND, 3, state, 0)
    return [(opener, flow), (answer, flow._replace(twin=opener, flags=abi.FlowFlag.REPLY))]


def test_frontends_list_backends_missing_ones_and_none() -> None:
    """A frontend has its slots' backends in order; a hole is shown as one; no slots is no backend."""
    found = services.frontends(
        [
            (abi.FrontendKey(CLUSTER_IP6, 53, UDP), abi.Frontend(2, 0, 0)),
            (abi.FrontendKey(CLUSTER_IP, 80, TCP), abi.Frontend(1, 3, abi.FrontendFlag.CLUSTER_IP)),
        ],
        {abi.SlotKey(1, 0): abi.Slot(7), abi.SlotKey(1, 1): abi.Slot(8)},
        {abi.BackendKey(7): abi.Backend(SERVER, 8080, TCP)},
    )
    assert found == [
        services.Frontend(
            "10.96.0.10",
            80,
            "TCP",
            1,
            ("cluster_ip",),
            (services.Target(7, "10.244.1.7", 8080), services.Target(8, "", 0), services.Target(0, "", 0)),
        ),
        services.Frontend("fd00:10:96::a", 53, "UDP", 2, (), ()),
    ]
    assert [row[-1] for row in services.rows(found)] == [
        "10.244.1.7:8080",
        "missing: backend 8",
        "missing: backend 0",
        "none: refused",
    ]


def test_backends_tell_their_services_and_flows() -> None:
    """A backend of two services names both; one that none uses is shown all the same."""
    found = backends.backends(
        [
            (abi.BackendKey(2), abi.Backend(SERVER, 8080, TCP)),
            (abi.BackendKey(1), abi.Backend(CLIENT, 53, UDP)),
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
    assert [key.sport for key, _ in flows.live(entries, CONFIG, NOW)] == [1000, 1001]


def test_live_turns_an_entry_round_whose_twin_was_evicted() -> None:
    """A flow of which only the answering half is left is shown from its opener's side."""
    (opener, flow), reply = pair(1000)
    assert flows.live([reply], CONFIG, NOW) == [(opener, flow._replace(flags=abi.FlowFlag.REPLY))]


@pytest.mark.parametrize(
    ("state", "protocol", "limit_s"),
    [
        (abi.FlowState.NEW, TCP, 60),
        (abi.FlowState.ESTABLISHED, TCP, 3600),
        (abi.FlowState.CLOSING, TCP, 120),
        (abi.FlowState.CLOSED, TCP, 30),
        (abi.FlowState.RESET, TCP, 30),
        (abi.FlowState.NEW, UDP, 30),
        (abi.FlowState.ESTABLISHED, UDP, 180),
    ],
)
def test_live_leaves_out_what_has_expired(state: abi.FlowState, protocol: int, limit_s: int) -> None:
    """An entry that the programs take for absent is not shown."""
    assert len(flows.live(pair(1000, limit_s, state, protocol), CONFIG, NOW)) == 1
    assert flows.live(pair(1000, limit_s + 1, state, protocol), CONFIG, NOW) == []


def test_select_takes_either_end_before_or_after_translation() -> None:
    """An address or port finds a flow wherever it occurs; the busiest comes first."""
    tracked = flows.live(pair(1000, seen_s=9) + pair(1001, seen_s=1), CONFIG, NOW)

    def ports(address: bytes | None = None, port: int | None = None) -> list[int]:
        return [key.sport for key, _ in flows.select(tracked, flows.Selection(address, port))]

    assert ports() == [1001, 1000]
    assert ports(address=SERVER) == ports(address=CLUSTER_IP) == ports(port=80) == ports(port=8080) == [1001, 1000]
    assert ports(CLIENT, 1000) == [1000]
    assert ports(address=CLUSTER_IP6) == []


def test_describe_tells_a_flow_as_its_opener_sees_it() -> None:
    """Source, destination and backend are told with ports, ages in seconds."""
    entry = flows.live(pair(1000, seen_s=2.5), CONFIG, NOW)[0]
    assert flows.describe(entry, NOW) == flows.Flow(
        "TCP",
        "10.244.0.5:1000",
        "10.96.0.10:80",
        "10.244.1.7:8080",
        "10.244.0.5:1000",
        3,
        "established",
        7.5,
        2.5,
    )


def test_pods_name_container_and_device() -> None:
    """A recorded container is named by its id, another by its hash; a device that is gone is told by its index."""
    known = pods.container_hash("abc")
    found = pods.pods(
        [
            (abi.PodKey(SERVER), abi.Pod(2**31 - 1, 0, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", 0xFE)),
            (abi.PodKey(CLIENT), abi.Pod(1, 0, bytes(6), bytes(6), known)),
        ],
        {known: "abc"},
    )
    assert [(pod.address, pod.device, pod.container_id) for pod in found] == [
        ("10.244.0.5", "lo", "abc"),
        ("10.244.1.7", "", ""),
    ]
    assert (found[1].pod_mac, found[1].container_hash) == ("02:00:00:00:00:01", "00000000000000fe")


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
