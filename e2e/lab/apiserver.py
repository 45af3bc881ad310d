# SPDX-License-Identifier: Apache-2.0
"""An API server for the lab: etcd and a real kube-apiserver in a space of it, or a cluster's own by relay.

The lab's own has one administrator, of group system:masters. Nothing is durable: the data vanish with the lab.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from e2e import kubernetes
from e2e.lab import addresses
from e2e.lab.space import LabError, Space

PORT = 6443
ETCD = "http://127.0.0.1:2379"
READY_S = 60
KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30"
TOOLS = Path(__file__).parent

READY = """
import ssl, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cafile=sys.argv[3]))
"""


@dataclass(frozen=True)
class ApiServer:
    """A running API server.

    Attributes:
        kubeconfig: of its administrator.
        stack: the families of its Services, of addresses.STACKS.
        powerless: the token of a user who may do nothing.
    """

    kubeconfig: Path
    stack: str
    powerless: str
    process: "subprocess.Popen[str]"

    def pause(self) -> None:
        """Makes it silent: connections stand, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def start(
    space: Space, directory: Path, logs: Path, stack: str = addresses.DUAL, controllers: bool = False
) -> ApiServer:
    """Starts both and waits until the API server is ready.

    Args:
        directory: for certificates and data; is made.
        stack: the families of its Services, of addresses.STACKS.
        controllers: a controller-manager will be there, so that pods get service accounts.

    Raises:
        LabError: one of them is missing, ended, or was not ready in time.
        kubernetes.BuildError: the API server cannot be built.
    """
    if not shutil.which("etcd"):
        raise LabError("etcd is not installed (Debian package etcd-server)")
    binary = kubernetes.command("kube-apiserver")
    directory.mkdir(mode=0o700)
    make_keys(directory)
    token, powerless = secrets.token_hex(16), secrets.token_hex(16)
    (directory / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n{powerless},nobody,nobody\n')
    etcd = space.start("etcd", *etcd_flags(directory), log=logs / "etcd.log")
    flags = [*server_flags(directory, stack), *([] if controllers else ["--disable-admission-plugins=ServiceAccount"])]
    server = space.start(str(binary), *flags, log=logs / "kube-apiserver.log")
    _wait_ready(space, [etcd, server], directory, token, logs)
    path = directory / "kubeconfig"
    path.write_text(json.dumps(kubeconfig(directory, stack, {"token": token}), indent=2))
    return ApiServer(path, stack, powerless, server)


def borrow(space: Space, kubeconfig: Path, directory: Path) -> Path:
    """Relays the API server of a cluster into the lab; the kubeconfig to reach it there.

    Args:
        kubeconfig: its current context is used, with the credentials in it.

    Raises:
        LabError: the kubeconfig names no server.
    """
    directory.mkdir(mode=0o700)
    kubectl = [str(kubernetes.command("kubectl")), "--kubeconfig", str(kubeconfig)]
    flat = subprocess.run(
        [*kubectl, "config", "view", "--minify", "--flatten", "-o", "json"], capture_output=True, check=False
    )
    if flat.returncode:
        raise LabError(f"{kubeconfig}: {flat.stderr.decode().strip()}")
    config = json.loads(flat.stdout)
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    address = addresses.underlay(addresses.SWITCH).v4
    relay = TOOLS / "relay.py"
    command = [
        sys.executable,
        "-I",
        "-S",
        str(relay),
        address,
        str(PORT),
        str(server.hostname),
        str(server.port or 443),
    ]
    process = space.start(*command, "--from", f"/proc/{os.getpid()}/ns/net")
    if not process.stdout or process.stdout.readline() != "ready\n":
        raise LabError(f"relay to {cluster['server']}: {process.communicate()[1].strip()}")
    cluster.setdefault("tls-server-name", server.hostname)
    cluster["server"] = f"https://{address}:{PORT}"
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config, indent=2))
    return path


def etcd_flags(directory: Path) -> list[str]:
    return [
        f"--data-dir={directory}/etcd",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
    ]


def server_flags(directory: Path, stack: str) -> list[str]:
    return [
        f"--etcd-servers={ETCD}",
        f"--advertise-address={addresses.of(stack, addresses.underlay(addresses.SWITCH))[0]}",
        f"--secure-port={PORT}",
        f"--service-cluster-ip-range={','.join(map(str, addresses.of(stack, addresses.SERVICES)))}",
        "--allow-privileged",
        "--authorization-mode=Node,RBAC",
        f"--token-auth-file={directory}/tokens.csv",
        f"--tls-cert-file={directory}/server.crt",
        f"--tls-private-key-file={directory}/server.key",
        f"--client-ca-file={directory}/ca.crt",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={directory}/accounts.pub",
        f"--service-account-signing-key-file={directory}/accounts.key",
        f"--kubelet-client-certificate={directory}/kubelet-client.crt",
        f"--kubelet-client-key={directory}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def make_keys(directory: Path) -> None:
    """A certificate authority, the API server's certificate from it, and the key pair of service accounts."""
    address = addresses.underlay(addresses.SWITCH)
    names = f"subjectAltName=IP:{address.v4},IP:{address.v6},IP:127.0.0.1,DNS:kubernetes.default.svc"
    _openssl(directory, f"req -x509 {KEY} -keyout ca.key -out ca.crt -subj /CN=lab-ca")
    _openssl(
        directory,
        f"req -x509 {KEY} -keyout server.key -out server.crt -subj /CN=kube-apiserver -addext {names} "
        "-addext basicConstraints=CA:FALSE -CA ca.crt -CAkey ca.key",
    )
    make_client(directory, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    _openssl(directory, "genrsa -out accounts.key 2048")
    _openssl(directory, "rsa -in accounts.key -pubout -out accounts.pub")


def make_client(directory: Path, name: str, subject: str) -> dict[str, str]:
    """A client's certificate, of the API server's authority; the `user` of its kubeconfig."""
    _openssl(
        directory,
        f"req -x509 {KEY} -keyout {name}.key -out {name}.crt -subj {subject} "
        "-addext basicConstraints=CA:FALSE -addext extendedKeyUsage=clientAuth -CA ca.crt -CAkey ca.key",
    )
    return {"client-certificate": f"{directory}/{name}.crt", "client-key": f"{directory}/{name}.key"}


def _openssl(directory: Path, arguments: str) -> None:
    process = subprocess.run(
        ["openssl", *arguments.split()], cwd=directory, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise LabError(f"openssl {arguments}: {process.stderr.strip()}")


def _wait_ready(
    space: Space, processes: list["subprocess.Popen[str]"], directory: Path, token: str, logs: Path
) -> None:
    url = f"https://{addresses.underlay(addresses.SWITCH).v4}:{PORT}/readyz"
    probe = [sys.executable, "-I", "-c", READY, url, token, str(directory / "ca.crt")]
    deadline = time.monotonic() + READY_S
    while space.run(*probe, check=False).returncode:
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            raise LabError(f"the API server did not start; see {logs}/kube-apiserver.log and etcd.log")
        time.sleep(0.2)


def kubeconfig(directory: Path, stack: str, user: Mapping[str, str]) -> dict[str, Any]:
    """How a user reaches the API server, by an address of the first family of its Services."""
    address = addresses.of(stack, addresses.underlay(addresses.SWITCH))[0]
    host = f"[{address}]" if ":" in address else address
    cluster = {"server": f"https://{host}:{PORT}", "certificate-authority": str(directory / "ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "user", "user": dict(user)}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
        "current-context": "lab",
    }
