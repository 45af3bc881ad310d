# SPDX-License-Identifier: Apache-2.0
"""One cluster for all tests of this package: that of KUBECONFIG where it is set, otherwise a real one in the lab, with
conf/install/calico-ebpf.yaml applied.

Of a given cluster is asked that its nodes reach the image (e2e/lab/images.py), and this machine the nodes.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from e2e import kubernetes
from e2e.lab import real
from e2e.lab.cluster import Lab
from e2e.lab.machine import BareMachine
from e2e.lab.real import Cluster
from e2e.tests.cluster.play import Play

GIVEN = os.environ.get("KUBECONFIG")


@pytest.fixture(scope="package")
def _cluster() -> Iterator[Cluster]:
    with Lab(f"test-{os.getpid()}-real") as lab:
        cluster = real.start(lab, 2, kind=BareMachine)
        real.install(cluster)
        yield cluster


@pytest.fixture(scope="package")
def play(request: pytest.FixtureRequest) -> Iterator[Play]:
    """The cast, on either cluster."""
    namespace = f"e2e-{os.getpid()}"
    if GIVEN:
        cast = Play(_kubectl, _here, namespace)
    else:
        cluster = request.getfixturevalue("_cluster")
        cast = Play(cluster.kubectl, lambda argv: str(cluster.lab.client.run(*argv).stdout), namespace)
    try:
        cast.set_up()
        yield cast
    finally:
        cast.down()


@pytest.fixture
def cluster(request: pytest.FixtureRequest, play: Play) -> Cluster:
    """The lab's own cluster, for tests that look into its nodes; `play` is on it."""
    del play
    if GIVEN:
        pytest.skip("looks into the nodes of the lab's own cluster")
    found = request.getfixturevalue("_cluster")
    assert isinstance(found, Cluster)
    return found


def _kubectl(*arguments: str, stdin: str | None = None) -> str:
    return _here([str(kubernetes.command("kubectl")), *arguments], stdin)


def _here(argv: Sequence[str], stdin: str | None = None) -> str:
    return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout
