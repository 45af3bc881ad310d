# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own commands and CoreDNS, built from their Go modules into the cache that all clones share.

The module files are hack/k8s/go.mod and hack/coredns/go.mod, and hack/e2e/go.mod for Kubernetes' own tests. Where the
variable KUBERNETES names an older version, such as 1.30, clusters are of what hack/k8s-1.30/go.mod makes.
`python -m e2e.kubernetes` builds what is missing of what the lab runs and prints where it is: minutes from an empty
cache, then nothing. The tests are built when they are first asked for.
"""

import os
from dataclasses import replace
from pathlib import Path

from hack.gobuild import HACK, Module
from hack.gobuild import BuildError as BuildError

OLDER = os.environ.get("KUBERNETES")
# What a cluster is made of, and kubectl.
KUBERNETES = Module(
    HACK / (f"k8s-{OLDER}" if OLDER else "k8s"),
    "k8s.io/kubernetes",
    {
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    },
    version_package="k8s.io/component-base/version",
)
# What is the newest version's beside any cluster: a peer to measure against, and the server of the tests' pods.
NEWEST = replace(
    KUBERNETES,
    directory=HACK / "k8s",
    packages={
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    },
)
COREDNS = Module(HACK / "coredns", "github.com/coredns/coredns", {"coredns": "."})
# A module file apart, since a change of one has everything built anew that is built by it.
TESTS = Module(
    HACK / "e2e",
    KUBERNETES.requires,
    {"e2e.test": "k8s.io/kubernetes/test/e2e", "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo"},
    version_package=KUBERNETES.version_package,
)
LAB = (KUBERNETES, NEWEST, COREDNS)
MODULES = (*LAB, TESTS)


def version() -> str:
    """Kubernetes' newest version, such as v1.36.3."""
    return NEWEST.version()


def command(name: str) -> Path:
    """The path of a command, built first when it is missing.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    module = next(module for module in MODULES if name in module.packages)
    return module.built([name]) / name


def commands() -> list[Path]:
    """The paths of all commands that the lab runs, those that are missing built first.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    return [module.built(list(module.packages)) / name for module in LAB for name in module.packages]


def sources() -> Path:
    """The directory of its sources, for what is not built of them.

    Raises:
        BuildError: they could not be had.
    """
    return NEWEST.source()


if __name__ == "__main__":
    print("\n".join(map(str, commands())))
