# SPDX-License-Identifier: Apache-2.0
"""What a container runtime does on a node of the lab: network namespaces, the CNI executable, and something to run.

The executable is called as containerd calls it: found in CNI_PATH by its type, configured on standard input.
"""

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2e.lab import cgroups
from e2e.lab.addresses import Dual
from e2e.lab.space import LabError, Space

CNI_CONF = "/etc/cni/net.d/10-calico-ebpf.conflist"
CNI_BIN = "/opt/cni/bin"
INTERFACE = "eth0"
PORT = 8080
RECORDS = "/run/lab-pods"
TOOLS = Path(__file__).parent


class CniError(LabError):
    """The CNI executable answered with an error.

    Attributes:
        answer: its error object, empty where it printed none.
    """

    def __init__(self, message: str, answer: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.answer = answer


@dataclass
class Pod:
    """A pod: its sandbox, and what the plugin gave it.

    Attributes:
        node: the node's space.
        space: the pod's own.
        port_mappings: its host ports, for plugins that have the capability.
    """

    name: str
    node: Space
    container_id: str = field(default_factory=lambda: secrets.token_hex(32))
    result: dict[str, Any] = field(default_factory=dict)
    port_mappings: Sequence[dict[str, Any]] = ()

    @property
    def netns(self) -> str:
        """The name of its network namespace, below the node's /run/netns."""
        return f"cni-{self.container_id[:16]}"

    @property
    def space(self) -> Space:
        return self.node.sandbox(self.netns)

    @property
    def address(self) -> Dual:
        """Its addresses; "" where it has none of a family."""
        found = [item["address"].partition("/")[0] for item in self.result.get("ips", ())]
        first = {":" in text: text for text in reversed(found)}
        return Dual(first.get(False, ""), first.get(True, ""))

    def serve(self, port: int = PORT) -> None:
        """Starts the lab's server, which answers with the pod's name, and waits until it can be asked."""
        serve(self.space, self.name, port)

    def end_processes(self) -> None:
        """Kills what runs in the pod."""
        cgroups.kill(self.space.group)


def host_pod(node: Space, name: str) -> Space:
    """The space of a pod in the host's network: the node's namespaces, a cgroup where kubelet makes those of pods."""
    space = replace(node, group=node.group / "kubepods" / name)
    space.group.mkdir(parents=True, exist_ok=True)
    return space


def tool(name: str, *arguments: str) -> list[str]:
    """The command line of one of the lab's tools: server, ask, load."""
    return [sys.executable, "-I", "-S", str(TOOLS / f"{name}.py"), *arguments]


def serve(where: Space, name: str, port: int = PORT) -> None:
    """Starts the lab's server in a pod's or a node's space, and waits until it can be asked. Raises LabError."""
    process = where.start(*tool("server", "--name", name, "--port", str(port)))
    if not process.stdout or process.stdout.readline() != "ready\n":
        raise LabError(f"server {name}: {process.communicate()[1].strip()}")


def create(node: Space, name: str, port_mappings: Sequence[dict[str, Any]] = ()) -> Pod:
    """Makes a sandbox and adds it to the network.

    Raises:
        LabError: the name is taken, or the node has no network.
        CniError: a plugin answered with an error; the sandbox is gone again, as with a runtime.
    """
    pod = Pod(name, node, port_mappings=port_mappings)
    if _record(pod).exists():
        raise LabError(f"{node.name} has a pod {name} already: `pod remove {node.name} {name}` removes it")
    plugins(node)
    node.run("ip", "netns", "add", pod.netns)
    pod.space.group.mkdir()
    try:
        pod.space.run("ip", "link", "set", "lo", "up")
        pod.result = add(pod)
    except LabError:
        remove(pod)
        raise
    _record(pod).write_text(json.dumps({"container_id": pod.container_id, "result": pod.result}))
    return pod


def remove(pod: Pod) -> None:
    """Takes a pod off the network and removes its sandbox."""
    pod.end_processes()
    delete(pod)
    pod.node.run("ip", "netns", "delete", pod.netns)
    _record(pod).unlink(missing_ok=True)


def pods(node: Space) -> list[Pod]:
    """The pods of a node, whichever process made them."""
    records = [(path.stem, json.loads(path.read_text())) for path in sorted(node.path(RECORDS).glob("*.json"))]
    return [Pod(name, node, record["container_id"], record["result"]) for name, record in records]


def find(node: Space, name: str) -> Pod:
    """A pod by name. Raises LabError."""
    for pod in pods(node):
        if pod.name == name:
            return pod
    raise LabError(f"{node.name} has no pod {name}")


def _record(pod: Pod) -> Path:
    directory = pod.node.path(RECORDS)
    directory.mkdir(exist_ok=True)
    return directory / f"{pod.name}.json"


def add(pod: Pod) -> dict[str, Any]:
    """ADD through every plugin of the network, in order; the last result."""
    result: dict[str, Any] = {}
    for config in _configs(pod):
        result = call("ADD", pod, config | ({"prevResult": result} if result else {}))
    return result


def check(pod: Pod) -> None:
    for config in _configs(pod):
        call("CHECK", pod, config | {"prevResult": pod.result})


def delete(pod: Pod) -> None:
    """DEL through every plugin of the network, in reverse."""
    for config in reversed(_configs(pod)):
        call("DEL", pod, config | ({"prevResult": pod.result} if pod.result else {}))


def _configs(pod: Pod) -> list[dict[str, Any]]:
    """As `plugins`, with the pod's host ports for those that declare the capability."""
    runtime = {"runtimeConfig": {"portMappings": pod.port_mappings}}
    configs = plugins(pod.node)
    return [one | runtime if one.get("capabilities", {}).get("portMappings") else one for one in configs]


def plugins(space: Space) -> list[dict[str, Any]]:
    """The configuration of each plugin of the node's network, as it is handed to the plugin. Raises LabError."""
    try:
        network = json.loads(space.path(CNI_CONF).read_text())
    except FileNotFoundError:
        raise LabError(f"{space.name} has no network: {CNI_CONF} is not there") from None
    shared = {key: network[key] for key in ("cniVersion", "name")}
    return [shared | plugin for plugin in network["plugins"]]


def call(verb: str, pod: Pod, config: Mapping[str, Any] | str, **environment: str) -> dict[str, Any]:
    """Runs the executable once.

    Args:
        config: goes to its standard input, as it is where it is text.
        environment: overrides of the CNI_* variables.

    Raises:
        CniError: it exited with an error.
    """
    kind = config["type"] if isinstance(config, Mapping) else "calico-ebpf"
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": f"/run/netns/{pod.netns}",
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": CNI_BIN,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}",
    } | environment
    stdin = config if isinstance(config, str) else json.dumps(config)
    process = pod.node.run(f"{CNI_BIN}/{kind}", stdin=stdin, env=env, check=False)
    if process.returncode:
        said = process.stdout.strip() or process.stderr.strip()
        raise CniError(f"{pod.node.name}: CNI {verb} of {pod.name}: {said}", _parsed(process.stdout))
    return _parsed(process.stdout)


def _parsed(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
