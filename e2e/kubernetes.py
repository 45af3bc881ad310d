# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own commands and CoreDNS, built from their Go modules into the cache that all clones share.

The module files are hack/k8s/go.mod and hack/coredns/go.mod, and hack/e2e/go.mod for Kubernetes' own tests.
`python -m e2e.kubernetes` builds what is missing of what the lab runs and prints where it is: minutes from an empty
cache, then nothing. The tests are built when they are first asked for.
"""

from pathlib import Path

from hack.gobuild import HACK, Module
from hack.gobuild import BuildError as BuildError

KUBERNETES = Module(
    HACK / "k8s",
    "k8s.io/kubernetes",
    {
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    },
    version_package="k8s.io/component-base/version",
)
COREDNS = Module(HACK / "coredns", "github.com/coredns/coredns", {"coredns": "."})
# A module file apart, since a change of one has everything built anew that is built by it.
TESTS = Module(
    HACK / "e2e",
    KUBERNETES.requires,
    {"e2e.test": "k8s.io/kubernetes/test/e2e", "ginkgo": "github.com/onsi/ginkgo/v2/ginkgo"},
    version_package=KUBERNETES.version_package,
)
LAB = (KUBERNETES, COREDNS)
MODULES = (*LAB, TESTS)


def version() -> str:
    """Kubernetes' version, such as v1.36.3."""
    return KUBERNETES.version()


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
    """The directory of Kubernetes' own sources, for what is not built of them.

    Raises:
        BuildError: they could not be had.
    """
    return KUBERNETES.source()


if __name__ == "__main__":
    print("\n".join(map(str, commands())))
