# SPDX-License-Identifier: Apache-2.0
"""The capability `portMappings`: what the runtime asks for, and the frontends that it comes to. Pure.

    {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]}}

Without `hostIP`, or where it is unspecified, a host port is met at every address of this node: of both families that
the pod has, or of that one. Source: CONVENTIONS.md of the specification; kubelet leaves ports without hostPort out.
Names are taken in either case of letters, as the reference plugin takes them: containerd 1.6 writes `HostPort`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from bpf import address as addresses
from bpf.abi import Backend, FrontendKey
from bpf.abi import HostPort as Ids
from cni.config import Json
from cni.errors import ConfigError

PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "sctp": IPPROTO_SCTP}
ANY = {True: addresses.packed("0.0.0.0"), False: addresses.packed("::")}

_ID_COUNT = 2**32 - 1 - Ids.IDS


class PortMapping(NamedTuple):
    """`host_ip` is "" for every address of the node; `protocol` is one of PROTOCOLS; `port` is the container's."""

    host_ip: str
    host_port: int
    protocol: str
    port: int

    def __str__(self) -> str:
        where = f" of {self.host_ip}" if self.host_ip else ""
        return f"host port {self.host_port}/{self.protocol}{where}"


class HostPort(NamedTuple):
    """Where a mapping is met in one family, and the pod that it leads to."""

    mapping: PortMapping
    key: FrontendKey
    backend: Backend

    def identity(self, container_hash: int) -> int:
        return identity(self.key.pack(), self.backend.address, container_hash)


def identity(key: bytes, pod: bytes, container_hash: int) -> int:
    """The id of a host port's service and backend: made of whose it is, so that nobody need remember it, and that of
    the next pod with this port is another. By it a flow is told from those to come."""
    digest = hashlib.sha256(container_hash.to_bytes(8, "little") + key + pod).digest()
    return int(Ids.IDS) + int.from_bytes(digest[:8], "little") % _ID_COUNT


def mappings(asked: object) -> tuple[PortMapping, ...]:
    """Reads `portMappings`, without repetition.

    Raises:
        ConfigError: one is not of the form.
    """
    if asked is None:
        return ()
    if not isinstance(asked, list):
        raise ConfigError(f"portMappings: expected a list, not {asked!r}")
    return tuple(dict.fromkeys(map(_mapping, asked)))


def host_ports(mapped: Iterable[PortMapping], pod: Sequence[str]) -> list[HostPort]:
    """What mappings come to for a pod with these addresses, of which the first of each family counts."""
    of_family: dict[bool, bytes] = {}
    for address in map(addresses.packed, pod):
        of_family.setdefault(addresses.is_v4(address), address)
    return [
        HostPort(
            mapping,
            FrontendKey(_met_at(mapping, is_v4), mapping.host_port, PROTOCOLS[mapping.protocol]),
            Backend(address, mapping.port, PROTOCOLS[mapping.protocol], 0),
        )
        for mapping in mapped
        for is_v4, address in of_family.items()
        if not mapping.host_ip or addresses.is_v4(addresses.packed(mapping.host_ip)) == is_v4
    ]


def required(mapped: Iterable[PortMapping], pod: Sequence[str]) -> list[HostPort]:
    """As `host_ports`.

    Raises:
        ConfigError: a mapping's address is of a family that the pod lacks, or two mappings want one host port for
            different ports.
    """
    found: dict[FrontendKey, HostPort] = {}
    for mapping in mapped:
        ports = host_ports([mapping], pod)
        if not ports:
            raise ConfigError(f"portMappings: {mapping}: the pod has no address of that family")
        for port in ports:
            if found.setdefault(port.key, port).backend != port.backend:
                raise ConfigError(f"portMappings: {mapping} is asked for twice")
    return list(found.values())


def _met_at(mapping: PortMapping, is_v4: bool) -> bytes:
    return addresses.packed(mapping.host_ip) if mapping.host_ip else ANY[is_v4]


def _mapping(item: object) -> PortMapping:
    if not isinstance(item, dict):
        raise ConfigError(f"portMappings: expected objects, not {item!r}")
    fields = {name.lower(): value for name, value in item.items()}
    protocol = str(fields.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise ConfigError(f"portMappings: protocol {fields['protocol']!r} is not one of {', '.join(PROTOCOLS)}")
    return PortMapping(_host_ip(fields), _port(fields, "hostPort"), protocol, _port(fields, "containerPort"))


def _host_ip(item: Json) -> str:
    host_ip = item.get("hostip") or ""
    try:
        return addresses.text(addresses.packed(host_ip)) if host_ip else ""
    except (ValueError, TypeError) as error:
        raise ConfigError(f"portMappings: hostIP {host_ip!r} is not an address") from error


def _port(item: Json, name: str) -> int:
    port = item.get(name.lower())
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ConfigError(f"portMappings: {name}: expected a number from 1 to 65535, not {port!r}")
    return port
