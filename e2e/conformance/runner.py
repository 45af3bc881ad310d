# SPDX-License-Identifier: Apache-2.0
"""Runs upstream's tests against a cluster: ginkgo shares them out to several processes of e2e.test.

They run at the lab's outside client, which reaches nodes and the API server and is none of the cluster's machines.
"""

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from e2e import kubernetes
from e2e.conformance import results, suite
from e2e.conformance.results import Result
from e2e.lab import images, real
from e2e.lab.cluster import Lab
from e2e.lab.errors import LabError
from e2e.lab.machine import BareMachine
from e2e.lab.real import Cluster

# One test of the suite is for three nodes, and skipped where there are fewer.
NODES = 3
TIMEOUT_S = 3 * 3600
PROGRESS_S = 30
UPSTREAM_REPORT = "junit_01.xml"
REPORT, LOG = "junit.xml", "ginkgo.log"
# Where upstream's program leaves what it collects of a test that failed, its pods' logs among it.
FAILURES = "failures"
LISTED = re.compile(r"^ {4}\S+:\d+: (.+)$", re.MULTILINE)


def build() -> None:
    """Builds what is run, before there is a cluster.

    Raises:
        kubernetes.BuildError, LabError: something cannot be built, or the lab's images are not those of the tests.
    """
    for name in kubernetes.TESTS.packages:
        kubernetes.command(name)
    kubernetes.commands()
    images.archive()
    if strange := {images.PAUSE, *images.DEBIAN} - set(_listed("--list-images").split()):
        raise LabError(f"e2e/lab/images.py has names for which this version's tests do not ask: {', '.join(strange)}")


def names() -> list[str]:
    """Every test that upstream has. Raises kubernetes.BuildError."""
    return LISTED.findall(_listed("--list-tests"))


def _listed(flag: str) -> str:
    return subprocess.run(
        [str(kubernetes.command("e2e.test")), flag], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def make_cluster(lab: Lab, stack: str) -> Cluster:
    """The cluster that is tested: bare nodes of a stack, to which the manifest was applied. Raises LabError."""
    cluster = real.start(lab, NODES, stack, kind=BareMachine)
    real.install(cluster)
    return cluster


def run(
    cluster: Cluster, chosen: Sequence[str], processes: int, directory: Path, tell: Callable[[str], None]
) -> list[Result]:
    """Runs tests, and leaves a JUnit file, a log, and what is known of those that failed.

    Args:
        chosen: full names; those that are left out are reported as such.
        directory: for the files.
        tell: is called with a line from time to time.

    Raises:
        LabError: there is no report; the message carries what ginkgo said at last.
    """
    log = directory / LOG
    to_run = [name for name in chosen if not suite.left_out(name)]
    process = cluster.lab.client.start(*_command(cluster, to_run, processes, directory), log=log)
    _follow(process, log, len(to_run), tell)
    report = directory / FAILURES / UPSTREAM_REPORT
    if not report.exists():
        raise LabError(f"ginkgo ended with {process.returncode} and left no report:\n{_text(log)[-2000:]}")
    taken = results.take(report, directory / REPORT, chosen)
    report.unlink()
    return taken


def _command(cluster: Cluster, to_run: Sequence[str], processes: int, directory: Path) -> list[str]:
    return [
        str(kubernetes.command("ginkgo")),
        "run",
        f"--procs={processes}",
        f"--focus={suite.expression(to_run)}",
        f"--timeout={TIMEOUT_S}s",
        "--silence-skips",
        "--no-color",
        str(kubernetes.command("e2e.test")),
        "--",
        "--provider=skeleton",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--kubectl-path={kubernetes.command('kubectl')}",
        f"--num-nodes={len(cluster.machines)}",
        f"--report-dir={directory / FAILURES}",
        "--disable-log-dump",
    ]


def _follow(process: "subprocess.Popen[str]", log: Path, count: int, tell: Callable[[str], None]) -> None:
    """Waits for the end, and tells of the way there."""
    began, told = time.monotonic(), 0
    while process.poll() is None:
        try:
            process.wait(PROGRESS_S)
        except subprocess.TimeoutExpired:
            done = _text(log).count("•")
            if done != told:
                told = done
                tell(f"{time.monotonic() - began:4.0f} s: {done} of {count} done")


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
