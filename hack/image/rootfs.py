# SPDX-License-Identifier: Apache-2.0
"""The image's root file system below the bundle: a Debian of the few tools that we and people on the node call.

Of packages as they are downloaded: no script of theirs runs, and what these would have made is made here. There is no
package manager in it, and no Python but the bundle's.
"""

import shutil
from pathlib import Path

from hack.cache import cache, digest, kept
from hack.command import run
from hack.image import archive
from hack.image.apt import Selection, unpack

SUITE = "bookworm"
PACKAGES = (
    *("base-files", "libc-bin", "usr-is-merged", "dash", "coreutils", "grep", "sed"),
    *("iproute2", "kmod", "mount", "nftables", "procps", "util-linux"),
)
# What packages depend on for their scripts alone, or for a part that nobody calls.
LEFT_OUT = ("debconf", "debianutils", "dpkg", "gcc-12-base", "init-system-helpers", "perl-base", "tar", "usr-is-merged")
# What no program reads in a container. Of the documentation, the terms of use stay.
SURPLUS = (
    *("usr/lib/*/gconv", "usr/lib/*/perl-base", "usr/lib/systemd", "usr/lib/udev", "usr/lib/valgrind"),
    *("usr/share/bash-completion", "usr/share/bug", "usr/share/doc-base", "usr/share/i18n", "usr/share/info"),
    *("usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/menu", "usr/share/zsh"),
    *("etc/cron*", "etc/init.d", "etc/systemd"),
)
MERGED = ("bin", "lib", "lib64", "sbin")
DIRECTORIES = ("dev", "etc", "opt", "proc", "root", "run", "sys", "usr/local/bin", "usr/local/lib", "var/lib")
FILES = {
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
}


def selection(architecture: str) -> Selection:
    return Selection(SUITE, architecture, PACKAGES, closure=True, left_out=LEFT_OUT, security=True)


def layer(architecture: str) -> Path:
    """The image's lowest layer, in the cache: made first when it is missing.

    Raises:
        CommandError: its packages cannot be had.
    """
    chosen = selection(architecture)
    sources = (Path(__file__), Path(archive.__file__))
    return kept(cache() / "rootfs" / f"{architecture}-{digest(chosen, *sources)}.tar", lambda at: _pack(chosen, at))


def make(packages: Path, root: Path) -> None:
    """Makes the tree from downloaded packages. Raises CommandError."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    unpack(packages, root)
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, content in FILES.items():
        (root / name).write_text(content)
    for pattern in SURPLUS:
        for path in root.glob(pattern):
            shutil.rmtree(path)
    terms_alone(root / "usr/share/doc")
    _record(packages, root / "var/lib/dpkg/status.d")


def terms_alone(documentation: Path) -> None:
    """Of usr/share/doc, leaves each package's terms of use."""
    for path in sorted(documentation.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name != "copyright":
            path.unlink()


def _record(packages: Path, directory: Path) -> None:
    """Says which packages these are, in the files that scanners of images read where there is no package manager."""
    directory.mkdir(parents=True)
    for package in sorted(packages.glob("*.deb")):
        (directory / package.name.partition("_")[0]).write_text(run("dpkg-deb", "--field", str(package)))


def _pack(chosen: Selection, scratch: Path) -> Path:
    make(chosen.fetched(), scratch / "root")
    archive.pack(scratch / "root", scratch / "layer.tar")
    return scratch / "layer.tar"
