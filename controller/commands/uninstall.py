# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf uninstall`: takes everything of ours off this node, what hack/install put there included, and puts back
what was changed. It does so in the daemons' stead, by their locks: one that runs would put things back. The manifest's
container `keep` has no lock, since nothing of the node's but its files is mounted there: its DaemonSet goes before.

What a step cannot remove is reported, and the next steps are taken all the same. The links of pods that still run stay,
without a way, unless they are to go as well: the node is to be drained before.
"""

import shutil
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click

from bpf import node
from bpf.abi import PodKey
from bpf.address import text
from bpf.attach import detach_cgroup
from bpf.cli import settings_flags
from bpf.errors import BpfError
from bpf.settings import Settings
from controller import alone
from controller.commands import cnifiles, daemons, installed
from controller.commands.links import Links, attached
from controller.commands.options import output_flag
from controller.commands.output import show_json
from controller.commands.reading import raw_entries
from controller.errors import AloneError, ControllerError
from controller.sysctl import RESERVED, Sysctls

FORCE = "--force minds no pods, and stops systemd's units; what the manifest runs ends with its DaemonSet alone"
# A directory of addresses may hold these without holding an address.
BOOKKEEPING = ("last_reserved_ip", "lock", ".draft")

# How long a daemon that was told to end may take until it has; the controller's last bpftool, too.
WAIT_S = 5.0


class Step(NamedTuple):
    """What was done; `failed` says why where it was not."""

    done: str
    failed: str = ""


def obstacles(settings: Settings, pods: bool = False) -> list[str]:
    """What speaks against it; pods do not where their links are to go, too."""
    found = [f"{daemon.name} is running ({daemon.seen})" for daemon in daemons.daemons(settings) if daemon.up]
    pins = node.pins(settings)
    addresses = 0 if pods or not pins.map("pods").exists() else len(list(raw_entries(pins, "pods")))
    return found + ([f"{addresses} pod addresses are in use: drain the node"] if addresses else [])


def uninstall(settings: Settings, pods: bool = False) -> Iterator[Step]:
    """Does everything, in an order in which no new pod comes upon half of it; with `pods`, their links go, too.

    What failed keeps the last step from being taken: the command stays, to be run again. While a daemon runs that is no
    unit of systemd's, nothing else is done.
    """
    done = yield from _taken((("units", _units()),))
    controller, server = settings.run_dir / alone.LOCK_NAME, settings.run_dir / node.SERVER_LOCK
    try:
        with alone.kept_off("controller", controller, WAIT_S), alone.kept_off("cni-server", server, WAIT_S):
            done &= yield from _taken(
                (
                    ("cni", _cni(settings, pods)),
                    ("cgroup", _cgroup(settings)),
                    ("devices", _devices()),
                    ("pins", _pins(settings)),
                )
            )
            restored = yield from _taken((("sysctls", _sysctls(settings)), ("ports", _ports(settings))))
            # Who runs it again finds there what the sysctls were.
            directories = (settings.state_dir, settings.run_dir) if restored else (settings.run_dir,)
            done &= yield from _taken((("directories", _directories(directories)),))
            if done and restored:
                yield from (Step(f"removed {path}") for path in installed.remove())
    except AloneError as error:
        yield Step("the network was left as it is", str(error))


def _taken(steps: Iterable[tuple[str, Iterator[Step]]]) -> Generator[Step, None, bool]:
    """Takes each of the named steps, whatever came of the one before; returns whether all were finished."""
    finished = True
    for name, step in steps:
        try:
            yield from step
        except (OSError, ValueError, BpfError, ControllerError) as error:
            finished = False
            yield Step(f"{name}: not finished", str(error))
    return finished


def _units() -> Iterator[Step]:
    """First: a daemon that goes on puts things back."""
    for unit in installed.units():
        installed.remove_unit(unit)
        yield Step(f"stopped and removed {unit}")


def _cni(settings: Settings, pods: bool) -> Iterator[Step]:
    """What the runtime finds goes before the links, so that it makes no other."""
    ours = [network for network in cnifiles.networks(settings.cni_conf_dir) if network.ours]
    for network in ours:
        network.path.unlink()
        yield Step(f"removed {network.path}")
    if cnifiles.EXECUTABLE.is_file():
        cnifiles.EXECUTABLE.unlink()
        yield Step(f"removed {cnifiles.EXECUTABLE}")
    gone = _remove_pods(settings) if pods else set()
    if gone:
        yield Step(f"removed {len(gone)} addresses of pods and their links")
    for network in ours:
        yield from _addresses(settings.cni_networks_dir / network.name, gone)


def _remove_pods(settings: Settings) -> set[str]:
    """Removes every pod link; returns the addresses that its pods had."""
    pins = node.pins(settings)
    entries = raw_entries(pins, "pods") if pins.map("pods").exists() else ()
    addresses = {text(PodKey.unpack(key).address) for key, _ in entries}
    with Links() as links:
        links.remove_pod_links()
    return addresses


def _addresses(directory: Path, gone: Collection[str]) -> Iterator[Step]:
    """A network's reservations of pods that are gone go; others may be another plugin's of the same network."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name in gone:
            path.unlink()
    held = [path.name for path in directory.iterdir() if not path.name.startswith(BOOKKEEPING)]
    if held:
        yield Step(f"left {directory}, which holds {len(held)} addresses")
        return
    shutil.rmtree(directory)
    yield Step(f"removed {directory}")
    with suppress(OSError):  # other networks' stand beside it
        directory.parent.rmdir()


def _cgroup(settings: Settings) -> Iterator[Step]:
    pins = node.pins(settings)
    if pins.links.is_dir() and any(pins.links.iterdir()):
        detach_cgroup(pins)
        yield Step("detached the cgroup programs")


def _devices() -> Iterator[Step]:
    """Whatever devices the settings named once: ours are known by their names and numbers."""
    with Links() as links:
        devices = {}
        for item in attached():
            links.detach(item)
            devices[item.ifindex] = item.device
            yield Step(f"detached {item.hook} from {item.device}")
        for ifindex in devices:
            links.remove_clsact(ifindex)
        if links.remove_overlay():
            yield Step("removed the overlay device")
        routes = links.remove_routes()
        if routes:
            yield Step(f"removed {routes} routes")


def _pins(settings: Settings) -> Iterator[Step]:
    root = node.pins(settings).root.parent
    if root.is_dir():
        shutil.rmtree(root)  # the pins of every layout
        yield Step(f"removed {root}")


def _sysctls(settings: Settings) -> Iterator[Step]:
    """Puts back what the controller has noted."""
    for name, value in Sysctls(settings.proc_sys, settings.state_dir).restore():
        yield Step(f"restored {name} to {value}")


def _ports(settings: Settings) -> Iterator[Step]:
    """Takes back those that the controller has reserved."""
    left = Sysctls(settings.proc_sys, settings.state_dir).release_ports()
    if left is not None:
        yield Step(f"restored {RESERVED} to {left or 'nothing'}")


def _directories(directories: Iterable[Path]) -> Iterator[Step]:
    for directory in directories:
        if directory.is_dir() and (not directory.is_mount() or any(directory.iterdir())):
            _empty(directory)
            yield Step(f"removed {directory}")


def _empty(directory: Path) -> None:
    """Removes a directory; of one that is a mount point, what is in it."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not directory.is_mount():
        directory.rmdir()


@click.command("uninstall")
@settings_flags("run_dir", "state_dir", "bpffs", "cni_conf_dir", "cni_networks_dir", "proc_sys", forgiving=True)
@click.option("--pods", is_flag=True, help="Take the links of pods that still run, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while pods are there, or daemons run as systemd's units.")
@output_flag
@click.pass_context
def command(context: click.Context, settings: Settings, pods: bool, yes: bool, force: bool, output: str) -> None:
    """Take everything of ours off this node, and put back what was changed.

    Systemd's units are stopped, disabled and removed. The configuration file, if any, stays. Where the manifest has
    installed it, its DaemonSet is to be deleted before: it would install again.
    Exit status 1 when something could not be removed.
    """
    reasons = obstacles(settings, pods)
    if reasons and not force:
        raise click.ClickException(f"{'; '.join(reasons)} ({FORCE})")
    if not yes:
        click.confirm("Services and pods of this node lose their network. Go on?", abort=True, err=True)
    steps = list(uninstall(settings, pods)) or [Step("nothing of ours was there")]
    if output == "json":
        show_json([step._asdict() for step in steps])
    else:
        click.echo("\n".join(f"{step.done}: {step.failed}" if step.failed else step.done for step in steps))
    context.exit(any(step.failed for step in steps))
