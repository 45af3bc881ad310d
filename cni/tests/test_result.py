# SPDX-License-Identifier: Apache-2.0
"""Results are rendered in the version asked for, read in any, and put behind those of others."""

import pytest

from cni import result
from cni.config import VERSIONS
from cni.errors import ConfigError, VariableError
from cni.result import Result

OURS = Result(
    [{"name": "ce0123456789a"}, {"name": "eth0", "sandbox": "/run/netns/pod"}],
    [
        {"address": "192.0.2.7/32", "gateway": "169.254.1.1", "interface": 1},
        {"address": "2001:db8::7/128", "gateway": "fe80::1", "interface": 1},
    ],
    [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    {"nameservers": ["192.0.2.53"]},
)


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_render_before_1_0_0_says_families(version: str) -> None:
    """Up to 0.4.0 each address says its family."""
    rendered = result.render(OURS, version)
    assert rendered["cniVersion"] == version
    assert [ip["version"] for ip in rendered["ips"]] == ["4", "6"]


def test_render_1_0_0_says_no_families() -> None:
    """1.0.0 has no field for the family."""
    assert all("version" not in ip for ip in result.render(OURS, "1.0.0")["ips"])


@pytest.mark.parametrize("version", VERSIONS)
def test_parse_of_rendered_result_gives_it_back(version: str) -> None:
    """What one version says, another version's reader understands."""
    assert result.parse(result.render(OURS, version)) == OURS


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"ips": {}},
        {"ips": ["192.0.2.1/24"]},
        {"ips": [{}]},
        {"ips": [{"address": "192.0.2.256/24"}]},
        {"interfaces": [1]},
        {"routes": "0.0.0.0/0"},
    ],
)
def test_parse_of_malformed_result_is_refused(data: object) -> None:
    """A result of another plugin is checked before anything is built on it."""
    with pytest.raises(ConfigError):
        result.parse(data)


def test_chained_result_keeps_the_other_plugins_part() -> None:
    """Indexes of our addresses count from behind the other plugin's interfaces."""
    before = Result([{"name": "first"}], [{"address": "198.51.100.1/24", "interface": 0}], [], {"domain": "a"})
    both = result.chained(before, OURS)
    assert [item["name"] for item in both.interfaces] == ["first", "ce0123456789a", "eth0"]
    assert [ip["interface"] for ip in both.ips] == [0, 2, 2]
    assert both.dns == OURS.dns


def test_error_carries_code_message_and_details() -> None:
    """The specification's error object, whole."""
    rendered = result.error(VariableError("CNI_IFNAME: not set", "why"), "0.4.0")
    assert rendered == {"cniVersion": "0.4.0", "code": 4, "msg": "CNI_IFNAME: not set", "details": "why"}
