# SPDX-License-Identifier: Apache-2.0
"""What a runtime asks for by the capability portMappings, and the frontends that it comes to."""

from typing import Any

import pytest

from bpf.abi import Backend, FrontendKey, HostPort
from bpf.address import packed
from cni.errors import ConfigError
from cni.portmap import PortMapping, host_ports, mappings, required

POD = ["203.0.113.2", "2001:db8::2"]
TCP, UDP = 6, 17


def mapping(**changes: Any) -> dict[str, Any]:
    return {"hostPort": 8053, "containerPort": 53, "protocol": "tcp", **changes}


def met_at(*asked: dict[str, Any]) -> list[tuple[FrontendKey, Backend]]:
    return [(port.key, port.backend) for port in required(mappings(list(asked)), POD)]


@pytest.mark.parametrize("host_ip", [{}, {"hostIP": ""}, {"hostIP": None}], ids=["absent", "empty", "null"])
def test_mapping_without_address_is_met_at_every_one_of_both_families(host_ip: dict[str, Any]) -> None:
    """As a runtime leaves it out, or kubelet leaves it empty."""
    assert met_at(mapping(**host_ip)) == [
        (FrontendKey(packed("0.0.0.0"), 8053, TCP), Backend(packed(POD[0]), 53, TCP, 0)),
        (FrontendKey(packed("::"), 8053, TCP), Backend(packed(POD[1]), 53, TCP, 0)),
    ]


@pytest.mark.parametrize(
    ("host_ip", "pod"),
    [("0.0.0.0", POD[0]), ("::", POD[1]), ("192.0.2.1", POD[0]), ("127.0.0.1", POD[0]), ("2001:DB8:0::1", POD[1])],
)
def test_mapping_of_an_address_leads_to_the_pods_of_that_family(host_ip: str, pod: str) -> None:
    """However the address is written."""
    assert met_at(mapping(hostIP=host_ip, protocol="UDP")) == [
        (FrontendKey(packed(host_ip), 8053, UDP), Backend(packed(pod), 53, UDP, 0))
    ]


def test_one_port_of_several_addresses_and_protocols_is_as_many_host_ports() -> None:
    """Each is a frontend of its own; what is said twice counts once."""
    asked = [mapping(hostIP=ip, protocol=name) for ip in ("192.0.2.1", "192.0.2.2") for name in ("tcp", "udp", "TCP")]
    assert len(set(met_at(*asked))) == len(met_at(*asked)) == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"hostPort": 1}, "expected a list"),
        ([1], "expected objects"),
        ([mapping(hostPort=0)], "hostPort: expected a number from 1 to 65535, not 0"),
        ([mapping(hostPort=65536)], "hostPort: .* not 65536"),
        ([mapping(hostPort="80")], "hostPort: .* not '80'"),
        ([mapping(hostPort=True)], "hostPort: .* not True"),
        ([{"hostPort": 80}], "containerPort: .* not None"),
        ([mapping(containerPort=-1)], "containerPort: .* not -1"),
        ([mapping(protocol="icmp")], "protocol 'icmp' is not one of tcp, udp"),
        ([mapping(hostIP="node1")], "hostIP 'node1' is not an address"),
        ([mapping(hostIP=["192.0.2.1"])], "hostIP .* is not an address"),
        ([mapping(), mapping(containerPort=54)], "host port 8053/tcp is asked for twice"),
        ([mapping(), mapping(hostIP="0.0.0.0", containerPort=54)], "host port 8053/tcp of 0.0.0.0 is asked for twice"),
    ],
)
def test_mapping_that_cannot_be_is_named(asked: object, said: str) -> None:
    """Error 7 says which field of what, and what was expected."""
    with pytest.raises(ConfigError, match=said):
        required(mappings(asked), POD)


def test_mapping_of_a_family_that_the_pod_lacks_is_refused_and_passed_over_by_del() -> None:
    """Nobody could be served there; and a DEL must not fail on it."""
    mapped = mappings([mapping(hostIP="2001:db8::1")])
    with pytest.raises(ConfigError, match="host port 8053/tcp of 2001:db8::1: the pod has no address of that family"):
        required(mapped, POD[:1])
    assert host_ports(mapped, POD[:1]) == []


def test_names_are_taken_in_either_case_of_letters() -> None:
    """Those of containerd 1.6 begin with a capital."""
    written = {"HostPort": 8053, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "192.0.2.1"}
    assert mappings([written]) == mappings([mapping(protocol="udp", hostIP="192.0.2.1")])


def test_one_port_of_every_protocol_is_as_many_host_ports() -> None:
    """The protocol is in the key."""
    asked = mappings([mapping(protocol=name) for name in ("TCP", "UDP", "SCTP")])
    assert [port.key.protocol for port in host_ports(asked, POD[:1])] == [6, 17, 132]


def test_nothing_asked_for_is_nothing() -> None:
    """Most pods have no host port."""
    assert mappings(None) == mappings([]) == ()


def test_identities_are_host_ports_and_differ_by_container_address_and_key() -> None:
    """A flow that knows one of them is nobody else's."""
    ports = host_ports([PortMapping("", number, "tcp", 53) for number in (1, 2)], POD)
    found = {port.identity(owner) for port in ports for owner in (1, 2)}
    assert len(found) == 8
    assert all(HostPort.IDS <= number < 2**32 - 1 for number in found)
