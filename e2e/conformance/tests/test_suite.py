# SPDX-License-Identifier: Apache-2.0
"""Which tests are ours, and that the regular expression finds them alone."""

import re

import pytest

from e2e import kubernetes
from e2e.conformance import runner, suite

SERVICES = "[sig-network] Services should serve a basic endpoint from pods [Conformance]"
SCTP = "[sig-network] Networking Granular Checks: Pods should function by sctp [Feature:SCTPConnectivity]"


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        (SERVICES, True),
        ("[sig-network] DNS should provide DNS for the cluster [Conformance]", True),
        ("[sig-network] Services should release NodePorts on delete", True),
        (SCTP, True),
        ("[sig-network] DNS should support configurable pod resolv.conf", False),
        ("[sig-network] EndpointSliceMirroring should mirror something", False),
        ("[sig-node] Services should be something of another group's [Conformance]", False),
    ],
)
def test_belongs_takes_the_marked_and_the_four_groups(name: str, whether: bool) -> None:
    """Conformance tests of the network, and all of the groups; neither other groups nor other parts of Kubernetes."""
    assert suite.belongs(name) == whether


def test_chosen_are_sorted_and_narrowed_by_focus() -> None:
    """The focus is a regular expression, found anywhere in the name."""
    names = [SERVICES, "[sig-apps] Job", SCTP]
    assert suite.chosen(names) == [SCTP, SERVICES]
    assert suite.chosen(names, "basic|no such") == [SERVICES]


def test_left_out_tells_the_reason() -> None:
    """A test for a feature that no such cluster has says which; any other is run."""
    assert suite.left_out(SCTP) == "for clusters that have SCTP"
    assert suite.left_out(SERVICES) == ""


def test_expression_finds_whole_names_alone() -> None:
    """Neither a name that begins or ends likewise nor what brackets and dots could stand for."""
    names = ["[sig-network] A: b.c (d)", "[sig-network] A: b/c"]
    found = re.compile(suite.expression(names))
    assert all(found.search(f"Kubernetes e2e suite {name}") for name in names)
    others = ["[sig-network] A: bxc (d)", "[sig-network] A: b/c d", "x[sig-network] A: b/c", "s A: b/c"]
    assert not any(found.search(f"Kubernetes e2e suite {name}") for name in others)


def test_listing_of_upstream_gives_the_names() -> None:
    """Each name stands behind the place of its test."""
    said = f"The following spec names can be used:\n    k8s.io/k@v1/test/e2e/network/service.go:733: {SERVICES}\n\n"
    assert runner.LISTED.findall(said) == [SERVICES]


def test_tests_are_of_the_version_of_the_cluster() -> None:
    """Both module files ask for one version of Kubernetes."""
    assert kubernetes.TESTS.version() == kubernetes.version()
