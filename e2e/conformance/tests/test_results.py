# SPDX-License-Identifier: Apache-2.0
"""What is read out of upstream's JUnit file, and what of it stands in ours."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from e2e.conformance import results
from e2e.conformance.results import FAILED, PASSED, SKIPPED, Result

UPSTREAM = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="8" disabled="4" errors="1" failures="1" time="61.5">
 <testsuite name="Kubernetes e2e suite" tests="8" disabled="0" skipped="4" errors="1" failures="1" time="61.5">
  <properties><property name="RandomSeed" value="7"></property></properties>
  <testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
  <testcase name="[It] [sig-network] Services should work" status="passed" time="1.5"></testcase>
  <testcase name="[It] [sig-network] Services should fail" status="failed" time="60">
   <failure message="" type="failed">[FAILED] It didn&#39;t hold.&#xA;In [It] at: service.go:251</failure>
   <system-err>the whole story</system-err>
  </testcase>
  <testcase name="[It] [sig-network] Services should not panic" status="panicked" time="0.5">
   <error message="" type="panicked"></error>
  </testcase>
  <testcase name="[It] [sig-network] Services on SSH" status="skipped" time="0.2">
   <skipped message="skipped - Only supported for providers [gce]"></skipped>
  </testcase>
  <testcase name="[It] [sig-network] Networking by sctp [Feature:SCTPConnectivity]" status="skipped" time="0">
   <skipped message="skipped"></skipped>
  </testcase>
  <testcase name="[It] [sig-apps] Job" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
  <testcase name="[It] [sig-node] Pods" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
 </testsuite>
</testsuites>
"""
WORKS = Result("[sig-network] Services should work", PASSED, 1.5)
FAILS = Result("[sig-network] Services should fail", FAILED, 60, "It didn't hold.")
PANICS = Result("[sig-network] Services should not panic", FAILED, 0.5, "panicked")
SKIPS = Result("[sig-network] Services on SSH", SKIPPED, 0.2, "Only supported for providers [gce]")
LEFT_OUT = Result(
    "[sig-network] Networking by sctp [Feature:SCTPConnectivity]", SKIPPED, 0, "for clusters that have SCTP"
)
ALL = [WORKS, FAILS, PANICS, SKIPS, LEFT_OUT]


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    path = tmp_path / "upstream.xml"
    path.write_text(UPSTREAM)
    return path


def _cases(path: Path) -> dict[str, ElementTree.Element]:
    return {case.get("name", ""): case for case in ElementTree.parse(path).iter("testcase")}


def test_take_gives_what_was_asked_for(upstream: Path, tmp_path: Path) -> None:
    """Passed, failed with the first line of why, skipped with the test's own reason or ours; nothing else."""
    assert results.take(upstream, tmp_path / "ours.xml", {result.name for result in ALL}) == ALL


def test_take_writes_these_with_counts_and_reasons(upstream: Path, tmp_path: Path) -> None:
    """Our file has the tests that were asked for, whole, and counts them alone."""
    ours = tmp_path / "ours.xml"
    results.take(upstream, ours, {result.name for result in ALL})
    cases = _cases(ours)
    assert set(cases) == {"[It] " + result.name for result in ALL}
    assert cases["[It] " + FAILS.name].findtext("system-err") == "the whole story"
    skipped = cases["[It] " + LEFT_OUT.name].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "skipped - for clusters that have SCTP"
    root = ElementTree.parse(ours).getroot()
    counts = {"tests": "5", "failures": "2", "errors": "0"}
    assert counts | {"disabled": "2", "time": "61.5"} == dict(root.attrib)
    assert (counts | {"skipped": "2"}).items() <= root[0].attrib.items()


def test_take_counts_a_test_without_result_as_failed(upstream: Path, tmp_path: Path) -> None:
    """A process that ends takes its tests along: each is told of, in the file as well."""
    lost, ours = "[sig-network] Services lost", tmp_path / "ours.xml"
    assert results.take(upstream, ours, {WORKS.name, lost})[-1] == Result(lost, FAILED, 0, "there is no result of it")
    assert _cases(ours)["[It] " + lost].findtext("failure") == "there is no result of it"


def test_take_tells_of_a_preparation_that_failed(upstream: Path, tmp_path: Path) -> None:
    """What fails of the suite's own is a failure, though nobody asked for it."""
    upstream.write_text(UPSTREAM.replace('Suite]" status="passed"', 'Suite]" status="failed"'))
    assert results.take(upstream, tmp_path / "ours.xml", {WORKS.name})[0].name == "[SynchronizedBeforeSuite]"
