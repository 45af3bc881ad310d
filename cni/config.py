# SPDX-License-Identifier: Apache-2.0
"""What the runtime asks: its variables and the network configuration, checked. Pure.

Ranges are checked by `ranges`, when they are used: a DEL must not fail on them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cni.errors import ConfigError, DecodeError, FieldError, VariableError, VersionError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
VERBS = ("ADD", "DEL", "CHECK", "VERSION")
PLUGIN = "calico-ebpf"

# Of the specification: also what keeps a name from being a path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\Z")
_IFNAME_MAX_BYTES = 15
_MTU_MIN, _MTU_MAX = 68, 65535

# The specification's own, those that the runtime adds, and ours.
_FIELDS = frozenset(("cniVersion", "cniVersions", "name", "type", "ipam", "ipMasq", "dns", "args", "capabilities"))
_FIELDS |= {"runtimeConfig", "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "mtu"}
_IPAM_FIELDS = frozenset(("type", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway", "routes", "dataDir"))

Json = dict[str, Any]


class Request(NamedTuple):
    """A call.

    Attributes:
        netns: the path as it was given; it is never opened.
        path: the directories of CNI_PATH.
        held: descriptors of locks, which other plugins that are executed for the call are to hold as well.
    """

    verb: str
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    args: Mapping[str, str] = {}
    path: tuple[str, ...] = ()
    held: tuple[int, ...] = ()

    @property
    def pod(self) -> str:
        """The pod's "namespace/name", where the runtime told it."""
        namespace, name = self.args.get("K8S_POD_NAMESPACE"), self.args.get("K8S_POD_NAME")
        return f"{namespace}/{name}" if namespace and name else ""


class Network(NamedTuple):
    """A network configuration. `raw` is the whole of it, for another plugin to read; `mtu` is None where it is open;
    `runtime` is what the runtime adds by capability, unchecked: see `portmap`."""

    version: str
    name: str
    mtu: int | None
    ipam: Json
    dns: Json
    prev_result: Json | None
    runtime: Json
    raw: Json

    @property
    def delegated(self) -> bool:
        return bool(self.ipam["type"] != PLUGIN)


def request(variables: Mapping[str, str]) -> Request:
    """Reads the CNI_* variables.

    Raises:
        VariableError: one is missing or wrong; all such are named.
    """
    verb = variables.get("CNI_COMMAND", "")
    if verb not in VERBS:
        raise VariableError(f"CNI_COMMAND: {verb!r} is not one of {', '.join(VERBS)}")
    if verb == "VERSION":
        return Request(verb)
    required = ["CNI_CONTAINERID", "CNI_IFNAME"] + (["CNI_NETNS"] if verb != "DEL" else [])
    missing = [name for name in required if not variables.get(name)]
    if missing:
        raise VariableError(f"{', '.join(missing)}: not set, and {verb} needs it")
    container_id, ifname = variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]
    if not _NAME.match(container_id):
        raise VariableError(f"CNI_CONTAINERID: {container_id!r} is not a container id")
    if not _is_ifname(ifname):
        raise VariableError(f"CNI_IFNAME: {ifname!r} is not an interface name")
    path = tuple(part for part in variables.get("CNI_PATH", "").split(":") if part)
    return Request(verb, container_id, ifname, variables.get("CNI_NETNS", ""), _args(variables), path)


def network(text: bytes) -> Network:
    """Reads a network configuration.

    Raises:
        DecodeError, VersionError, FieldError, ConfigError: it is no JSON object; it is of a version that is not spoken
            here; a field is unknown; a field is missing or of the wrong form.
    """
    raw = decode(text)
    version = raw.get("cniVersion", "0.1.0")  # what a configuration without one means
    if version not in VERSIONS:
        raise VersionError(f"cniVersion {version!r} is not spoken here", f"versions: {', '.join(VERSIONS)}")
    _refuse_unknown(raw, _FIELDS, "")
    name = raw.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(f"name: {name!r} is not a network name")
    if raw.get("ipMasq"):
        raise FieldError("ipMasq: true: the BPF programs masquerade, where the settings say so")
    return Network(
        version,
        name,
        _mtu(raw.get("mtu", 0)),
        _ipam(raw.get("ipam")),
        _object(raw, "dns") or {},
        _object(raw, "prevResult"),
        _object(raw, "runtimeConfig") or {},
        raw,
    )


def decode(text: bytes) -> Json:
    """Raises DecodeError where `text` is no JSON object."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("the network configuration is no JSON", str(error)) from error
    if not isinstance(raw, dict):
        raise DecodeError("the network configuration is no JSON object")
    return raw


def version_asked(text: bytes) -> str:
    """The version in which to answer VERSION, or with an error: that of the configuration, else the newest."""
    try:
        version = decode(text).get("cniVersion")
    except DecodeError:
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


def _mtu(mtu: object) -> int | None:
    """0 stands for none, as in the reference plugins."""
    if not isinstance(mtu, int) or isinstance(mtu, bool) or (mtu and not _MTU_MIN <= mtu <= _MTU_MAX):
        raise ConfigError(f"mtu: expected a number of bytes from {_MTU_MIN} to {_MTU_MAX}, not {mtu!r}")
    return mtu or None


def _ipam(ipam: object) -> Json:
    if not isinstance(ipam, dict) or not isinstance(ipam.get("type"), str):
        raise ConfigError(f'ipam: expected an object with "type": {PLUGIN!r}, or the name of another IPAM plugin')
    if ipam["type"] == PLUGIN:
        _refuse_unknown(ipam, _IPAM_FIELDS, "ipam.")
        if not str(ipam.get("dataDir", "/")).startswith("/"):
            raise ConfigError(f"ipam.dataDir: {ipam['dataDir']!r} is not an absolute path")
    elif not _NAME.match(ipam["type"]):
        raise ConfigError(f"ipam.type: {ipam['type']!r} is not a plugin's name")
    return ipam


def _object(raw: Json, name: str) -> Json | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{name}: expected an object, not {value!r}")
    return value


def _refuse_unknown(fields: Json, known: frozenset[str], where: str) -> None:
    """A name with a dot or slash is namespaced, hence another's, as the runtime's own cni.dev/*."""
    for name, value in fields.items():
        if name not in known and "/" not in name and "." not in name:
            raise FieldError(f"{where}{name}: {json.dumps(value)}: unknown field")


def _is_ifname(name: str) -> bool:
    """As the kernel's dev_valid_name."""
    wrong = name in (".", "..") or any(char in "/:" or char.isspace() for char in name)
    return not wrong and len(name.encode()) <= _IFNAME_MAX_BYTES


def _args(variables: Mapping[str, str]) -> dict[str, str]:
    """CNI_ARGS, KEY=VALUE;KEY=VALUE."""
    pairs = [pair.partition("=") for pair in variables.get("CNI_ARGS", "").split(";") if pair]
    if any(not equals for _, equals, _ in pairs):
        raise VariableError(f"CNI_ARGS: {variables['CNI_ARGS']!r} is not of the form KEY=VALUE;KEY=VALUE")
    return {key: value for key, _, value in pairs}
