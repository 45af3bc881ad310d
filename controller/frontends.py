# SPDX-License-Identifier: Apache-2.0
"""Where a Service is met: the addresses and ports that its clients talk to. Pure.

Cluster IPs; and for clients outside, NodePorts, external IPs and load-balancer addresses. A NodePort stands under the
unspecified address of its family, which the programs look up where a packet's own is a node's. A cluster IP stands by
itself as well, under port and protocol 0: what asks it for a port that the Service does not have is refused. The
families are those of the cluster IPs. Source: pkg/proxy of Kubernetes; KEP-1860 for ipMode.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from bpf.abi import FrontendFlag, FrontendKey
from bpf.address import is_v4, packed
from bpf.address import text as address_text
from controller.model import Service, ServicePort

PROTOCOLS = {"TCP": IPPROTO_TCP, "UDP": IPPROTO_UDP, "SCTP": IPPROTO_SCTP}
ANY = {4: packed("0.0.0.0"), 6: packed("::")}

# A Service port in one family: family, port, protocol; port and protocol 0: the family's cluster IPs.
PortKey = tuple[int, int, int]


class Frontends(NamedTuple):
    """(struct frontend_key, enum frontend_flag) each: those inside the cluster, and those for clients outside."""

    cluster: tuple[tuple[bytes, int], ...]
    external: tuple[tuple[bytes, int], ...]


def frontends(service: Service, direct: bool) -> tuple[dict[PortKey, tuple[str, Frontends]], list[str]]:
    """Each port's name and frontends, and what of the Service makes no sense.

    Args:
        direct: backends' nodes answer outside clients themselves.
    """
    problems: list[str] = []
    inside = _by_family(service.spec.cluster_ips or [service.spec.cluster_ip], problems)
    outside = _by_family([*(service.spec.external_ips or ()), *_load_balancers(service, problems)], problems)
    flags = FrontendFlag.EXTERNAL | (FrontendFlag.DIRECT if direct else 0)
    if service.spec.external_traffic_policy == "Local":
        flags |= FrontendFlag.LOCAL
    found: dict[PortKey, tuple[str, Frontends]] = {
        (family, 0, 0): ("", Frontends(_inside(addresses, 0, 0), ())) for family, addresses in inside.items()
    }
    node_ports: set[tuple[int, str]] = set()
    for port in service.spec.ports:
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None or not is_port(port.port):
            problems.append(f"port {port.port}/{port.protocol} cannot be")
            continue
        if any((family, port.port, protocol) in found for family in inside):
            problems.append(f"port {port.port}/{port.protocol} is there twice: the first is used")
            continue
        node_port = _node_port(service, port, node_ports, problems)
        for family, addresses in inside.items():
            cluster = _inside(addresses, port.port, protocol)
            external = [FrontendKey(address, port.port, protocol) for address in outside.get(family, ())]
            external += [FrontendKey(ANY[family], node_port, protocol)] if node_port else []
            found[family, port.port, protocol] = (
                port.name,
                Frontends(
                    cluster,
                    tuple((key.pack(), int(flags)) for key in external if key.address not in addresses),
                ),
            )
    return found, problems


def _inside(addresses: list[bytes], port: int, protocol: int) -> tuple[tuple[bytes, int], ...]:
    return tuple((FrontendKey(one, port, protocol).pack(), int(FrontendFlag.CLUSTER_IP)) for one in addresses)


def address_of(text: str, family: int) -> bytes:
    """Raises ValueError where it is no address of that family."""
    address = packed(text)
    if is_v4(address) != (family == 4):
        raise ValueError(f"not an IPv{family} address: {text!r}")
    return address


def is_port(number: int) -> bool:
    return 0 < number < 65536


def shown(frontend: bytes) -> str:
    """A struct frontend_key as messages name it."""
    key = FrontendKey.unpack(frontend)
    protocol = next((name for name, number in PROTOCOLS.items() if number == key.protocol), key.protocol)
    if key.address in ANY.values():
        return f"nodePort {key.port}/{protocol}"
    if not key.port:
        return address_text(key.address)
    return f"{address_text(key.address)} port {key.port}/{protocol}"


def _node_port(service: Service, port: ServicePort, taken: set[tuple[int, str]], problems: list[str]) -> int:
    """0: it has none. A load balancer's Service has those that it was given, also where it asks for no more.

    Args:
        taken: number and protocol of those that ports before this one have; what is returned comes to it.
    """
    number, protocol = port.node_port, port.protocol
    if not number or service.spec.type not in ("NodePort", "LoadBalancer"):
        return 0
    if not is_port(number) or (number, protocol) in taken:
        why = "is there twice: the first is used" if is_port(number) else "cannot be"
        problems.append(f"nodePort {number}/{protocol} {why}")
        return 0
    taken.add((number, protocol))
    return number


def _load_balancers(service: Service, problems: list[str]) -> Iterator[str]:
    """The addresses by which a load balancer hands on packets as they are: not those of proxies, nor names."""
    if service.spec.type != "LoadBalancer" or not service.status.load_balancer:
        return
    given = [
        one.ip for one in service.status.load_balancer.ingress or () if one.ip and one.ip_mode in (None, "", "VIP")
    ]
    if given and _restricted(service, problems):
        problems.append("loadBalancerSourceRanges cannot be enforced yet: its load-balancer addresses are not served")
        return
    yield from given


def _restricted(service: Service, problems: list[str]) -> bool:
    """Whether some sources are to be kept away: a range of everything is none."""
    ranges = []
    for text in service.spec.load_balancer_source_ranges or ():
        try:
            ranges.append(ip_network(text.strip(), strict=False))
        except ValueError as error:
            problems.append(f"loadBalancerSourceRanges: {error}")
    return bool(service.spec.load_balancer_source_ranges) and not any(one.prefixlen == 0 for one in ranges)


def _by_family(texts: list[str], problems: list[str]) -> dict[int, list[bytes]]:
    """Addresses in order, without repetition."""
    found: dict[int, list[bytes]] = {}
    for text in dict.fromkeys(texts):
        family = 6 if ":" in text else 4
        try:
            address = address_of(text, family)
        except ValueError as error:
            problems.append(str(error))
            continue
        if address == ANY[family]:
            problems.append(f"not an address of a Service: {text!r}")  # NodePorts stand under it
        else:
            found.setdefault(family, []).append(address)
    return {family: addresses for family, addresses in found.items() if addresses}
