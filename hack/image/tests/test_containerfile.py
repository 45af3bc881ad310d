# SPDX-License-Identifier: Apache-2.0
"""The Containerfile, which no test runs, says of the image what hack/image does."""

import json
import re

from hack.image.build import CONFIG
from hack.image.requirements import ROOT

TEXT = (ROOT / "Containerfile").read_text().replace("\\\n", "")


def test_containerfile_has_the_entry_point_of_the_image() -> None:
    """And copies the tree that hack/image lays out, no other."""
    entrypoint = re.search(r"^ENTRYPOINT (.*)$", TEXT, re.MULTILINE)
    assert entrypoint
    assert json.loads(entrypoint[1]) == CONFIG["Entrypoint"]
    laid_out = re.search(r"python -m hack.image --tree (\S+)", TEXT)
    assert laid_out
    assert re.findall(r"^COPY --from=build (.*)$", TEXT, re.MULTILINE) == [f"{laid_out[1]} /"]


def test_containerfile_installs_what_setup_does() -> None:
    """Of Debian's packages those that the set-up has, for building."""
    installed = re.search(r"--no-install-recommends\s+(.*)$", TEXT, re.MULTILINE)
    assert installed
    setup = (ROOT / "hack" / "setup").read_text()
    assert [name for name in installed[1].split() if not re.search(rf"\s{re.escape(name)}\s", setup)] == []
