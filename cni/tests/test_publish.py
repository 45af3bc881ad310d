# SPDX-License-Identifier: Apache-2.0
"""The network configuration that the server gives to the runtime."""

import json
from pathlib import Path

import pytest

from cni.errors import ConfigError
from cni.publish import plugin_text, publish


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
