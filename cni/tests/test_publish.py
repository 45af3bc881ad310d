# SPDX-License-Identifier: Apache-2.0
"""The network configuration that the server gives to the runtime."""

import json
import os
from pathlib import Path
from typing import cast

import pytest

from bpf.settings import Settings
from cni.errors import ConfigError, ServerError
from cni.plugin import Plugin
from cni.publish import plugin_text, publish
from cni.server import Server


def test_publish_writes_once_and_again_what_was_changed(tmp_path: Path) -> None:
    """It says whether it did; no draft stays, and none has a name that a runtime looks at."""
    directory = tmp_path / "net.d"
    assert publish("10-x.conflist", b"{}", directory)
    assert not publish("10-x.conflist", b"{}", directory)
    (directory / "10-x.conflist").write_text("cut")
    assert publish("10-x.conflist", b"{}", directory)
    assert [path.name for path in directory.iterdir()] == ["10-x.conflist"]


def test_plugin_text_is_what_the_runtime_gives() -> None:
    """The first plugin, with the list's name and version."""
    network = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, {"type": "b"}]}
    assert json.loads(plugin_text(json.dumps(network).encode())) == {"cniVersion": "1.0.0", "name": "n", "type": "a"}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"plugins": []}', b'{"plugins": {}}', b'{"plugins": [7]}'])
def test_plugin_text_of_nonsense_is_refused(text: bytes) -> None:
    """A ConfigMap that was edited badly is named, and not given on."""
    with pytest.raises(ConfigError):
        plugin_text(text)


class ReadyPlugin:
    """Pods can be started."""

    def require_ready(self, text: bytes) -> None:
        pass

    def outdated(self) -> bool:
        return False

    def restore_host_ports(self) -> int:
        return 0

    def delete_flows(self) -> int:
        return 0


def test_server_ends_when_the_runtimes_directory_was_removed(tmp_path: Path) -> None:
    """In a container, whose mount stays with what was removed: a descriptor does so, too. The next one has another."""
    directory, network_file = tmp_path / "net.d", tmp_path / "10-x.conflist"
    directory.mkdir()
    network_file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}]}))
    mounted = os.open(directory, os.O_RDONLY)
    conf_dir = Path(f"/proc/self/fd/{mounted}")
    settings = Settings(run_dir=tmp_path, network_file=network_file, cni_conf_dir=conf_dir)
    server = Server(settings, cast(Plugin, ReadyPlugin()))
    directory.rmdir()
    server.stop()  # one that goes on would be stopped by this
    with pytest.raises(ServerError, match="was removed"):
        server.serve()
    os.close(mounted)
