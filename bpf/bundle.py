# SPDX-License-Identifier: Apache-2.0
"""The bundle, as what runs from it sees it: Python with a C library, tools and programs of its own (hack/image).

Its executables run by its own loader alone, since the node's may be an older one. Nothing is set in the environment
for that: what we run of the node's keeps to the node's libraries. Any module may import this one.
"""

import os
import sys


def root() -> str | None:
    """The directory of the bundle from which this process runs, or None where it is another Python's."""
    return sys.prefix if os.path.exists(_loader(sys.prefix)) else None


def command(name: str) -> list[str]:
    """How the command line of one of the bundle's executables begins; outside a bundle, that on PATH."""
    here = root()
    if here is None:
        return [name]
    return [_loader(here), "--library-path", f"{here}/lib", "--argv0", name, f"{here}/bin/{name}"]


def _loader(prefix: str) -> str:
    return f"{prefix}/lib/ld.so"
