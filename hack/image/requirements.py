# SPDX-License-Identifier: Apache-2.0
"""The Python packages that the bundle holds: those that setup.cfg asks for, and what these need, as installed here."""

from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
# The asynchronous half of the Kubernetes client is not ours.
LEFT_OUT = frozenset(("aiohttp", "aiohttp-retry"))


def option(name: str) -> str:
    """An option of setup.cfg's section `options`."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return setup["options"][name]


def pinned() -> list[str]:
    """Each package as `name==version`: what the tests ran with is what is shipped."""
    found: dict[str, str] = {}
    wanted = option("install_requires").split()
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name in LEFT_OUT or requirement.name in found:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = distribution(requirement.name)
        found[requirement.name] = installed.version
        wanted += installed.requires or []
    return sorted(f"{name}=={version}" for name, version in found.items())
