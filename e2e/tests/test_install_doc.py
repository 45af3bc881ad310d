# SPDX-License-Identifier: Apache-2.0
"""conf/INSTALL.md explains every privilege that conf/base asks for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONF = Path(__file__).parent.parent.parent / "conf"
DAEMONS = "controller", "cni-server"
PRIVILEGES = (CONF / "INSTALL.md").read_text().partition("## Privileges")[2]


def rows(head: str) -> Iterator[list[str]]:
    """The rows of the table whose head begins with a word, their cells without the marks of code."""
    table = PRIVILEGES.partition(f"| {head} |")[2].partition("\n\n")[0].replace("`", "")
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def capabilities() -> set[tuple[str, str]]:
    """(container, capability) of the document; a cell that is empty says what the one above it does."""
    found, container = set(), ""
    for who, what, _ in rows("container"):
        container = who or container
        found |= {(one, word) for one in (DAEMONS if container == "both" else [container]) for word in what.split(", ")}
    return found


def mounts() -> set[tuple[str, str, str]]:
    """(path, container, read or write) of the document."""
    return {
        (path, container, access)
        for paths, accesses, _ in rows("mount")
        for path in paths.split(", ")
        for containers, access in (part.split(": ") for part in accesses.split("; "))
        for container in containers.split(", ")
    }


@pytest.fixture
def containers() -> list[dict[str, Any]]:
    spec = yaml.safe_load((CONF / "base/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def test_every_capability_is_explained(containers: list[dict[str, Any]]) -> None:
    """What a container may beyond an ordinary one."""
    for container in containers:
        context = container["securityContext"]
        added = ["privileged"] if context.get("privileged") else context["capabilities"].get("add", ["none"])
        assert {(container["name"], what) for what in added} <= capabilities()


def test_every_mount_is_explained(containers: list[dict[str, Any]]) -> None:
    """With whether the container may write there; the node's own path is named, but for what has another inside."""
    for container in containers:
        for mount in container["volumeMounts"]:
            path = mount["mountPath"]
            path = path if path.startswith("/host/proc") else path.removeprefix("/host")
            assert (path, container["name"], "read" if mount.get("readOnly") else "write") in mounts()


def test_every_rule_of_the_account_is_explained() -> None:
    """By the name of what is read."""
    role = next(item for item in yaml.safe_load_all((CONF / "base/rbac.yaml").read_text()) if "rules" in item)
    for rule in role["rules"]:
        assert set(rule["verbs"]) <= {"list", "watch"}
        assert all(f"`{resource}`" in PRIVILEGES for resource in rule["resources"])
