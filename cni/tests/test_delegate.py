# SPDX-License-Identifier: Apache-2.0
"""Another IPAM plugin is found, asked as the specification says, and its failure is passed on."""

import json
from pathlib import Path

import pytest

from cni import config, delegate
from cni.config import Network, Request
from cni.errors import DelegateError, VariableError

NETWORK = {"cniVersion": "0.4.0", "name": "pods", "type": "calico-ebpf", "ipam": {"type": "fake", "mine": 1}}


def network() -> Network:
    return config.network(json.dumps(NETWORK).encode())


def plugin(tmp_path: Path, script: str) -> Request:
    """A request whose CNI_PATH leads to a plugin that runs `script`."""
    (tmp_path / "fake").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "fake").chmod(0o755)
    return Request("ADD", "c1", "eth0", "/run/netns/pod", {"K8S_POD_NAME": "web-0"}, ("/nowhere", str(tmp_path)))


def test_add_hands_over_configuration_and_variables(tmp_path: Path) -> None:
    """The plugin gets the whole network configuration, and every variable of the call."""
    request = plugin(
        tmp_path, f'cat > {tmp_path}/input; env > {tmp_path}/env; echo \'{{"ips": [{{"address": "192.0.2.9/24"}}]}}\''
    )
    assert delegate.add(request, network()).ips == [{"address": "192.0.2.9/24"}]
    assert json.loads((tmp_path / "input").read_text()) == NETWORK
    variables = (tmp_path / "env").read_text().splitlines()
    expected = ["CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/pod"]
    expected += ["CNI_ARGS=K8S_POD_NAME=web-0", f"CNI_PATH=/nowhere:{tmp_path}"]
    assert set(expected) <= set(variables)


def test_add_that_fails_passes_code_and_message_on(tmp_path: Path) -> None:
    """The operator sees what the plugin said, not that something failed."""
    request = plugin(tmp_path, 'echo \'{"code": 11, "msg": "pool is busy", "details": "soon"}\'; exit 1')
    with pytest.raises(DelegateError, match="pool is busy") as caught:
        delegate.add(request, network())
    assert (caught.value.code, caught.value.details) == (11, "soon")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken >&2; exit 3", "status 3"),
        ("echo '[]'; exit 1", "status 1"),
        ("echo nonsense", "no JSON"),
        ("echo '{}'", "no address"),
        ("kill -9 $$", "status -9"),
    ],
)
def test_add_that_answers_nonsense_says_which_plugin(tmp_path: Path, script: str, said: str) -> None:
    """Whatever the plugin does, the error names it."""
    with pytest.raises(DelegateError, match=said) as caught:
        delegate.add(plugin(tmp_path, script), network())
    assert "fake" in str(caught.value)


def test_add_by_plugin_that_is_not_there_names_the_variable(tmp_path: Path) -> None:
    """CNI_PATH is what the operator has to look at."""
    with pytest.raises(VariableError, match=r"CNI_PATH.*fake"):
        delegate.add(Request("ADD", "c1", "eth0", "", {}, (str(tmp_path),)), network())
