# SPDX-License-Identifier: Apache-2.0
"""The lab by hand: `python -m e2e.lab --help`."""

import os
import re
from pathlib import Path

import click

from e2e import kubernetes
from e2e.lab import addresses, cgroups, cluster, runtime
from e2e.lab import real as real_cluster
from e2e.lab.cluster import NAME, Lab
from e2e.lab.machine import BareMachine, Machine
from e2e.lab.space import LabError, Space


class Group(click.Group):
    """Prints the lab's errors as one line, exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (LabError, kubernetes.BuildError) as error:
            raise click.ClickException(str(error)) from error
        except PermissionError as error:
            if os.geteuid():
                raise click.ClickException("not root: the lab is made of namespaces, which need it") from error
            raise


def _checked_name(_context: click.Context, _option: click.Parameter, name: str) -> str:
    """It becomes a directory's name and a cgroup's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise click.BadParameter("letters, digits and dashes make a name")
    return name


def _pairs(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in given if "=" in item)
    if len(pairs) != len(given):
        raise click.BadParameter("each is NAME=VALUE, and each name is given once")
    return pairs


@click.group(cls=Group)
@click.option("--name", default=NAME, show_default=True, callback=_checked_name, help="Which lab.")
@click.pass_context
def main(ctx: click.Context, name: str) -> None:
    """Nodes and an outside client made of namespaces."""
    ctx.obj = name


@main.command()
@click.option("--nodes", type=click.IntRange(1, addresses.NODES_MAX), default=2, show_default=True)
@click.option(
    "--source",
    type=click.Choice(["directory", "kubernetes"]),
    help="Where Services come from: manifests (the default), or an API server.",
)
@click.option("--real", is_flag=True, help="A whole Kubernetes cluster, whose kubelets start the pods.")
@click.option("--bare", is_flag=True, help="With --real: nodes as kubeadm leaves them, our image imported.")
@click.option("--stack", type=click.Choice(list(addresses.STACKS)), help="The families of a whole cluster.")
@click.option(
    "--set", "settings", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="A setting of the nodes' daemons."
)
@click.pass_obj
def up(
    name: str, nodes: int, source: str | None, real: bool, bare: bool, stack: str | None, settings: dict[str, str]
) -> None:
    """Make a lab that stays until `down`."""
    if (source and real) or ((stack or bare) and not real):
        raise click.UsageError("--source is for a lab without kubelets, --stack and --bare for one with --real")
    if settings and bare:
        raise click.UsageError("the settings of bare nodes come with the manifests")
    lab = Lab(name, keep=True)
    try:
        if real:
            kind = BareMachine if bare else Machine
            real_cluster.start(lab, nodes, stack or addresses.DUAL, settings, kind)
        else:
            services = lab.api_source() if source == "kubernetes" else lab.directory_source()
            lab.start_nodes(nodes, services, settings)
    except BaseException:
        lab.down()
        raise
    lab.leave()
    click.echo(describe(name))


@main.command()
@click.pass_obj
def down(name: str) -> None:
    """End a lab, whoever made it, and remove everything of it."""
    cluster.remove(name)
    cluster.sweep()


@main.command()
@click.pass_obj
def status(name: str) -> None:
    """Spaces, pods, and the commands to look around."""
    click.echo(describe(name))


@main.command("in", context_settings={"ignore_unknown_options": True})
@click.argument("where")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def enter(name: str, where: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a space (node1, client, switch) or a pod (node1/POD); a shell without one."""
    where, _, pod = where.partition("/")
    inside = _space(name, where)
    if pod:
        inside = runtime.find(inside, pod).space
    cgroups.join(inside.group)
    argv = inside.command(command or (os.environ.get("SHELL", "sh"),))
    os.execvp(argv[0], argv)


@main.group()
def pod() -> None:
    """Make and remove pods through the CNI executable."""


@pod.command("add")
@click.argument("where")
@click.argument("pod_name")
@click.pass_obj
def pod_add(name: str, where: str, pod_name: str) -> None:
    """Make a pod on node WHERE, with a server that answers at its port 8080."""
    made = runtime.create(_space(name, where), pod_name)
    made.serve()
    click.echo(" ".join(made.address))


@pod.command("remove")
@click.argument("where")
@click.argument("pod_name")
@click.pass_obj
def pod_remove(name: str, where: str, pod_name: str) -> None:
    """Remove a pod from node WHERE."""
    runtime.remove(runtime.find(_space(name, where), pod_name))


@pod.command("list")
@click.pass_obj
def pod_list(name: str) -> None:
    """The pods of all nodes."""
    for where in cluster.spaces(name).values():
        for found in runtime.pods(where):
            click.echo(f"{where.name}/{found.name}\t{found.address.v4}\t{found.address.v6}")


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def kubectl(name: str, arguments: tuple[str, ...]) -> None:
    """Run kubectl against the lab's API server."""
    config = _kubeconfig(name)
    inside = _space(name, cluster.SWITCH)
    if not config.exists():
        raise LabError(
            f"lab {name} has no API server: `{cluster.command(name)} up --source kubernetes` makes one with it"
        )
    cgroups.join(inside.group)
    argv = inside.command([str(kubernetes.command("kubectl")), "--kubeconfig", str(config), *arguments], Path.cwd())
    os.execvp(argv[0], argv)


def describe(name: str) -> str:
    """What is up, and how to look around in it."""
    spaces = cluster.spaces(name)
    pods = [f"{where.name}/{found.name}" for where in spaces.values() for found in runtime.pods(where)]
    lab = cluster.command(name)
    if real_cluster.is_up(name):
        what = [f"kubeconfig {_kubeconfig(name)}"]
        ways = [f"{lab} kubectl get nodes,pods -A -o wide", f"{lab} kubectl create -f FILE", f"{lab} in client"]
    else:
        what = [f"pods       {' '.join(pods) or 'none'}", f"manifests  {cluster.HOME / name / 'manifests'}"]
        ways = [
            f"{lab} pod add node1 web",
            f"{lab} in node1/web -- ip address",
            f"{lab} pod remove node1 web",
        ]
    return "\n".join(
        [
            f"spaces     {' '.join(spaces)}",
            *what,
            f"logs       {cluster.HOME / name / 'logs'}",
            "",
            f"{lab} in node1 -- calico-ebpf status",
            f"{lab} in node1 -- ip route",
            *ways,
            f"{lab} down",
        ]
    )


def _kubeconfig(name: str) -> Path:
    return cluster.HOME / name / cluster.API / "kubeconfig"


def _space(name: str, where: str) -> Space:
    spaces = cluster.spaces(name)
    if where not in spaces:
        raise LabError(f"lab {name} has no {where}; it has {', '.join(spaces)}")
    return spaces[where]


if __name__ == "__main__":
    main()
