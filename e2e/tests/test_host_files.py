# SPDX-License-Identifier: Apache-2.0
"""conf/host: the patterns by which daemons of the node leave our devices alone are those of our names."""

from configparser import ConfigParser
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from cni.link import host_name
from controller.nodes import OVERLAY_NAME

HOST = Path(__file__).parent.parent.parent / "conf" / "host"
OURS = (host_name("container", "eth0"), host_name("another", "net1"), OVERLAY_NAME)
OTHERS = ("eth0", "cep0", "ce0", "cefgh345678ab", "ce0123456789", "ce0123456789abc", "calico-vxlan0", "vxlan.calico")


def value(file: str, section: str, key: str) -> str:
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(HOST / file)
    return parser[section][key]


@pytest.mark.parametrize("name", OURS)
def test_networkd_leaves_every_device_of_ours(name: str) -> None:
    """Pod links and the overlay."""
    patterns = value("systemd/network/00-calico-ebpf.network", "Match", "Name").split()
    assert any(fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("name", OTHERS)
def test_networkd_keeps_every_device_of_others(name: str) -> None:
    """Names that are nearly ours, too."""
    patterns = value("systemd/network/00-calico-ebpf.network", "Match", "Name").split()
    assert not any(fnmatchcase(name, pattern) for pattern in patterns)


@pytest.mark.parametrize("name", OURS + OTHERS)
def test_networkmanager_leaves_devices_of_ours_and_as_few_others_as_it_can(name: str) -> None:
    """It has no ranges: what is as long as a pod link's name and begins like it is left alone, too."""
    text = value("NetworkManager/conf.d/calico-ebpf.conf", "keyfile", "unmanaged-devices+")
    patterns = [item.removeprefix("interface-name:") for item in text.split(";")]
    left = any(fnmatchcase(name, pattern) for pattern in patterns)
    assert left == (name in OURS or name == "cefgh345678ab")


def test_networkd_keeps_routes_and_rules_of_others() -> None:
    """On the devices that it does manage."""
    file = "systemd/networkd.conf.d/calico-ebpf.conf"
    assert value(file, "Network", "ManageForeignRoutes") == "no"
    assert value(file, "Network", "ManageForeignRoutingPolicyRules") == "no"
