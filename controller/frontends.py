# SPDX-License-Identifier: Apache-2.0
"""Where a Service is met: the addresses and ports that its clients talk to. Pure.

Cluster IPs; and for clients outside, NodePorts, external IPs and load-balancer addresses. A NodePort stands under the
unspecified address of its family, which the programs look up where a packet's own is a node's. A cluster IP and a load
balancer's address stand by themselves as well, under port and protocol 0: what asks the one for a port that the Service
does not have is refused, at the other it is dropped; the latter also under port 0 and ICMP, where echo is answered. The
families are those of the cluster IPs. Source:
pkg/proxy of Kubernetes; KEP-1860 for ipMode.
"""

from collections.abc import Iterable, Sequence
from socket import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from bpf.abi import FrontendFlag, FrontendKey
from bpf.address import is_v4, packed
from bpf.address import text as address_text
from controller import sourceranges
from controller.model import Service, ServicePort
from controller.sourceranges import Ranges

PROTOCOLS = {"TCP": IPPROTO_TCP, "UDP": IPPROTO_UDP, "SCTP": IPPROTO_SCTP}
ICMP = {4: IPPROTO_ICMP, 6: IPPROTO_ICMPV6}
ANY = {4: packed("0.0.0.0"), 6: packed("::")}

# A Service port in one family: family, port, protocol; port and protocol 0: the family's cluster IPs and its load
# balancers' addresses; port 0 and ICMP: the latter, where they answer echo.
PortKey = tuple[int, int, int]


class Frontends(NamedTuple):
    """(struct frontend_key, enum frontend_flag) each: those inside the cluster, and those for clients outside.

    Attributes:
        sources: the clients for which those with FRONTEND_SOURCES are.
    """

    cluster: tuple[tuple[bytes, int], ...]
    external: tuple[tuple[bytes, int], ...]
    sources: Ranges = ()

    @property
    def all(self) -> tuple[tuple[bytes, int], ...]:
        return self.cluster + self.external


def frontends(
    service: Service, asked: FrontendFlag, own_addresses: Sequence[bytes], echo: bool
) -> tuple[dict[PortKey, tuple[str, Frontends]], list[str]]:
    """Each port's name and frontends, and what of the Service makes no sense.

    Args:
        asked: FRONTEND_DIRECT and FRONTEND_MAGLEV, where its clients outside are to have them.
        own_addresses: this node's, 16 bytes each; of each family the first counts.
        echo: load-balancer addresses answer it.
    """
    problems: list[str] = []
    inside = _by_family(service.spec.cluster_ips or [service.spec.cluster_ip], problems)
    external_ips = _by_family(service.spec.external_ips or [], problems)
    load_balancers = _by_family(_load_balancers(service), problems)
    clients = sourceranges.allowed(service.spec.load_balancer_source_ranges or (), problems) if load_balancers else {}
    internal, flags = FrontendFlag.CLUSTER_IP, FrontendFlag.EXTERNAL | asked
    if service.spec.internal_traffic_policy == "Local":
        internal |= FrontendFlag.LOCAL
    if service.spec.external_traffic_policy == "Local":
        # a node's own backends are gone with it: no other node could go on with their connections
        flags = (flags | FrontendFlag.LOCAL) & ~FrontendFlag.MAGLEV
    found: dict[PortKey, tuple[str, Frontends]] = {}
    for family, addresses in inside.items():
        alone = [one for one in load_balancers.get(family, ()) if one not in addresses]
        itself = _inside(addresses, 0, 0, FrontendFlag.CLUSTER_IP), _inside(alone, 0, 0, FrontendFlag.EXTERNAL)
        found[family, 0, 0] = "", Frontends(*itself)
        if alone and echo:
            found[family, 0, ICMP[family]] = "", Frontends((), _inside(alone, 0, ICMP[family], FrontendFlag.EXTERNAL))
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
            cluster = _inside(addresses, port.port, protocol, internal)
            external = [(FrontendKey(one, port.port, protocol), flags) for one in external_ips.get(family, ())]
            balanced = flags | (_restriction(clients[family], family, own_addresses) if family in clients else 0)
            external += [(FrontendKey(one, port.port, protocol), balanced) for one in load_balancers.get(family, ())]
            if node_port:
                # a node's own address is gone with it
                external.append((FrontendKey(ANY[family], node_port, protocol), flags & ~FrontendFlag.MAGLEV))
            found[family, port.port, protocol] = (
                port.name,
                Frontends(
                    cluster,
                    # an address that stands there twice is a load balancer's as well
                    tuple({key.pack(): int(one) for key, one in external if key.address not in addresses}.items()),
                    clients.get(family, ()),
                ),
            )
    return found, problems


def _inside(addresses: list[bytes], port: int, protocol: int, flags: int) -> tuple[tuple[bytes, int], ...]:
    return tuple((FrontendKey(one, port, protocol).pack(), int(flags)) for one in addresses)


def address_of(text: str, family: int) -> bytes:
    """Raises ValueError where it is no address of that family."""
    address = packed(text)
    if is_v4(address) != (family == 4):
        raise ValueError(f"not an IPv{family} address: {text!r}")
    return address


def is_port(number: int) -> bool:
    return 0 < number < 65536


def is_address(frontend: bytes) -> bool:
    """Whether a struct frontend_key stands for an address as such, not for a port there."""
    return not FrontendKey.unpack(frontend).port


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


def _load_balancers(service: Service) -> list[str]:
    """The addresses by which a load balancer hands on packets as they are: not those of proxies, nor names."""
    if service.spec.type != "LoadBalancer" or not service.status.load_balancer:
        return []
    given = service.status.load_balancer.ingress or ()
    return [one.ip for one in given if one.ip and one.ip_mode in (None, "", "VIP")]


def _restriction(clients: Ranges, family: int, own_addresses: Iterable[bytes]) -> FrontendFlag:
    """The flags of a load-balancer address that is not for everybody."""
    own = next((one for one in own_addresses if is_v4(one) == (family == 4)), None)
    here = own is not None and sourceranges.holds(clients, own)
    return FrontendFlag.SOURCES | (FrontendFlag.HOST_ALLOWED if here else 0)


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
