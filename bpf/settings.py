# SPDX-License-Identifier: Apache-2.0
"""The settings: one table of names, types, defaults and reasons, from which conf/SETTINGS.md is generated.

A value comes from a flag, else from CALICO_EBPF_NAME, else from the file, else from the default here; `origin` tells
which. Everybody may import this: the CNI plugin does so for every pod, hence YAML only where there is a file. The flags
themselves are made in `bpf.cli`. `python -m bpf.settings` prints the reference page.
"""
# ruff: noqa: RUF009 -- _setting is dataclasses.field, with the metadata

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from bpf import bundle
from bpf.errors import SettingsError

CONFIG_FILE = Path("/etc/calico-ebpf/config.yaml")
PREFIX = "CALICO_EBPF_"

ENTRIES_MAX = 1 << 26
SECONDS_MAX = 30 * 86400
PORT_MAX = 65535
UNMASQUERADED_MAX = 1024  # entries of the map, bpf/maps.h


class Meta(NamedTuple):
    """What is known of a setting besides its type and default.

    Attributes:
        meaning: what it sets.
        why: the reason for the default.
        unit: of its number, or "".
        empty: what 0 or an empty value means; "" where there is nothing to say.
        shown: the default as the reference page shows it, where it depends on the machine.
        choices: the values that it may have, or none where it is free.
        low, high: bounds of a number.
        check: raises ValueError where a text is wrong.
    """

    meaning: str
    why: str
    unit: str = ""
    empty: str = ""
    shown: str = ""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = ENTRIES_MAX
    check: Callable[[str], None] | None = None


class Described(NamedTuple):
    """A setting as the flags and the reference page need it; `kind` is str, int, Path or tuple."""

    name: str
    kind: type
    default: str
    meta: Meta

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _setting(default: object, meaning: str, why: str, **details: Any) -> Any:
    metadata = {"meta": Meta(meaning, why, **details)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _size(default: int, meaning: str, why: str) -> Any:
    return _setting(default, meaning, why, unit="entries", low=16)


def _timeout(default: int, meaning: str, why: str) -> Any:
    return _setting(default, meaning, why, unit="s", low=1, high=SECONDS_MAX)


def _check_address(text: str) -> None:
    host, colon, port = text.rpartition(":")
    if text and not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("expected ADDRESS:PORT, with an IPv6 address in brackets")


def _check_ranges(text: str) -> None:
    _entry_count(text)


def _entry_count(text: str) -> int:
    """Entries that ranges take in a map."""
    from bpf.prefixes import prefixes  # the CNI plugin has no time for it

    return len(prefixes(filter(None, map(str.strip, text.split(",")))))


def _check_unmasqueraded(text: str) -> None:
    if _entry_count(text) > UNMASQUERADED_MAX:
        raise ValueError(f"expected at most {UNMASQUERADED_MAX} ranges, where ::/0 counts as 96")


def _check_node_ports(text: str) -> None:
    if text != "primary":
        _check_ranges(text)


def _check_ports(text: str) -> None:
    first, _, last = text.partition("-")
    if text and not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) <= PORT_MAX):
        raise ValueError(f"expected FIRST-LAST, from 1 to {PORT_MAX}")


def _check_url(text: str) -> None:
    if text and not text.startswith("https://"):
        raise ValueError("expected https://HOST:PORT")


def _hostname() -> str:
    return os.uname().nodename.lower()


def _objects_dir() -> Path:
    checkout = Path(__file__).resolve().parent.parent / "build" / "bpf"
    if checkout.is_dir():
        return checkout
    return Path(bundle.root() or "/usr/local/lib/calico-ebpf") / "bpf"


@dataclass(frozen=True)
class Settings:
    """The effective settings of a process.

    Instances are made by `load`; tests may name fields, the rest being defaults.
    """

    node_name: str = _setting(
        _hostname,
        "Name of this node's Node object. The variable NODE_NAME sets it, too.",
        "kubelet registers a node by its host name, in lower case",
        shown="the host name in lower case",
    )
    source: str = _setting(
        "kubernetes",
        "Where Services, EndpointSlices and Nodes come from: `kubernetes`, or a directory of manifests.",
        "a node is a cluster's",
    )
    kubeconfig: Path | None = _setting(
        None,
        "File with the way to the API server.",
        "in a pod, its service account is enough",
        empty="the pod's service account, else the variable KUBECONFIG, else ~/.kube/config",
    )
    api_server: str = _setting(
        "",
        "URL of the API server for the pod's service account. `calico-ebpf install` sets it on a node to that of the "
        "kubelet's kubeconfig, where nobody else has.",
        "the address that Kubernetes tells pods is a Service's, which this controller must not depend on",
        empty="that of the kubeconfig, or of KUBERNETES_SERVICE_HOST",
        check=_check_url,
    )
    run_dir: Path = _setting(
        Path("/run/calico-ebpf"),
        "Sockets, locks and what the daemons tell each other. The CNI executable reads no settings: of another place "
        "it learns by CALICO_EBPF_RUN_DIR in the runtime's environment.",
        "gone after a reboot, as they must be",
    )
    state_dir: Path = _setting(
        Path("/var/lib/calico-ebpf"),
        "What must outlive a reboot: the sysctls that `uninstall` restores, and the deny list, which it removes.",
        "where packages keep state",
    )
    bpffs: Path = _setting(
        Path("/sys/fs/bpf"), "BPF file system below which maps and programs are pinned.", "where systemd mounts it"
    )
    cgroup: Path | None = _setting(
        None,
        "The cgroup2 directory whose sockets are translated at connect time.",
        "every socket of the node is below its root",
        empty="the cgroup2 mount of this mount namespace",
    )
    network_file: Path | None = _setting(
        None,
        "Network configuration that the CNI server puts into `cni_conf_dir`, under its name, once pods can be started.",
        "`hack/install` puts one there itself",
        empty="none is put there",
    )
    cni_conf_dir: Path = _setting(
        Path("/etc/cni/net.d"),
        "Where the runtime looks for network configurations.",
        "containerd's and CRI-O's default",
    )
    proc_sys: Path = _setting(
        Path("/proc/sys"),
        "Where sysctls are set: those of forwarding, reverse-path filters and reserved ports, and those of pod links.",
        "in a container that is not privileged it cannot be written; the manifests mount the node's elsewhere",
    )
    cni_networks_dir: Path = _setting(
        Path("/var/lib/cni/networks"),
        "Where addresses of pods are recorded, in host-local's format.",
        "host-local's own place, so that either can take over from the other",
    )
    objects_dir: Path = _setting(
        _objects_dir,
        "Directory of the compiled programs: tc.o, cgroup.o, sweep.o, xdp.o.",
        "what runs from a checkout, as `hack/install` has it, runs what the checkout has built; what runs from a "
        "bundle, as the image has it, what came with it",
        shown="build/bpf of the checkout, or bpf of the bundle, else /usr/local/lib/calico-ebpf/bpf",
    )
    service_cidrs: tuple[str, ...] = _setting(
        (),
        "Ranges of Services' addresses besides those of ServiceCIDR objects. What is sent to an address of either that "
        "no Service has is dropped.",
        "API servers of 1.33 and newer tell theirs; for older ones, and a directory of manifests, the value of the API "
        "server's --service-cluster-ip-range belongs here",
        empty="those of ServiceCIDRs alone; where there are none, nothing is dropped",
        check=_check_ranges,
    )
    encapsulation: str = _setting(
        "auto",
        "How pods' packets reach other nodes' pods: plain routes (`never`), VXLAN (`always`), or plain routes to nodes "
        "of the same subnet and VXLAN to the others (`auto`). Outside clients' packets are `handover`'s. "
        "Where either may need VXLAN, pods' MTU leaves room for it: 50 bytes, with IPv6 addresses on the nodes 70. The "
        "whole MTU is for `never` with `handover: l2`.",
        "nothing is added to packets that need nothing",
        choices=("auto", "never", "always"),
    )
    overlay_port: int = _setting(
        4789, "UDP port of the overlay, the same on every node.", "VXLAN's own (RFC 7348)", low=1, high=65535
    )
    underlay_devices: tuple[str, ...] = _setting(
        (),
        "Devices that join this node to the others.",
        "found by route, however they are named",
        empty="those that hold the node's own addresses, and those of the default routes",
    )
    client_devices: tuple[str, ...] = _setting(
        (),
        "Devices besides, by which clients come to Services: a second network card, a bridge of other containers, a "
        "VPN. `none` for none.",
        "found by route, as they come and go",
        empty="those by which networks are reached, but for parts of bonds and bridges and for what other network "
        "plugins have made, as far as its name tells",
    )
    handover: str = _setting(
        "auto",
        "How an outside client's packet reaches the node of its backend: unchanged to that node's MAC (`l2`), in VXLAN "
        "(`vxlan`), or the former to nodes that have answered a probe of it and the latter to the others (`auto`). To "
        "nodes of other subnets it is VXLAN in any case, unless `l2` with `encapsulation: never` rules it out: then "
        "clients get no answer from backends there.",
        "nothing is added to packets where the network between the nodes lets them through",
        choices=("auto", "l2", "vxlan"),
    )
    node_port_addresses: tuple[str, ...] = _setting(
        (),
        "Ranges of the nodes' addresses at which NodePorts are met, as kube-proxy's --nodeport-addresses: `primary` is "
        "as none, and a family of which there is no range is met at all its addresses. Those are what Nodes name, and "
        "what this node's devices have, of the underlay and of `client_devices`. Sockets of host processes that are "
        "translated meet NodePorts at 127.0.0.1 and ::1 as well. To be the same on every node.",
        "a second network of a node may not be for clients, unless it is asked for",
        empty="the first address of each family of each Node",
        check=_check_node_ports,
    )
    node_port_range: str = _setting(
        "30000-32767",
        "The ports that the API server gives NodePorts from (its --service-node-port-range): they are kept out of "
        "ephemeral use by net.ipv4.ip_local_reserved_ports.",
        "the API server's own",
        empty="none are kept out",
        check=_check_ports,
    )
    return_path: str = _setting(
        "entry",
        "How a backend's answer returns to an outside client: through the node by which the client came in (`entry`), "
        "or from the backend's node itself (`direct`); a Service's annotation `calico-ebpf.io/return` comes first.",
        "works in networks that let no node answer under another's address",
        choices=("entry", "direct"),
    )
    balancing: str = _setting(
        "random",
        "How a client from outside is given a backend: at `random`, or by a table that is the same on every node "
        "(`maglev`); a Service's annotation `calico-ebpf.io/balancing` comes first. By the table a connection to an "
        "external or load-balancer address goes on when its packets come by another node, as behind a router that "
        "spreads them over nodes of which one has gone. At NodePorts, and under `externalTrafficPolicy` Local, always "
        "at random.",
        "chooses evenly, and takes neither memory nor time",
        choices=("random", "maglev"),
    )
    maglev_table_size: int = _setting(
        4093,
        "Places of the Maglev table of a Service port, of either family; the same on every node. A hundred for each "
        "backend share out clients to a hundredth; a Service with more backends than places is balanced at random.",
        "40 backends; a table takes 25 kB in the kernel, and 10 ms when its backends change. The largest takes 400 kB "
        "and 0.7 s",
        choices=("251", "509", "1021", "2039", "4093", "8191", "16381", "32749", "65521"),
    )
    load_balancer_echo: str = _setting(
        "answer",
        "Whether ping is answered at load-balancer addresses, whoever asks, by the node that it comes to (`answer`), "
        "or dropped there (`ignore`).",
        "monitoring asks",
        choices=("answer", "ignore"),
    )
    xdp: str = _setting(
        "off",
        "Whether a program in the underlay devices' driver drops what is denied, not of a load balancer's source "
        "ranges, or for no Service, and sends on to other nodes what is in the middle of a flow (`on`): no other "
        "outcome, sooner. Where the driver does not take it, `doctor` says so, and all is done without. Not for a "
        "node whose network is a veth pair, as kind's: what the driver of one end sends is lost where the other end "
        "has no XDP program.",
        "some drivers reset their queues when it comes or goes, refuse large MTUs, or turn off offloads",
        choices=("off", "on"),
    )
    masquerade: str = _setting(
        "all",
        "Whether what pods send out of the cluster leaves under the node's own address: in both families (`all`), in "
        "IPv4 alone (`ipv4`), or not at all (`off`).",
        "pods' addresses mean nothing outside, unless the network routes them",
        choices=("all", "ipv4", "off"),
    )
    non_masquerade_cidrs: tuple[str, ...] = _setting(
        (),
        "Ranges outside the cluster to which pods send under their own addresses, whatever `masquerade` says: up to "
        "1,024, where `::/0`, all of IPv6, counts as 96. What is sent to pods and nodes of the cluster is never "
        "masqueraded.",
        "a network that routes pods' addresses to some places and not to others",
        empty="none",
        check=_check_unmasqueraded,
    )
    ip_masq_agent_file: Path | None = _setting(
        None,
        "ip-masq-agent's file, whose `nonMasqueradeCIDRs` join `non_masquerade_cidrs`, and are read anew when they "
        "change. A file without that key means, as to the agent, 10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16; `[]` "
        "means none. To them it adds 169.254.0.0/16, unless `masqLinkLocal: true` stands there. Unlike to the agent, "
        "there are none of either where the file is not there. The manifests mount the ConfigMap "
        "`ip-masq-agent` of kube-system, where there is one: its `config` is /etc/config/ip-masq-agent.",
        "a ConfigMap that somebody has left must not change where packets seem to come from",
        empty="none is read",
    )
    masquerade_port_min: int = _setting(
        10000,
        "First port of masquerade.",
        "below the NodePorts and the usual ephemeral ports: where many of these are reserved, Linux gives UDP sockets "
        "the same few again and again, and answers to a resolver are easy to forge",
        low=1024,
        high=65535,
    )
    masquerade_ports: int = _setting(
        20000,
        "How many ports masquerade has towards one destination; the host's own sockets are kept off them by "
        "net.ipv4.ip_local_reserved_ports.",
        "from there to the NodePorts",
        low=1,
        high=64512,
    )
    connect_time: str = _setting(
        "host",
        "Whose sockets are translated at connect and sendmsg: the host's own (`host`), those of pods as well (`all`), "
        "or none (`off`: host processes reach Services packet by packet, but for what is the node's own: backends in "
        "its network, NodePorts and host ports at its addresses).",
        "service meshes and sandboxed runtimes in pods expect to see the Service's address",
        choices=("host", "all", "off"),
    )
    flows_max: int = _size(
        524288,
        "Size of the flow table; a connection takes two entries.",
        "250,000 connections",
    )
    frontends_max: int = _size(
        131072,
        "Addresses and ports of Services, and their cluster IPs and load-balancer addresses once more.",
        "10,000 Services with two families, three ports each and a NodePort for each of them",
    )
    slots_max: int = _size(
        524288, "Backends of Services, counted once for each Service port.", "250,000 endpoints, twice over"
    )
    backends_max: int = _size(524288, "Distinct backends.", "as many as slots")
    affinities_max: int = _size(
        65536,
        "Clients that Services with session affinity remember, counted once for each Service port; with more, those "
        "that have not come for the longest are forgotten. An entry takes some 100 bytes.",
        "6,500 clients each of ten Service ports",
    )
    sources_max: int = _size(
        16384,
        "Ranges of loadBalancerSourceRanges, counted once for each load-balancer address and port.",
        "1,000 such addresses and ports with 16 ranges each",
    )
    maglev_max: int = _size(
        65536,
        "Rows of Maglev tables, of 32 places each.",
        "the tables of 512 Service ports, at the default size",
    )
    remotes_max: int = _size(32768, "Prefixes and addresses of other nodes.", "5,000 nodes with both families, twice")
    pods_max: int = _size(4096, "Addresses of this node's pods.", "ten times kubelet's limit, with both families")
    tcp_new_s: int = _timeout(
        60, "A TCP or SCTP flow without an answer is forgotten after.", "longer than SYN retries space"
    )
    tcp_established_s: int = _timeout(
        21600, "An established TCP or SCTP flow is forgotten after.", "longer than kernels' keep-alive of two hours"
    )
    tcp_closing_s: int = _timeout(
        120, "A TCP or SCTP flow that one side has closed is forgotten after.", "twice the maximum segment life"
    )
    tcp_closed_s: int = _timeout(30, "A closed TCP or SCTP flow is forgotten after.", "late segments are over by then")
    udp_new_s: int = _timeout(30, "A UDP flow without an answer is forgotten after.", "as the kernel's own tracking")
    udp_established_s: int = _timeout(
        120, "A UDP flow with answers is forgotten after.", "as the kernel's own tracking"
    )
    health_address: str = _setting(
        "[::]:10256",
        "Address of /healthz and /livez; `[::]` stands for all addresses of either family.",
        "kube-proxy's, where load balancers look",
        empty="not served",
        check=_check_address,
    )
    metrics_address: str = _setting(
        "127.0.0.1:10249",
        "Address of /metrics.",
        "kube-proxy's",
        empty="not served",
        check=_check_address,
    )
    audit_interval_s: int = _setting(
        300,
        "Time between two comparisons of the maps with what they should hold.",
        "with 10,000 Services one takes about 2 s: under 1 % of a core",
        unit="s",
        empty="never",
        high=SECONDS_MAX,
    )
    sweep_interval_s: int = _setting(
        120,
        "Time in which the whole flow table is gone through once, for the memory of expired flows, and counted.",
        "with four million entries at most 3 % of a core; in 30 s new connections felt it",
        unit="s",
        empty="never",
        high=SECONDS_MAX,
    )
    sync_interval_ms: int = _setting(
        20,
        "Least time between two writes to the maps while changes keep coming; the first is written at once.",
        "at most fifty runs of bpftool a second",
        unit="ms",
        empty="no pause",
        high=60000,
    )
    log_level: str = _setting(
        "info", "Least severe messages to log.", "changes, not packets", choices=("debug", "info", "warning", "error")
    )
    _origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(
        cls, flags: Mapping[str, object], environ: Mapping[str, str] = os.environ, path: Path = CONFIG_FILE
    ) -> "Settings":
        """The effective settings.

        Args:
            flags: values by setting name, as text or as their type; None stands for a flag that was not given.
            environ: variables. Of CALICO_EBPF_* only the names of settings count: Kubernetes itself sets others, for
                a Service named calico-ebpf.
            path: the file; that it is absent is no error.

        Raises:
            SettingsError: a key is unknown, or a value of the wrong type or out of its range.
        """
        texts = _from_file(path)
        if "NODE_NAME" in environ:
            texts["node_name"] = (environ["NODE_NAME"], "NODE_NAME")
        known = {setting.name: setting for setting in describe()}
        for setting in known.values():
            if setting.variable in environ:
                texts[setting.name] = (environ[setting.variable], setting.variable)
        for name, value in flags.items():
            if value is not None:
                texts[name] = (_text(value), known[name].flag if name in known else f"flag {name!r}")
        values = {name: _value(known.get(name), text, origin) for name, (text, origin) in texts.items()}
        settings = cls(**values, _origins={name: origin for name, (_, origin) in texts.items()})
        last = settings.masquerade_port_min + settings.masquerade_ports - 1
        if last > PORT_MAX:
            name = "masquerade_ports" if "masquerade_ports" in texts else "masquerade_port_min"
            raise SettingsError(f"{settings.origin(name)}: {name}: the last port would be {last}, above {PORT_MAX}")
        return settings

    def origin(self, name: str) -> str:
        """Where a setting came from: a flag, a variable, FILE:LINE, or "default"."""
        return self._origins.get(name, "default")


def describe() -> list[Described]:
    """Every setting, in the order of the reference page."""
    described = []
    for item in fields(Settings):
        if "meta" in item.metadata:
            meta: Meta = item.metadata["meta"]
            default = meta.shown if callable(item.default_factory) else _text(item.default)
            described.append(Described(item.name, _KINDS[item.type], default, meta))
    return described


_KINDS: dict[Any, type] = {str: str, int: int, Path: Path, Path | None: Path, tuple[str, ...]: tuple}


def _value(setting: Described | None, text: str, origin: str) -> Any:
    if setting is None:
        raise SettingsError(f"{origin}: unknown setting")
    try:
        return _parse(setting, text.strip())
    except ValueError as error:
        raise SettingsError(f"{origin}: {setting.name}: {error}, not {text!r}") from None


def _parse(setting: Described, text: str) -> Any:
    """Raises ValueError with what was expected."""
    meta = setting.meta
    if meta.choices and text not in meta.choices:
        raise ValueError(f"expected one of {', '.join(meta.choices)}")
    if meta.check:
        meta.check(text)
    if setting.kind is int:
        return _number(text, meta)
    if setting.kind is Path:
        return _path(text, optional=bool(meta.empty))
    if setting.kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if not text and not meta.empty:
        raise ValueError("expected a value")
    return text


def _number(text: str, meta: Meta) -> int:
    if not (text.isascii() and text.isdigit()) or not meta.low <= int(text) <= meta.high:
        unit = f" {meta.unit}" if meta.unit else ""
        raise ValueError(f"expected a whole number from {meta.low} to {meta.high}{unit}")
    return int(text)


def _path(text: str, optional: bool) -> Path | None:
    if not text and optional:
        return None
    if not text.startswith("/"):
        raise ValueError("expected an absolute path")
    return Path(text)


def _text(value: object) -> str:
    if value is None:
        return ""
    return ",".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def _from_file(path: Path) -> dict[str, tuple[str, str]]:
    """Name to (text, FILE:LINE). The text is what stands there: YAML's idea that `off` is false is not ours."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    import yaml

    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from error
    if root is None or root.tag.endswith(":null"):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(f"{path}:{root.start_mark.line + 1}: expected a mapping of settings")
    names = {setting.name for setting in describe()}
    found: dict[str, tuple[str, str]] = {}
    for key, value in root.value:
        where = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key.value, str) or key.value not in names:
            raise SettingsError(f"{where}: unknown setting {key.value!r}")
        if key.value in found:
            raise SettingsError(f"{where}: {key.value} is set twice")
        found[key.value] = (_node_text(value, f"{where}: {key.value}"), where)
    return found


def _node_text(node: Any, where: str) -> str:
    """The text of a scalar, or of a list of scalars joined by commas."""
    if isinstance(node.value, str):
        if node.tag.endswith(":null"):
            raise SettingsError(f"{where}: no value; leave the line out, or write ''")
        return node.value
    if node.id == "sequence" and all(isinstance(item.value, str) for item in node.value):
        return ",".join(item.value for item in node.value)
    raise SettingsError(f"{where}: expected a value or a list of values")


def reference() -> str:
    """conf/SETTINGS.md."""
    lines = [
        "# Settings",
        "",
        "<!-- Generated by `python -m bpf.settings > conf/SETTINGS.md`; do not edit. -->",
        "",
        f"One YAML file, {CONFIG_FILE}, holds them all, each as `name: value`. Each is also a variable",
        f"(`{PREFIX}FLOWS_MAX`) and a flag of the controller (`--flows-max`); the CNI server has a few of them, and",
        "makes the maps where it comes first: sizes belong in the file. A flag wins over a variable, that over the",
        "file, and the file over the default. An unknown key, or a value out of its range, is an error that says",
        "where it stands. Lists are YAML lists in the file, and separated by commas elsewhere. `calico-ebpf doctor`",
        "shows each effective value and where it came from.",
        "",
        "A size (`*_max`) applies when the controller starts, under traffic: what a map holds is copied into one of",
        "the new size, and both are there for as long as that takes. One that holds more keeps the size that it has.",
    ]
    for setting in describe():
        lines += ["", f"## {setting.name}", "", setting.meta.meaning, "", *_facts(setting)]
    return "\n".join(lines) + "\n"


def _facts(setting: Described) -> list[str]:
    meta = setting.meta
    kinds = {str: "text", int: f"whole number from {meta.low} to {meta.high}", Path: "absolute path", tuple: "list"}
    kind = " or ".join(f"`{choice}`" for choice in meta.choices) or kinds[setting.kind]
    default = meta.shown or (f"`{setting.default}`" if setting.default else "empty")
    facts = [
        f"- Value: {kind}" + (f", in {meta.unit}" if meta.unit else ""),
        f"- Default: {default}",
        f"- Why: {meta.why}",
    ]
    if meta.empty:
        facts.append(f"- {'0' if setting.kind is int else 'Empty'}: {meta.empty}")
    return facts + _memory(setting)


def _memory(setting: Described) -> list[str]:
    """Of the size of a map."""
    from bpf import mapmemory
    from bpf.abi import MAPS

    spec = MAPS.get(setting.name.removesuffix("_max"))
    if not spec:
        return []
    each = mapmemory.entry_bytes(spec)
    when = "all of it from the start" if mapmemory.taken_at_once(spec) else "as entries come"
    return [f"- Memory: some {each} bytes an entry, {when}: {each * int(setting.default) / 1e6:.3g} MB at the default"]


if __name__ == "__main__":
    print(reference(), end="")
