# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf deny`: the ranges from which nothing comes in from outside, at this node."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import click

from bpf import abi, node
from bpf.cli import settings_flags
from bpf.errors import NotLoadedError
from bpf.pins import Pins
from bpf.settings import Settings
from controller import cidr, denied
from controller.commands.options import output_flag
from controller.commands.output import Column, show
from controller.commands.reading import entries
from controller.maps import PinnedMaps


class Denied(NamedTuple):
    """`in_force`: the programs go by it."""

    range: str
    in_force: bool


COLUMNS = (
    Column("RANGE", lambda one: one.range),
    Column("IN FORCE", lambda one: "yes" if one.in_force else "no"),
)


class RangeType(click.ParamType[str]):
    """A range that may be denied, as text."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return denied.checked(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ranges_argument = click.argument("ranges", nargs=-1, required=True, metavar="CIDR...", type=RangeType())
deny_flags = settings_flags("state_dir", "bpffs")


def of_the_cluster(
    nodes: Iterable[abi.NodeKey], remotes: Iterable[tuple[abi.RemoteKey, abi.Remote]]
) -> Iterator[tuple[str, str]]:
    """(range, what it is) of what must not be shut out: nodes, their pods, and the routers before them."""
    for key in nodes:
        yield denied.shown(abi.RemoteKey(128, key.address)), "the address of a node"
    for remote_key, remote in remotes:
        if not remote.flags & abi.RemoteFlag.SERVICES:
            yield denied.shown(remote_key), "of another node or its pods"
            yield denied.shown(abi.RemoteKey(128, remote.next_hop)), "the way to another node"


def conflicts(wanted: Iterable[str], precious: Iterable[tuple[str, str]]) -> list[str]:
    """What is said against denying ranges, a sentence for each that holds anything of the cluster's."""
    known = list(precious)
    found = []
    for one in wanted:
        holds = next(((held, what) for held, what in known if cidr.overlaps(one, (held,))), None)
        if holds:
            found.append(f"{one} holds {holds[0]}, {holds[1]}")
    return found


def _known(pins: Pins) -> Iterator[tuple[str, str]]:
    return of_the_cluster((key for key, _ in entries(pins, "nodes")), entries(pins, "remotes"))


def _shown(settings: Settings, output: str, ranges: Iterable[str]) -> None:
    try:
        active = denied.in_force(PinnedMaps(node.pins(settings)))
    except NotLoadedError:
        active = set()
    show(output, [Denied(one, one in active) for one in ranges], COLUMNS)


def _change(settings: Settings, change: Callable[[denied.DenyList], None]) -> None:
    """The file first: whoever starts after a crash goes by it. Without maps the file is all there is to change."""
    held = denied.DenyList(settings.state_dir)
    with held.locked():
        change(held)
        try:
            denied.apply(PinnedMaps(node.pins(settings)), _listed(held))
        except NotLoadedError:
            click.echo("nothing is loaded: the controller applies the list when it starts", err=True)


def _listed(held: denied.DenyList) -> tuple[str, ...]:
    """The ranges of the file; lines of it that deny nothing are told of."""
    found = held.read()
    for problem in found.problems:
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        click.echo(f"{place}: {problem.message}", err=True)
    return found.ranges


@click.group("deny")
def command() -> None:
    """Ranges from which nothing comes in from outside, at this node.

    The list is in force at once, with daemons or without, and outlives a restart of the node. It is the file `denied`
    of the state directory, a range a line; comments and other lines of somebody's own stay as they are.
    """


@command.command("add")
@ranges_argument
@deny_flags
@click.option("--force", is_flag=True, help="Ranges with addresses of nodes or their pods as well.")
@output_flag
def add(settings: Settings, ranges: tuple[str, ...], force: bool, output: str) -> None:
    """Drop what comes from these ranges, connections that are open included."""
    reasons = [] if force else conflicts(ranges, _known(node.pins(settings)))
    if reasons:
        raise click.ClickException(f"{'; '.join(reasons)}: the cluster would lose it (--force denies it all the same)")
    _change(settings, lambda held: held.add(ranges))
    _shown(settings, output, ranges)


@command.command("remove")
@ranges_argument
@deny_flags
@output_flag
def remove(settings: Settings, ranges: tuple[str, ...], output: str) -> None:
    """Take ranges off the list, each as it was added."""
    _change(settings, lambda held: held.remove(ranges))
    _shown(settings, output, ranges)


@command.command("list")
@deny_flags
@output_flag
def list_(settings: Settings, output: str) -> None:
    """The ranges, and whether the programs go by them."""
    _shown(settings, output, _listed(denied.DenyList(settings.state_dir)))
