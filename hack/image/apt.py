# SPDX-License-Identifier: Apache-2.0
"""Debian's packages of any suite and architecture, whatever this machine is, without installing them.

apt runs with lists and a cache of its own, on the mirror that this machine's apt asks for Debian.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hack.cache import cache, digest, kept
from hack.command import CommandError, run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Apt:
    """apt with a configuration of its own, which knows one suite of one architecture and no installed package.

    Args:
        scratch: a directory for its lists.
        security: takes the suite's security updates too, where this machine's apt knows where they are.

    Raises:
        CommandError: this machine's apt has no source of Debian.
    """

    def __init__(self, suite: str, architecture: str, scratch: Path, security: bool = False) -> None:
        state = scratch / "apt"
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True)
        (state / "sources.list").write_text("".join(_sources(suite, security)))
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Get::Install-Recommends": "false",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Dir::Cache": str(state / "cache"),
            "Dir::Etc::sourcelist": str(state / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(state / "lists"),
            "Dir::State::status": "/dev/null",
        }
        self._options = [f"--option={key}={value}" for key, value in options.items()]
        # Without the option an index that cannot be had is a warning.
        self.run("apt-get", "--option=APT::Update::Error-Mode=any", "update", "--quiet")

    def run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        """What apt-get or apt-cache prints. Raises CommandError."""
        return run(command, *self._options, *arguments, cwd=cwd)

    def closure(self, names: tuple[str, ...]) -> list[str]:
        """The names of packages, and of all that they depend on. Raises CommandError."""
        plan = self.run("apt-get", "--simulate", "install", *names)
        return re.findall(r"^Inst (\S+) ", plan, re.MULTILINE)

    def download(self, packages: list[str], directory: Path) -> None:
        """Puts packages, each a name or `name=version`, into a directory. Raises CommandError."""
        self.run("apt-get", "download", *packages, cwd=directory)


@dataclass(frozen=True)
class Selection:
    """Packages of a suite.

    Attributes:
        closure: with all that they depend on, but for `left_out`.
        security: with the suite's security updates.
    """

    suite: str
    architecture: str
    names: tuple[str, ...]
    closure: bool = False
    left_out: tuple[str, ...] = ()
    security: bool = False

    def fetched(self) -> Path:
        """The directory that has them, downloaded first when it is missing: they stay as they were then.

        Raises:
            CommandError: they could not be had.
        """
        return kept(cache() / "packages" / f"{self.suite}-{self.architecture}-{digest(self)}", self._download)

    def _download(self, scratch: Path) -> Path:
        apt = Apt(self.suite, self.architecture, scratch, self.security)
        names = apt.closure(self.names) if self.closure else list(self.names)
        target = scratch / "packages"
        target.mkdir()
        apt.download([name for name in names if name not in self.left_out], target)
        return target


def unpack(packages: Path, root: Path) -> None:
    """Unpacks every package of a directory: files alone, no script of theirs runs.

    A link to a directory stays where a package has the directory: /bin may lead to /usr/bin.

    Raises:
        CommandError: one could not be unpacked.
    """
    root.mkdir(parents=True, exist_ok=True)
    for package in sorted(packages.glob("*.deb")):
        tar = ["tar", "--directory", str(root), "--keep-directory-symlink", "--extract", "--file=-"]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
            failed = subprocess.run(tar, stdin=archive.stdout, capture_output=True, text=True, check=False)
        if archive.returncode or failed.returncode:
            raise CommandError(f"{package.name} cannot be unpacked: {failed.stderr.strip()[-2000:]}")


def _sources(suite: str, security: bool) -> list[str]:
    """The lines of a sources.list, from where this machine's apt gets Debian itself and its security updates."""
    known = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages")
    debian = [line.split()[1:] for line in known.splitlines() if re.match(r"Debian \S+ \S+$", line)]
    main = [uri for codename, uri in debian if "-" not in codename]
    if not main:
        raise CommandError("apt has no source of Debian, or no lists (apt-get update)")
    updates = [uri for codename, uri in debian if codename.endswith("-security")]
    found = [(main[0], suite)] + [(uri, f"{suite}-security") for uri in updates[:1] if security]
    return [f"deb [signed-by={KEYRING}] {uri} {name} main\n" for uri, name in found]
