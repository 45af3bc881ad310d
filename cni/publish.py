# SPDX-License-Identifier: Apache-2.0
"""Gives the runtime the network configuration once pods can be started, not before: until a node has one, kubelet says
that its network is not ready, and no pod comes.

It stays while the server is restarted or upgraded, and after a reboot: ADD is answered all the same, if by "try again".
`calico-ebpf uninstall` removes it.
"""

import json
from pathlib import Path

from bpf import files
from cni.errors import ConfigError


def plugin_text(network: bytes) -> bytes:
    """The configuration of a file's first plugin, as the runtime gives it: with the list's name and version.

    Raises:
        ConfigError: the file is not of the form.
    """
    try:
        found = json.loads(network)
        first = found["plugins"][0] if "plugins" in found else found
        return json.dumps({name: found[name] for name in ("cniVersion", "name") if name in found} | first).encode()
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"no network configuration: {error!r}") from error


def publish(name: str, network: bytes, directory: Path) -> bool:
    """Writes a network configuration, whole or not at all; returns whether it was another before, or absent.

    Raises:
        OSError: it could not be written.
    """
    path = directory / name
    if path.exists() and path.read_bytes() == network:
        return False
    files.write(path, network)
    return True
