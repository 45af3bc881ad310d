# SPDX-License-Identifier: Apache-2.0
"""The manifests of the control plane's case."""

import json
from pathlib import Path

from e2e.bench import control_plane
from e2e.bench.control_plane import ENDPOINTS, SERVICES, SERVICES_A_FILE, Manifests


def test_lists_hold_a_hundred_objects_and_no_address_twice() -> None:
    """Every Service has an address of its own, and so has every endpoint."""
    lists = [control_plane.list_of(first) for first in range(0, SERVICES, SERVICES_A_FILE)]
    assert {len(objects) for objects in lists} == {100}
    services = [item["spec"]["clusterIP"] for objects in lists for item in objects if item["kind"] == "Service"]
    slices = [item for objects in lists for item in objects if item["kind"] == "EndpointSlice"]
    addresses = [endpoint["addresses"][0] for one in slices for endpoint in one["endpoints"]]
    assert len(set(services)) == SERVICES
    assert len(set(addresses)) == SERVICES * ENDPOINTS


def test_staged_change_differs_in_one_endpoint_of_the_named_service(tmp_path: Path) -> None:
    """The file to be renamed is the one in place but for one address, which is the one told."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    staged, target, number, address = Manifests(directory, tmp_path / "staged").stage_change()
    before, after = (json.loads(Path(path).read_text())["items"] for path in (target, staged))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    old, new = changed[0]
    assert new["metadata"]["labels"]["kubernetes.io/service-name"] == f"bench-{number}"
    gone = {endpoint["addresses"][0] for endpoint in old["endpoints"]}
    come = {endpoint["addresses"][0] for endpoint in new["endpoints"]}
    assert come - gone == {address}
    assert len(gone - come) == 1
