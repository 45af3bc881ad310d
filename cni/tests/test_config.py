# SPDX-License-Identifier: Apache-2.0
"""What the runtime asks is understood, or refused with the specification's code and the name of what is wrong."""

import json
from typing import Any

import pytest

from cni import config
from cni.errors import CniError, ConfigError, DecodeError, FieldError, VariableError, VersionError

VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
}
MINIMAL = {"cniVersion": "1.0.0", "name": "pods", "type": "calico-ebpf", "ipam": {"type": "calico-ebpf"}}


def text(**changes: Any) -> bytes:
    return json.dumps({**MINIMAL, **changes}).encode()


def test_request_with_all_variables_is_read() -> None:
    """Every variable that the runtime sets finds its place."""
    request = config.request(VARIABLES)
    assert request.container_id == "c1"
    assert request.path == ("/opt/cni/bin", "/usr/lib/cni")
    assert request.pod == "shop/web-0"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"CNI_COMMAND": "REMOVE"}, "CNI_COMMAND"),
        ({"CNI_CONTAINERID": ""}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "../c1"}, "CNI_CONTAINERID"),
        ({"CNI_CONTAINERID": "c1\n"}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": ""}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "sixteen-bytes-16"}, "CNI_IFNAME"),
        ({"CNI_NETNS": ""}, "CNI_NETNS"),
        ({"CNI_ARGS": "nonsense"}, "CNI_ARGS"),
    ],
)
def test_request_with_wrong_variable_names_it(changes: dict[str, str], named: str) -> None:
    """A missing or wrong variable is error 4 and is named, as the specification wants."""
    with pytest.raises(VariableError, match=named):
        config.request({**VARIABLES, **changes})


def test_request_with_several_missing_variables_names_all() -> None:
    """The runtime's author should not have to find them one by one."""
    with pytest.raises(VariableError, match="CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"):
        config.request({"CNI_COMMAND": "ADD"})


def test_request_for_del_needs_no_namespace() -> None:
    """A DEL comes without CNI_NETNS once the sandbox is gone."""
    assert config.request({**VARIABLES, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}).netns == ""


@pytest.mark.parametrize("version", config.VERSIONS)
def test_network_of_each_version_is_read(version: str) -> None:
    """Every version that VERSION advertises is understood."""
    assert config.network(text(cniVersion=version)).version == version


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"cniVersion": "1.1.0"}, VersionError, "1.1.0"),
        ({"cniVersion": "0.2.0"}, VersionError, "0.2.0"),
        ({"cniVersion": 1}, VersionError, "1"),
        ({"cniVersion": None}, VersionError, "None"),
        ({"name": "../../etc"}, ConfigError, "name"),
        ({"name": None}, ConfigError, "name"),
        ({"mtu": "1500"}, ConfigError, "mtu"),
        ({"mtu": 67}, ConfigError, "mtu"),
        ({"mtu": True}, ConfigError, "mtu"),
        ({"ipam": None}, ConfigError, "ipam"),
        ({"ipam": []}, ConfigError, "ipam"),
        ({"ipam": {"type": "../evil"}}, ConfigError, "ipam.type"),
        ({"ipam": {"type": "calico-ebpf", "rangez": []}}, FieldError, "ipam.rangez"),
        ({"ipam": {"type": "calico-ebpf", "dataDir": "relative"}}, ConfigError, "ipam.dataDir"),
        ({"mtuu": 1500}, FieldError, "mtuu: 1500"),
        ({"ipMasq": True}, FieldError, "ipMasq"),
        ({"prevResult": "text"}, ConfigError, "prevResult"),
        ({"dns": []}, ConfigError, "dns"),
    ],
)
def test_network_with_wrong_field_names_it(changes: dict[str, Any], error: type[CniError], named: str) -> None:
    """A wrong field gets the error that the specification has for it, and is named."""
    with pytest.raises(error, match=named):
        config.network(text(**changes))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_network_that_is_no_object_is_a_decoding_error(data: bytes) -> None:
    """Whatever stands on standard input, the answer is error 6, never a traceback."""
    with pytest.raises(DecodeError):
        config.network(data)


def test_network_with_fields_of_the_runtime_is_accepted() -> None:
    """What libcni adds, and namespaced fields of others, are no mistakes."""
    extra = {"runtimeConfig": {"x": 1}, "capabilities": {}, "args": {}, "cni.dev/valid-attachments": [], "a/b": 1}
    assert config.network(text(**extra)).name == "pods"


def test_network_of_another_ipam_plugin_keeps_its_fields() -> None:
    """Another IPAM plugin's fields are its own business."""
    network = config.network(text(ipam={"type": "whereabouts", "anything": 1}))
    assert network.delegated
    assert network.raw["ipam"]["anything"] == 1


@pytest.mark.parametrize(
    ("data", "version"), [(text(cniVersion="0.3.1"), "0.3.1"), (text(cniVersion="9"), "1.0.0"), (b"", "1.0.0")]
)
def test_version_asked_falls_back_to_newest(data: bytes, version: str) -> None:
    """An error about a configuration that cannot be read still has a version."""
    assert config.version_asked(data) == version
