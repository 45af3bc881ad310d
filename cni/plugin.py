# SPDX-License-Identifier: Apache-2.0
"""The verbs. The warm server and the one-shot process both run this, and nothing else.

ADD: record the intention, reserve addresses, create the link, connect both ends, enter the pod in the map, open its
host ports, complete the record. Whatever fails is undone at once; what a killed process leaves is undone by the next
ADD or DEL of the same interface. DEL goes the other way, and takes everything that is gone already for done.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from typing import NamedTuple

from bpf import syscall
from bpf.abi import Pod
from bpf.errors import BpfError, NotLoadedError
from bpf.settings import Settings
from cni import config, link, portmap, result
from cni.config import Json, Network, Request
from cni.datapath import Datapath, container_hash
from cni.errors import (
    CniError,
    ConfigError,
    ContainerError,
    DifferenceError,
    ExistsError,
    InternalError,
    NodeError,
    TryAgainError,
    VersionError,
)
from cni.hostports import HostPorts
from cni.lease import Lease, Leases
from cni.link import PodLink
from cni.portmap import HostPort
from cni.ranges import Address
from cni.records import Record, Records


class Answer(NamedTuple):
    """What the runtime gets: standard output and exit status; `failure` is what it tells of."""

    output: bytes
    status: int
    failure: CniError | None = None


def failed(failure: CniError, text: bytes) -> Answer:
    """The answer of a call that failed; `text` is its network configuration, which says the version to answer in."""
    return Answer(_json(result.error(failure, config.version_asked(text))), 1, failure)


def broken(error: Exception, text: bytes) -> Answer:
    """The answer of a call that met a defect, or a refusal of the kernel that nobody foresaw."""
    return failed(InternalError(f"{type(error).__name__}: {error}"), text)


class Plugin:
    """Carries out verbs; threads may share one."""

    def __init__(self, settings: Settings) -> None:
        self._proc_sys = settings.proc_sys
        self._datapath = Datapath(settings)
        self._host_ports = HostPorts(self._datapath)
        # By link: the host ports of the pods that have any.
        self._opened: dict[str, list[HostPort]] = {}
        self._leases = Leases(settings)
        self._records = Records(settings.run_dir)

    def answer(self, variables: Mapping[str, str], text: bytes, netns_fd: int | None) -> Answer:
        """Carries out a call.

        Args:
            variables: the CNI_* variables.
            text: the network configuration.
            netns_fd: CNI_NETNS, opened, or None where it could not be.
        """
        try:
            rendered = self._carry_out(config.request(variables), text, netns_fd)
        except (CniError, BpfError) as error:
            return failed(error if isinstance(error, CniError) else _translated(error), text)
        return Answer(_json(rendered) if rendered else b"", 0)

    def require_ready(self, text: bytes) -> None:
        """Raises CniError or BpfError, with the reason, where an ADD with this network configuration cannot succeed."""
        network = config.network(text)
        with self._datapath.programs():
            pass
        self._leases.require_ranges(network)

    def reattach(self) -> int:
        """Gives every pod link the programs that are pinned now, after its entries in a map of pods that has lost them,
        with its pins or to a new layout; returns how many there are.

        Raises:
            BpfError, NodeError: programs cannot be loaded, or not attached.
        """
        with self._datapath.programs():  # the map is there
            pass
        for name in self._records.links():
            self._restore(name)
        self._host_ports.purge()
        with self._datapath.following() as programs:
            return link.reattach(link.host_ends(), programs)

    def outdated(self) -> bool:
        """Whether other programs have been pinned than those that the pod links have."""
        return self._datapath.replaced()

    def restore_host_ports(self) -> int:
        """Opens host ports again that nothing is met at: a Service that had their place has gone, say; returns how
        many.

        Raises:
            BpfError, NodeError.
        """
        closed = [name for name, ports in list(self._opened.items()) if not all(map(self._host_ports.is_met, ports))]
        return sum(map(self._reopen, closed))

    def delete_flows(self) -> int:
        """Deletes the flows of the pods that are gone; returns how many entries. It takes long where there are many."""
        return self._datapath.delete_flows()

    def _restore(self, name: str) -> None:
        """Enters a pod in the map again, as its link and its neighbours on the host tell of it."""
        record = self._records.read(name)
        if record is None or not record.complete:
            return
        with self._records.locked(record.container_id):
            # Verbs are carried out meanwhile by the one-shot process: what was read before may be gone.
            record = self._records.read(name)
            if record is None or not record.complete:
                return
            if record.port_mappings:
                self._opened[name] = portmap.host_ports(record.port_mappings, record.addresses)
            missing = [text for text in record.addresses if self._datapath.pod(text) is None]
            end = link.host_end(name, list(map(ip_address, missing))) if missing else None
            if end is None:
                return
            for address, pod_mac in end.neighbours.items():
                pod = Pod(end.ifindex, 0, pod_mac, end.mac, container_hash(record.container_id))
                self._datapath.set_pod(str(address), pod)

    def _reopen(self, name: str) -> int:
        """Opens host ports of a pod that are closed; returns how many."""
        record = self._records.read(name)
        if record:
            with self._records.locked(record.container_id):
                if self._records.read(name) == record:
                    owner = container_hash(record.container_id)
                    return sum(self._host_ports.restore(port, owner) for port in self._opened.get(name, ()))
        self._opened.pop(name, None)  # the one-shot process has carried out a DEL
        return 0

    def _carry_out(self, request: Request, text: bytes, netns_fd: int | None) -> Json | None:
        if request.verb == "VERSION":
            return result.versions(config.version_asked(text))
        network = config.network(text)
        with self._records.locked(request.container_id) as lock:
            request = request._replace(held=(lock,))
            if request.verb == "DEL":
                self._delete(request, network)
                return None
            netns = _required(request, netns_fd)
            if request.verb == "CHECK":
                self._check(request, network, netns)
                return None
            return result.render(self._add(request, network, netns), network.version)

    def _add(self, request: Request, network: Network, netns_fd: int) -> result.Result:
        before = result.parse(network.prev_result) if network.prev_result else None
        mapped = portmap.mappings(network.runtime.get("portMappings"))
        name = link.host_name(request.container_id, request.ifname)
        left = self._records.read(name)
        if left and left.complete:
            raise ExistsError(f"{request.container_id} has {request.ifname} already: its last ADD had no DEL")
        if left:
            self._delete(request, network)
        record = Record(request.container_id, request.ifname, network.name, request.pod, port_mappings=mapped)
        lease = self._reserve(request, network, record)
        record = record._replace(addresses=tuple(map(str, lease.addresses)))
        try:
            ports = portmap.required(mapped, record.addresses)
            self._records.write(name, record)
            made = self._connect(request, network.mtu, lease, netns_fd)
            self._open(request, ports)
            self._records.write(name, record._replace(complete=True))
        except Exception as error:
            self._undo(request, network, error)
            raise
        ours = _result(request, made, lease)
        return result.chained(before, ours) if before else ours

    def _reserve(self, request: Request, network: Network, record: Record) -> Lease:
        """Records the intention, then reserves addresses."""
        name = link.host_name(request.container_id, request.ifname)
        self._records.write(name, record)
        try:
            return self._leases.reserve(request, network)
        except Exception:
            self._records.remove(name)
            raise

    def _connect(self, request: Request, mtu: int | None, lease: Lease, netns_fd: int) -> PodLink:
        made = link.planned(request.container_id, request.ifname)
        index = link.create(made, netns_fd, mtu or self._mtu())
        with self._datapath.programs() as programs:
            link.connect_host(made, index, lease.addresses, programs, self._proc_sys)
        link.connect_pod(made, netns_fd, lease.addresses, lease.destinations, self._proc_sys)
        entry = _entry(request, made, index)
        replaced = [self._datapath.set_pod(str(address), entry) for address in lease.addresses]
        if any(replaced):
            self._host_ports.purge()
        return made

    def _open(self, request: Request, ports: Sequence[HostPort]) -> None:
        if not ports:
            return
        self._host_ports.require_node()
        self._opened[link.host_name(request.container_id, request.ifname)] = list(ports)
        for port in ports:
            self._host_ports.open(port, container_hash(request.container_id))

    def _undo(self, request: Request, network: Network, error: Exception) -> None:
        """Undoes an ADD that failed. Of what cannot be undone the record stays, for DEL."""
        try:
            self._delete(request, network, with_link=not isinstance(error, ExistsError))
        except CniError as second:
            if isinstance(error, CniError):
                error.details = f"{error.details}; not undone: {second}".removeprefix("; ")

    def _delete(self, request: Request, network: Network, with_link: bool = True) -> None:
        name = link.host_name(request.container_id, request.ifname)
        record = self._records.read(name)
        owner = container_hash(request.container_id)
        entered = {}
        addresses = self._leases.addresses(request, network, record)
        self._opened.pop(name, None)
        for port in portmap.host_ports(_mapped(network, record), addresses):
            self._host_ports.close(port, owner)
        for address in addresses:
            ifindex = self._datapath.delete_pod(address, owner)
            if ifindex is not None:
                entered[address] = ifindex
        if with_link:
            link.delete(name)
        for ifindex in set(entered.values()):
            self._datapath.forget(ifindex, list(entered))
        self._leases.release(request, network, record)
        self._records.remove(name)

    def _check(self, request: Request, network: Network, netns_fd: int) -> None:
        if network.version.startswith("0.3."):
            raise VersionError(f"CHECK: version {network.version} of the specification has none")
        if network.prev_result is None:
            raise ConfigError("prevResult: CHECK needs it")
        made, addresses = _made(request, result.parse(network.prev_result))
        with self._datapath.programs() as programs:
            index = link.check_host(made, {hook: syscall.program_id(fd) for hook, fd in programs.items()})
        link.check_pod(made, netns_fd, addresses)
        for address in addresses:
            if self._datapath.pod(str(address)) != _entry(request, made, index):
                raise DifferenceError(f"{address}: its entry in the map of pods is not this pod's")
        for port in portmap.required(portmap.mappings(network.runtime.get("portMappings")), list(map(str, addresses))):
            self._host_ports.check(port, container_hash(request.container_id))
        self._leases.check(request, network)

    def _mtu(self) -> int:
        node = self._leases.node()
        return node.mtu if node else link.device_mtu()


def _mapped(network: Network, record: Record | None) -> Sequence[portmap.PortMapping]:
    """The host ports that an interface may have, from whatever still tells."""
    if record and record.port_mappings:
        return record.port_mappings
    with suppress(ConfigError):  # such an ADD has failed
        return portmap.mappings(network.runtime.get("portMappings"))
    return ()


def _required(request: Request, netns_fd: int | None) -> int:
    if netns_fd is None:
        raise ContainerError(f"CNI_NETNS: {request.netns}: there is no such network namespace")
    link.require_foreign(netns_fd)
    return netns_fd


def _entry(request: Request, made: PodLink, index: int) -> Pod:
    return Pod(index, 0, made.pod_mac, made.mac, container_hash(request.container_id))


def _result(request: Request, made: PodLink, lease: Lease) -> result.Result:
    interfaces = [
        {"name": made.name, "mac": made.mac.hex(":")},
        {"name": made.pod_name, "mac": made.pod_mac.hex(":"), "sandbox": request.netns},
    ]
    ips = [
        {"address": f"{address}/{address.max_prefixlen}", "gateway": link.gateway(address.version), "interface": 1}
        for address in lease.addresses
    ]
    routes = [{"dst": str(item), "gw": link.gateway(item.version)} for item in lease.destinations]
    return result.Result(interfaces, ips, routes, lease.dns)


def _made(request: Request, before: result.Result) -> tuple[PodLink, list[Address]]:
    """The link and addresses that a result of ours tells of. Raises ConfigError where it tells of none."""
    name = link.host_name(request.container_id, request.ifname)
    try:
        macs = {
            (item["name"], bool(item.get("sandbox"))): bytes.fromhex(item["mac"].replace(":", ""))
            for item in before.interfaces
            if item.get("mac")
        }
        made = PodLink(name, macs[name, False], request.ifname, macs[request.ifname, True])
    except (ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"prevResult: it tells of no link {name} to {request.ifname}") from error
    own = [
        index for index, item in enumerate(before.interfaces) if item.get("sandbox") and item["name"] == made.pod_name
    ]
    return made, [ip_interface(ip["address"]).ip for ip in before.ips if ip.get("interface") in own]


def _translated(error: BpfError) -> CniError:
    return TryAgainError(str(error)) if isinstance(error, NotLoadedError) else NodeError(str(error))


def _json(data: Json) -> bytes:
    return json.dumps(data).encode()
