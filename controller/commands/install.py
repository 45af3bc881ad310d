# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf install`: puts the bundle that it runs from on a node, as the init container of the DaemonSet does.

    /usr/local/lib/calico-ebpf/bundle-DIGEST   Python, bpftool, programs, with their own C library
    /usr/local/lib/calico-ebpf/current         a link to it, switched atomically; what runs from another one goes on
    /usr/local/bin/calico-ebpf                 the command line
    /opt/cni/bin/calico-ebpf, loopback         what the runtime executes; loopback unless there is somebody else's
    /etc/calico-ebpf                           the settings and the network configuration, of the ConfigMaps

The runtime's own directory of network configurations is the CNI server's: it writes there once pods can be started.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from bpf import bundle, files
from bpf.cli import settings_flags
from bpf.settings import CONFIG_FILE, Settings
from controller.commands import cnifiles, installed
from controller.errors import InstallError

KUBELET = Path("/etc/kubernetes/kubelet.conf")


def install(host: Path, source: Path, given: Sequence[Path], node_name: str) -> Iterator[str]:
    """Does so, and tells of each thing; what is there already is left alone.

    Args:
        host: where the node's root directory, or parts of it, are seen.
        source: the bundle.
        given: directories that may hold config.yaml and the network configuration; the later ones come first.
        node_name: of this node's Node object.

    Raises:
        InstallError, SettingsError: the settings make no sense; the node's stay as they are.
        OSError: something could not be written.
    """
    for directory in given:
        _require_sense(directory)
    text = settings_text([_read(directory / CONFIG_FILE.name) for directory in given], node_name, _server(host))
    yield from _bundle(_below(host, installed.LIBRARY), source)
    yield from _executables(host, source)
    directory = _below(host, CONFIG_FILE.parent)
    config = directory / CONFIG_FILE.name
    if config.exists() and not installed.is_ours(config):
        yield f"left {CONFIG_FILE}, which somebody else has written"
    else:
        files.write(config, text.encode())
        yield f"wrote {CONFIG_FILE}"
    networks = [found for given_dir in given if (found := given_dir / installed.NETWORK_FILE.name).exists()]
    if networks:
        files.write(directory / installed.NETWORK_FILE.name, networks[-1].read_bytes())
        yield f"wrote {installed.NETWORK_FILE}"


def _require_sense(directory: Path) -> None:
    """Raises InstallError, SettingsError where a ConfigMap has files that nobody looks at, or says nonsense."""
    taken = (CONFIG_FILE.name, installed.NETWORK_FILE.name)
    # What kubelet keeps beside the files begins with two dots.
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if unknown := [name for name in names if name not in taken and not name.startswith("..")]:
        raise InstallError(f"{directory}: nobody looks at {', '.join(unknown)}, but at {' and '.join(taken)}")
    Settings.load({}, {}, directory / CONFIG_FILE.name)


def settings_text(given: Sequence[str], node_name: str, api_server: str) -> str:
    """The node's file of settings: those given, later texts before earlier ones, and what only the node knows, where
    they do not say it.

    Raises:
        InstallError: a text is no mapping.
        SettingsError: a setting is unknown or wrong.
    """
    settings: dict[str, Any] = {}
    for text in given:
        settings |= _mapping(text)
    settings.setdefault("node_name", node_name)
    if api_server and "kubeconfig" not in settings:
        settings.setdefault("api_server", api_server)
    written = f"{installed.HEADER}\n{yaml.safe_dump(settings, sort_keys=False)}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as scratch:
        scratch.write(written)
        scratch.flush()
        Settings.load({}, {}, Path(scratch.name))
    return written


def _mapping(text: str) -> dict[str, Any]:
    """By names, with values as they stand there: `off` is no truth value."""
    try:
        found = yaml.load(text, Loader=yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise InstallError(f"the settings given are no YAML: {error}") from error
    if not isinstance(found, dict):
        raise InstallError("the settings given are no mapping of names to values")
    return found


def _server(host: Path) -> str:
    return kubelet_server(_below(host, KUBELET))


def kubelet_server(kubeconfig: Path) -> str:
    """The API server that a kubelet's kubeconfig names; "" where there is none, or it cannot be understood."""
    try:
        found = yaml.safe_load(kubeconfig.read_text())
        contexts = {item["name"]: item["context"] for item in found["contexts"]}
        clusters = {item["name"]: item["cluster"] for item in found["clusters"]}
        server = str(clusters[contexts[found["current-context"]]["cluster"]]["server"])
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return ""
    return server if server.startswith("https://") else ""


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _bundle(library: Path, source: Path) -> Iterator[str]:
    """Copies the bundle and has the links lead to it; the one before stays, for what still runs from it."""
    target, current = library / source.name, library / installed.CURRENT
    library.mkdir(parents=True, exist_ok=True)
    before = os.readlink(current) if current.is_symlink() else ""
    for path in library.iterdir():
        if path.name.startswith(installed.DRAFT) or (
            path.name.startswith(installed.BUNDLE) and path.name not in (before, source.name)
        ):
            shutil.rmtree(path)
    # Its directory may be there, and wiped.
    if not (target / "bin/oneshot").exists():
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=library, prefix=installed.DRAFT) as scratch:
            shutil.copytree(source, Path(scratch) / source.name, symlinks=True)
            files.sync(library)  # thousands of files, one by one, would take longer
            files.rename(Path(scratch) / source.name, target)
        yield f"copied {installed.LIBRARY / source.name}"
    files.link(library / "oneshot", "current/bin/oneshot")
    files.link(current, source.name)
    yield f"{installed.LIBRARY / installed.CURRENT} is {source.name}"


def _executables(host: Path, source: Path) -> Iterator[str]:
    command = _below(host, installed.COMMAND)
    command.parent.mkdir(parents=True, exist_ok=True)
    files.link(command, str(installed.LIBRARY / installed.CURRENT / "bin/calico-ebpf"))
    executable = _below(host, cnifiles.EXECUTABLE)
    _put(source / "cni/calico-ebpf", executable)
    yield f"wrote {cnifiles.EXECUTABLE}"
    yield from _loopback(host, source)


def _loopback(host: Path, source: Path) -> Iterator[str]:
    """Puts it there, or renews it, where there is none or one that was put there."""
    target, placed = _below(host, cnifiles.LOOPBACK), _below(host, installed.PLACED)
    new = installed.note(cnifiles.LOOPBACK, (source / "cni/loopback").read_bytes())
    there = [installed.note(cnifiles.LOOPBACK, target.read_bytes())] if target.exists() else []
    noted = _read(placed).splitlines()
    # A note of the path alone, as they once were, gets its digest here.
    if str(cnifiles.LOOPBACK) not in noted and not {new, *noted}.issuperset(there):
        return
    # First the notes, of both: a file without one would be taken for somebody else's.
    files.write(placed, "".join(f"{line}\n" for line in sorted({*there, new})).encode())
    if there != [new]:
        _put(source / "cni/loopback", target)
        yield f"wrote {cnifiles.LOOPBACK}"


def _below(host: Path, path: Path) -> Path:
    return host / path.relative_to("/")


def _put(source: Path, target: Path) -> None:
    """A runtime may execute the old file meanwhile."""
    files.write(target, source.read_bytes(), mode=0o755)


@click.command("install")
@settings_flags("node_name")
@click.option(
    "--host",
    type=click.Path(path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Where the node's root directory is seen.",
)
@click.option(
    "--given",
    type=click.Path(path_type=Path),
    default=Path("/given"),
    show_default=True,
    help="Directory of config.yaml and the network configuration: the manifest's ConfigMap.",
)
@click.option(
    "--own",
    type=click.Path(path_type=Path),
    default=Path("/own"),
    show_default=True,
    help="Directory of the same, from the operator's ConfigMap: what is there comes first.",
)
def command(settings: Settings, host: Path, given: Path, own: Path) -> None:
    """Put the bundle that this runs from on a node."""
    source = bundle.root()
    if source is None:
        raise click.ClickException("this does not run from a bundle: `hack/install` installs a checkout")
    try:
        for line in install(host, Path(source), (given, own), settings.node_name):
            click.echo(line)
    except OSError as error:
        raise click.ClickException(str(error)) from error
